"""The two pages on the whole stack, as somebody new meets them: a path is tried, and the costs of a real run appear."""

from __future__ import annotations

from decimal import Decimal

import pytest
from playwright.sync_api import expect

from tests.support.browser import opened, running
from tests.support.stack import Stack

DATE = "2025-11-17"


@pytest.mark.timeout(600)
def test_a_new_user_tries_the_api_and_sees_what_was_spent(stack: Stack) -> None:
    tenant = stack.onboard()
    tenant.store_credential()
    run = tenant.run(date=DATE)
    sql = (
        "SELECT BillingCurrency AS currency, SUM(BilledCost) AS cost FROM focus_cost_and_usage "
        "WHERE x_ChargeDate BETWEEN '2025-11-01' AND '2025-11-30' GROUP BY BillingCurrency"
    )
    billed = {row["currency"]: Decimal(row["cost"]) for row in stack.rows(sql, dataset=tenant.tenant_id)}
    # While nobody collects compliance, that one question is refused.
    with running() as browser, opened(browser, stack.rest, allowed=1, viewport={"width": 1180, "height": 900}) as seen:
        page = seen.page
        page.goto("/docs")
        page.get_by_role("button", name="Authorize").first.click()
        page.get_by_label("Value:").fill(tenant.key)
        page.locator(".auth-btn-wrapper").get_by_role("button", name="Apply credentials").click()
        page.locator(".auth-btn-wrapper").get_by_role("button", name="Close").click()
        block = page.locator("#operations-Pipelines-PipelineService_ListRuns")
        block.locator(".opblock-summary-control").click()
        block.get_by_placeholder("tenant_id").fill(tenant.tenant_id)
        block.get_by_role("button", name="Execute").click()
        expect(block.locator(".live-responses-table .response")).to_contain_text(run["pipeline_logging_id"])

        page.goto("/console")
        page.get_by_label("API key").fill(tenant.key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("section.part")).to_have_count(5)
        expect(page.get_by_label("Month", exact=True)).to_have_value("2025-11")
        for currency in sorted(billed):
            page.get_by_label("Currency").select_option(currency)
            text = page.evaluate(
                "([cost, currency]) => new Intl.NumberFormat('en', {style: 'currency', currency}).format(cost)",
                [str(billed[currency]), currency],
            )
            expect(page.locator(".headline strong")).to_have_text(text)
        page.locator(".runs .run").first.click()
        expect(page.locator(".runs .inside").first).to_contain_text("publish")
        expect(page.locator("#quotas")).to_contain_text("1 of 100 runs")
