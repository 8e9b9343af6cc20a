"""Billing data of other shapes, loaded into a customer's project through the BigQuery API and run through REST.

Other months, missing and extra columns, late rows, credits, corrections, taxes, several currencies: totals must equal
the source to the last digit, and running again must change nothing. Each test makes the one export of the one tenant
anew, for days of its own.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from google.cloud import bigquery

from tests.support.billing import Customer, row, schema
from tests.support.stack import Stack, Tenant, source_totals, until

DATASET, TABLE = "exports", "gcp_billing_export_v1_ABCDEF_012345_6789AB"


@pytest.fixture(scope="module")
def customer(stack: Stack) -> Iterator[Customer]:
    """A customer's project nobody else uses."""
    client = stack.bigquery(f"planted-{uuid.uuid4().hex[:8]}")
    yield Customer(client)
    for dataset in list(client.list_datasets()):
        client.delete_dataset(dataset.reference, delete_contents=True, not_found_ok=True)
    client.close()


@pytest.fixture(scope="module")
def tenant(stack: Stack, customer: Customer) -> Tenant:
    """A tenant whose credential is that customer's."""
    made = stack.onboard()
    source = {"project_id": customer.project_id, "dataset_id": DATASET, "table_id": TABLE}
    made.store_credential(project_id=customer.project_id, source=source)
    return made


def at(date: str, hour: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of one hour's usage."""
    start = datetime.fromisoformat(f"{date}T00:00:00+00:00") + timedelta(hours=hour)
    times = {"usage_start_time": start.isoformat(), "usage_end_time": (start + timedelta(hours=1)).isoformat()}
    exported = {"export_time": (start + timedelta(hours=30)).isoformat(), "invoice": {"month": f"{start:%Y%m}"}}
    return row(**{**times, **exported, **changes})


def check(stack: Stack, tenant: Tenant, customer: Customer, date: str) -> None:
    """Runs a date; what is stored equals the source, and running again changes nothing."""
    run = tenant.run(date=date)
    expected = source_totals(stack, customer.project_id, DATASET, TABLE, date)
    assert tenant.totals(date) == expected
    assert int(run["rows_published"]) == sum(total.row_count for total in expected.values())
    before = tenant.stored(date)
    tenant.run(date=date)
    assert tenant.stored(date) == before


def test_another_month_with_credits_tax_and_currencies(stack: Stack, tenant: Tenant, customer: Customer) -> None:
    rng = random.Random(20240229)
    rows = []
    for hour in range(24):
        for currency in ("USD", "EUR", "JPY"):
            credits = [
                {"name": kind, "full_name": kind, "id": kind, "type": kind, "amount": -rng.random() / 7}
                for kind in rng.sample(
                    ["PROMOTION", "SUSTAINED_USAGE_DISCOUNT", "FREE_TIER", "DISCOUNT"], rng.randint(0, 3)
                )
            ]
            rows.append(at("2024-02-29", hour, cost=rng.random() * 10, currency=currency, credits=credits))
    rows += [at("2024-02-29", cost=1.234567, cost_type="tax", project=None), at("2024-02-28", 23), at("2024-03-01")]
    customer.export(rows, dataset=DATASET, table=TABLE)
    check(stack, tenant, customer, "2024-02-29")
    totals = tenant.totals("2024-02-29")
    assert set(totals) == {"USD", "EUR", "JPY"}
    assert all(total.credits < 0 for total in totals.values())
    assert tenant.stored("2024-02-28") == []


def test_an_old_export_without_newer_columns_and_one_with_unknown_ones(
    stack: Stack, tenant: Tenant, customer: Customer
) -> None:
    newer = ("tags", "price", "adjustment_info", "transaction_type", "seller_name", "cost_at_list", "system_labels")
    extra = [bigquery.SchemaField("a_column_of_tomorrow", "STRING"), bigquery.SchemaField("score", "FLOAT64")]
    customer.export(
        [at("2023-05-03", hour, cost=0.1, a_column_of_tomorrow="hello", score=0.5) for hour in range(10)],
        fields=schema(without=("resource", "subscription", *newer), extra=extra),
        partition="usage_start_time",
        dataset=DATASET,
        table=TABLE,
    )
    check(stack, tenant, customer, "2023-05-03")
    assert tenant.totals("2023-05-03")["USD"].cost == Decimal("1")


def test_late_rows_and_corrections_are_taken_in_by_the_next_run(
    stack: Stack, tenant: Tenant, customer: Customer
) -> None:
    export = customer.export(
        [at("2025-08-31", hour, cost=2.5) for hour in range(24)] + [at("2025-09-01", cost=9.0)],
        dataset=DATASET,
        table=TABLE,
    )
    check(stack, tenant, customer, "2025-08-31")
    check(stack, tenant, customer, "2025-09-01")
    next_day = tenant.stored("2025-09-01")
    fix = {"id": "fix-1", "description": "price", "type": "PRICE_CORRECTION", "mode": "COMPLETE_NEGATION"}
    late = {"export_time": "2025-10-05T04:00:00Z", "invoice": {"month": "202509"}}
    credit = {"id": "c", "full_name": "Credit", "type": "PROMOTION", "name": "c", "amount": -0.25}
    customer.append(
        export,
        [
            at("2025-08-31", 3, cost=-2.5, adjustment_info=fix, cost_type="adjustment", **late),
            at("2025-08-31", 3, cost=1.75, adjustment_info=fix, cost_type="adjustment", **late),
            at("2025-08-31", 23, cost=0.333333, credits=[credit], **late),
        ],
    )
    check(stack, tenant, customer, "2025-08-31")
    total = tenant.totals("2025-08-31")["USD"]
    assert (total.row_count, total.cost, total.credits) == (27, Decimal("59.583333"), Decimal("-0.25"))
    assert tenant.stored("2025-09-01") == next_day


def test_identical_rows_are_kept(stack: Stack, tenant: Tenant, customer: Customer) -> None:
    customer.export([at("2025-01-01", cost=0.3)] * 5, dataset=DATASET, table=TABLE)
    check(stack, tenant, customer, "2025-01-01")
    assert tenant.totals("2025-01-01")["USD"].row_count == 5


def test_rows_that_vanish_from_the_source_are_not_an_emptied_day(
    stack: Stack, tenant: Tenant, customer: Customer
) -> None:
    customer.export([at("2025-02-02")], dataset=DATASET, table=TABLE)
    check(stack, tenant, customer, "2025-02-02")
    before = tenant.stored("2025-02-02")
    customer.export([at("2025-02-03")], dataset=DATASET, table=TABLE)
    run = tenant.run(date="2025-02-02")
    assert run["outcome"] == "NO_DATA"
    assert tenant.stored("2025-02-02") == before


def test_a_row_of_an_unknown_currency_is_kept_apart_and_said_and_too_many_change_nothing(
    stack: Stack, tenant: Tenant, customer: Customer
) -> None:
    counted = stack.figure("pipeline_executor", "convergence_rows_quarantined_total", 'provider="gcp"')
    export = customer.export([at("2025-03-03")], dataset=DATASET, table=TABLE)
    tenant.run(date="2025-03-03")
    before = tenant.totals("2025-03-03")
    customer.append(export, [at("2025-03-03", 5, currency="???", cost=1.5)])
    run = tenant.run(date="2025-03-03")
    assert (run["outcome"], run["rows_published"], run["rows_quarantined"]) == ("PUBLISHED", "1", "1")
    assert tenant.totals("2025-03-03") == before
    assert stack.figure("pipeline_executor", "convergence_rows_quarantined_total", 'provider="gcp"') == counted + 1
    costs = tenant.call("GET", f"/costs/{tenant.tenant_id}?start_date=2025-03-03&end_date=2025-03-03")
    [kept] = costs["quarantined"]
    assert (kept["provider"], kept["currency"], kept["rows"], Decimal(kept["cost"])) == (
        "gcp", "???", "1", Decimal("1.5")
    )  # fmt: skip
    customer.append(export, [at("2025-03-03", 5, currency="???")])
    stored = tenant.stored("2025-03-03")
    run = tenant.wait(tenant.start(date="2025-03-03")["pipeline_logging_id"])
    assert run["status"] == "FAILED"
    assert (run["error"]["reason"], run["error"]["retryable"]) == ("QUARANTINE_EXCEEDED", False)
    path = f"/pipelines/runs/{tenant.tenant_id}/{run['pipeline_logging_id']}/dq-results"
    failed = [check for check in tenant.call("GET", path)["dq_results"] if check["status"] == "FAIL"]
    assert {check["check_name"] for check in failed} == {"rows_quarantined", "cost_quarantined"}
    assert tenant.stored("2025-03-03") == stored
    until(
        lambda: tenant.usage()["concurrent"]["used"],
        lambda used: used == 0,
        timeout=15,
        what="it is settled",
        pause=0.5,
    )


def test_the_one_export_of_the_keys_project_is_found_without_a_source(stack: Stack, customer: Customer) -> None:
    customer.export([at("2025-04-04", cost=4.5)], dataset=DATASET, table=TABLE)
    tenant = stack.onboard()
    tenant.store_credential(project_id=customer.project_id)
    check(stack, tenant, customer, "2025-04-04")


def test_a_run_may_name_another_source(stack: Stack, customer: Customer) -> None:
    customer.export([at("2025-04-05", cost=4.5)], dataset=DATASET, table=TABLE)
    tenant = stack.onboard()
    tenant.store_credential()
    source = {"project_id": customer.project_id, "dataset_id": DATASET, "table_id": TABLE}
    tenant.run(date="2025-04-05", parameters={"source": source})
    assert tenant.totals("2025-04-05") == source_totals(stack, customer.project_id, DATASET, TABLE, "2025-04-05")


def test_a_source_that_is_not_there_fails_with_what_to_do(tenant: Tenant, customer: Customer) -> None:
    customer.client.delete_dataset(f"{customer.project_id}.{DATASET}", delete_contents=True, not_found_ok=True)
    run = tenant.wait(tenant.start(date="2025-04-06")["pipeline_logging_id"])
    assert run["status"] == "FAILED"
    assert "source.table_id" in run["error"]["message"]
