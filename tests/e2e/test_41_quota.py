"""A tenant with one run left asks for fifty at once: one is accepted, the rest hear what is used up and until when."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, Tenant

AT_ONCE = 50
ONE_LEFT = (
    "UPDATE tenant_usage_quotas SET pipelines_run_today = 5, pipelines_run_month = 5, version = version + 1 "
    "WHERE tenant_id = '{}' AND pipelines_run_today = 0"
)


@pytest.fixture(scope="module")
def answers(stack: Stack) -> Iterator[list[httpx.Response]]:
    """What a STARTER at 5 of its 6 runs hears, fifty times."""
    tenant = stack.onboard(plan="STARTER")
    tenant.store_credential()
    stack.rows(ONE_LEFT.format(tenant.tenant_id), dataset="tenants")
    assert tenant.usage()["daily"]["used"] == 5
    path = f"/api/v1/pipelines/run/{tenant.tenant_id}/gcp/cost/billing"
    with stack.http(tenant.key) as http, ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(http.post, path, json={"date": "2025-11-17"}) for _ in range(AT_ONCE)]
        yield [one.result() for one in asked]
    _check_the_end(stack, tenant)


def _check_the_end(stack: Stack, tenant: Tenant) -> None:
    assert tenant.usage()["daily"]["used"] == 6
    runs = tenant.call("GET", f"/pipelines/runs/{tenant.tenant_id}")["runs"]
    assert len(runs) == 1
    sql = "SELECT pipelines_run_today AS day, pipelines_run_month AS month FROM tenant_usage_quotas WHERE tenant_id = "
    [row] = stack.rows(f"{sql}'{tenant.tenant_id}'", dataset="tenants")
    assert row == {"day": 6, "month": 6}
    tenant.wait(runs[0]["pipeline_logging_id"])


def test_one_is_accepted_and_the_rest_know_why_not(answers: list[httpx.Response]) -> None:
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] + [429] * (AT_ONCE - 1), codes
    for answer in answers:
        if answer.status_code == 429:
            _check_refusal(answer)


def _check_refusal(answer: httpx.Response) -> None:
    body = answer.json()
    details: dict[str, Any] = {detail["@type"].rpartition(".")[2]: detail for detail in body["details"]}
    assert body["code"] == 8 and details.keys() == {"ErrorInfo", "QuotaFailure", "RetryInfo"}, body
    quotas = {violation["quota_id"]: violation for violation in details["QuotaFailure"]["violations"]}
    # Whoever asks while the accepted one still runs finds the slot taken too; the day is used up for all.
    assert quotas.keys() in ({"DAILY_RUNS"}, {"DAILY_RUNS", "CONCURRENT_RUNS"}), quotas
    assert quotas["DAILY_RUNS"]["quota_value"] == "6"
    assert details["ErrorInfo"]["reason"] == "QUOTA_DAILY_EXCEEDED"
    seconds = float(details["RetryInfo"]["retry_delay"].removesuffix("s"))
    wait = int(answer.headers["retry-after"])
    assert 0 < seconds <= 86_400 and seconds <= wait <= seconds + 1
    assert f"t={wait}" in answer.headers["ratelimit"] and '"daily_runs"' in answer.headers["ratelimit"]
    assert '"daily_runs";q=6' in answer.headers["ratelimit-policy"]
