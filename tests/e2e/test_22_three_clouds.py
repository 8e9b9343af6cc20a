"""AWS and Azure through the gateway: credential, run, the same run again, and what it cost, to the last digit."""

from __future__ import annotations

import csv
import gzip
import json
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from deploy.local import sample_data
from tests.support.stack import Stack, Tenant

MONTH = {"start_date": "2025-11-01", "end_date": "2025-11-30"}
CLOUDS = {
    "aws": (sample_data.AWS_FILE, "lineItem/UnblendedCost", "line_item_unblended_cost"),
    "azure": (sample_data.AZURE_FILE, "CostInBillingCurrency", "cost"),
}


def column_sum(path: Path, column: str) -> tuple[int, Decimal]:
    """Rows and the sum of a column, each value to the place it is stored to."""
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        values = [Decimal(row[column]).quantize(Decimal("1e-17"), ROUND_HALF_UP) for row in csv.DictReader(file)]
    return len(values), sum(values, Decimal(0))


def start(tenant: Tenant, provider: str) -> str:
    answer = tenant.call("POST", f"/pipelines/run/{tenant.tenant_id}/{provider}/cost/billing", MONTH)
    run_id: str = answer["pipeline_logging_id"]
    return run_id


def costs(tenant: Tenant, query: str, expect: int = 200) -> dict[str, Any]:
    return tenant.call("GET", f"/costs/{tenant.tenant_id}?{query}", expect=expect)


@pytest.fixture(scope="module")
def tenant(stack: Stack) -> Tenant:
    """A customer on both clouds, whose month is published."""
    made = stack.onboard()
    for provider in CLOUDS:
        stored = made.call("POST", f"/tenants/{made.tenant_id}/credentials", stack.sample_credentials[provider])
        assert stored["status"] == "VALID", "the stand-in has been asked and believes its key"
    runs = {provider: start(made, provider) for provider in CLOUDS}
    for provider, run_id in runs.items():
        ended = made.wait(run_id)
        assert (ended["status"], ended["outcome"]) == ("COMPLETED", "PUBLISHED"), (provider, ended)
    return made


@pytest.mark.parametrize("provider", CLOUDS)
def test_what_is_stored_is_what_the_export_has(stack: Stack, tenant: Tenant, provider: str) -> None:
    path, theirs, ours = CLOUDS[provider]
    [stored] = stack.rows(
        f"SELECT COUNT(*) AS n, SUM({ours}) AS cost FROM {provider}_cost_billing", dataset=tenant.tenant_id
    )
    assert (stored["n"], stored["cost"]) == column_sum(path, theirs)


def test_the_costs_of_both_clouds_are_one_answer(stack: Stack, tenant: Tenant) -> None:
    query = f"start_date={MONTH['start_date']}&end_date={MONTH['end_date']}"
    found = costs(tenant, f"{query}&group_by=provider&compare=true")["costs"]
    assert {group["dimensions"]["provider"] for group in found} == set(CLOUDS)
    for group in found:
        _, whole = column_sum(*CLOUDS[group["dimensions"]["provider"]][:2])
        assert abs(Decimal(group["cost"]) - whole) < Decimal("0.000001"), "FOCUS has nine digits of each value"
        assert Decimal(group["previous_cost"]) == 0
        assert Decimal(group["change"]) == Decimal(group["cost"])
    by_day = costs(tenant, f"{query}&group_by=provider&group_by=day&page_size=1000")["costs"]
    assert sum(Decimal(group["cost"]) for group in by_day) == sum(Decimal(group["cost"]) for group in found)
    usage = costs(tenant, f"{query}&group_by=charge_category&charge_category=Usage")["costs"]
    assert {group["dimensions"]["charge_category"] for group in usage} == {"Usage"}
    assert costs(tenant, f"{query}&tag=nobody=has")["costs"] == []
    assert costs(tenant, "start_date=2025-10-01&end_date=2025-10-31")["costs"] == []
    stored = stack.rows(
        "SELECT x_Provider AS provider, SUM(EffectiveCost) AS cost FROM focus_cost_and_usage GROUP BY 1",
        dataset=tenant.tenant_id,
    )
    effective = costs(tenant, f"{query}&group_by=provider&metric=effective")["costs"]
    assert {group["dimensions"]["provider"]: Decimal(group["cost"]) for group in effective} == {
        row["provider"]: row["cost"] for row in stored
    }


@pytest.mark.parametrize(
    "query",
    ["charge_category=usage", "tag=team", "group_by=team", "metric=list", "start_date=2025-11-31", "currency=U%24D"],
)
def test_a_question_that_makes_no_sense_is_refused_with_its_field(tenant: Tenant, query: str) -> None:
    refused = costs(tenant, query, expect=400)
    assert query.partition("=")[0] in json.dumps(refused)


def test_an_incomplete_delivery_changes_nothing_and_the_next_try_mends_it(stack: Stack, tenant: Tenant) -> None:
    """A file of the newest delivery goes missing in a customer's bucket of its own."""
    folder = Path(stack.objects_dir) / "s3" / "e2e-broken" / "costs" / "cur" / "20251101-20251201"
    (folder / "a1").mkdir(parents=True)
    manifest = {"assemblyId": "a1", "bucket": "e2e-broken", "reportKeys": ["costs/cur/20251101-20251201/a1/c.csv.gz"]}
    (folder / "cur-Manifest.json").write_text(json.dumps(manifest))
    before = costs(tenant, "start_date=2025-11-01&end_date=2025-11-30")["costs"]
    body = json.loads(json.dumps(stack.sample_credentials["aws"]))
    body["source"]["bucket"] = "e2e-broken"
    tenant.call("POST", f"/tenants/{tenant.tenant_id}/credentials", body)
    ended = tenant.wait(start(tenant, "aws"))
    assert ended["status"] == "FAILED"
    assert ended["error"]["reason"] == "DELIVERY_INCOMPLETE"
    assert "c.csv.gz" in ended["error"]["message"]
    assert costs(tenant, "start_date=2025-11-01&end_date=2025-11-30")["costs"] == before
