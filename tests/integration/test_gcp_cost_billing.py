"""gcp/cost/billing on the emulator: odd exports in a customer's project → the tenant's table, to the last digit."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from google.cloud import bigquery

from libs import errors
from libs.bigquery import Sql, Value, Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.providers import gcp
from services.pipeline_executor.run_context import Outcome, Published, RunContext, Secret, SourceEndpoints, StepStatus
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.billing import (
    DATASET,
    DAY,
    TABLE,
    Customer,
    MemoryJournal,
    PlainPublisher,
    TenantRuns,
    row,
    schema,
    service_account_key,
)

PIPELINE = Templates.load().get("gcp", "cost", "billing")
TOTALS = """SELECT t.currency, COUNT(*) AS n, SUM(t.cost) AS cost, SUM(t.credits_total) AS credits,
  SUM(t.net_cost) AS net
FROM gcp_cost_billing AS t WHERE t.usage_date = DATE '2025-11-17' GROUP BY t.currency ORDER BY t.currency"""
# Everything of a row but which run wrote it, as text, so that a re-run can be compared whole.
CONTENT = """SELECT TO_JSON_STRING(t) AS content
FROM (SELECT s.* EXCEPT (pipeline_logging_id) FROM gcp_cost_billing AS s) AS t ORDER BY content"""
SOURCE_TOTALS = """SELECT t.currency, COUNT(*) AS n, SUM(CAST(t.cost AS NUMERIC)) AS cost,
  IFNULL(SUM((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(t.credits) AS c)), 0) AS credits
FROM billing.{table} AS t WHERE DATE(t.usage_start_time) = DATE '2025-11-17' GROUP BY t.currency ORDER BY t.currency"""


@pytest.fixture(scope="module")
def customer(bigquery_emulator: Emulator, project_id: str) -> Iterator[Customer]:
    client = build_client(f"{project_id}-customer", endpoint=bigquery_emulator.rest)
    yield Customer(client)
    for item in list(client.list_datasets()):
        client.delete_dataset(item.reference, delete_contents=True, not_found_ok=True)
    client.close()


@pytest.fixture(scope="module")
def prepared(
    warehouse: Warehouse, customer: Customer, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> TenantRuns:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    runs = TenantRuns(warehouse, TenantId("acme"), customer, endpoints, tmp_path_factory.mktemp("staging"))
    asyncio.run(runs.prepare())
    return runs


@pytest.fixture
def runs(prepared: TenantRuns) -> TenantRuns:
    """The tenant with empty tables."""
    for table, column in (("gcp_cost_billing", "pipeline_logging_id"), ("x_meta_pipeline_runs", "pipeline_logging_id")):
        prepared.warehouse.client.query(f"DELETE FROM acme.{table} AS t WHERE t.{column} IS NOT NULL").result()
    return prepared


async def run(runs: TenantRuns, *args: Any, **kwargs: Any) -> RunResult:
    return await Engine().run(PIPELINE, await runs.begin(*args, **kwargs))


async def run_and_compare(runs: TenantRuns, reference: bigquery.TableReference, count: int) -> RunResult:
    """Runs the day and holds the table's totals against what SQL says of the whole source table."""
    result = await run(runs)
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, count)
    stored = await runs.rows(TOTALS)
    expected = runs.customer.sql(SOURCE_TOTALS.format(table=reference.table_id))
    assert [{name: item[name] for name in ("currency", "n", "cost", "credits")} for item in stored] == expected
    assert all(item["net"] == item["cost"] + item["credits"] for item in stored)
    assert await runs.staging() == []
    return result


def credit(amount: float, kind: str = "PROMOTION") -> dict[str, Any]:
    return {"id": "c1", "full_name": f"{kind} credit", "type": kind, "name": "credit", "amount": amount}


# ------------------------------------------------------------------------------------------------- what arrives


async def test_every_row_of_the_day_arrives_typed_and_flat(runs: TenantRuns) -> None:
    runs.customer.export(
        [
            row(
                cost=0.3,
                credits=[credit(-0.1), credit(-0.05, "SUSTAINED_USAGE_DISCOUNT")],
                labels=[{"key": "team", "value": "web"}, {"key": "empty", "value": ""}],
                tags=[{"key": "env", "value": "prod", "inherited": True, "namespace": "org/1"}],
                resource={"name": "vm-1", "global_name": "//compute.googleapis.com/projects/1/zones/a/instances/7"},
                subscription={"instance_id": "sub-1"},
                price={"effective_price": "0.031611", "tier_start_amount": "0", "unit": "hour"},
                adjustment_info={"id": "adj-1", "type": "USAGE_CORRECTION", "mode": "PARTIAL_CORRECTION"},
                cost_at_list=0.4,
            )
        ],
        fields=schema(without=()),
    )
    context = await runs.begin()
    result = await Engine().run(PIPELINE, context)
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, 1)
    assert [step.status for step in result.steps] == [StepStatus.COMPLETED] * 6
    [stored] = await runs.rows("SELECT t.* FROM gcp_cost_billing AS t")
    assert stored["usage_date"] == DAY
    assert stored["pipeline_logging_id"] == context.pipeline_logging_id
    assert (stored["cost"], stored["credits_total"], stored["net_cost"]) == (
        Decimal("0.3"),
        Decimal("-0.15"),
        Decimal("0.15"),
    )
    assert stored["cost_at_list"] == Decimal("0.4")
    assert stored["price_effective_price"] == Decimal("0.031611")
    assert stored["service_description"] == "Compute Engine"
    assert stored["sku_id"] == "2E27-4F75-95CD"
    assert stored["project_ancestry_numbers"] == "/111/222/"
    assert stored["location_region"] == "us-central1"
    assert stored["invoice_month"] == "202511"
    assert stored["resource_name"] == "vm-1"
    assert stored["subscription_instance_id"] == "sub-1"
    assert stored["adjustment_info_type"] == "USAGE_CORRECTION"
    assert stored["labels"] == [{"key": "team", "value": "web"}, {"key": "empty", "value": ""}]
    assert stored["tags"] == [{"key": "env", "value": "prod", "inherited": True, "namespace": "org/1"}]
    assert [(item["type"], item["amount"]) for item in stored["credits"]] == [
        ("PROMOTION", Decimal("-0.1")),
        ("SUSTAINED_USAGE_DISCOUNT", Decimal("-0.05")),
    ]
    assert stored["source_extra"] is None
    assert await runs.status(context) == {
        "status": "COMPLETED",
        "outcome": "PUBLISHED",
        "superseded_by": None,
        "rows_published": 1,
    }
    assert await runs.staging() == []
    assert not context.staging_dir.exists()
    assert isinstance(context.journal, MemoryJournal)
    assert {item.status for item in context.journal.results} == {"PASS"}
    assert {item.dimension for item in context.journal.results if item.check_type == "equals_source"} == {"USD"}


async def test_amounts_that_floats_sum_badly_are_exact_whatever_else_is_missing(runs: TenantRuns) -> None:
    rows = [row(cost=0.1, usage_end_time=f"2025-11-17T09:{minute:02}:00Z") for minute in range(10)]
    rows += [row(cost=value) for value in (1e-7, 3e-9, -3e-9, 1e-10, -0.0, 123456789.123456789, -123456789.12, 0.0)]
    rows += [row(cost=1.005, credits=[credit(-0.1), credit(-0.2), credit(-0.7)]), row(cost=2.0, credits=[])]
    rows += [row(cost=5.0, currency="EUR", credits=[credit(-1e-9)]), row(cost=-5.0, currency="EUR")]
    rows += [row(cost=1500.0, currency="JPY", currency_conversion_rate=149.5), row(cost=None, credits=[credit(-0.5)])]
    rows += [
        row(cost=7.0, labels=None, project=None, location=None, usage=None),
        row(cost=7.0, labels=[{"key": "k", "value": None}]),
        row(
            cost=7.0,
            cost_type="tax",
            service={"id": None, "description": "Invoice"},
            sku={"id": None, "description": "Tax"},
            project=None,
        ),
    ]
    result = await run_and_compare(runs, runs.customer.export(rows), len(rows))
    [ten] = await runs.rows(
        "SELECT SUM(t.cost) AS cost FROM gcp_cost_billing AS t WHERE t.cost = 0.1 AND t.currency = 'USD'"
    )
    assert ten["cost"] == Decimal("1")
    assert set(result.steps[0].details["source_totals"]) == {"USD", "EUR", "JPY"}


@pytest.mark.parametrize("kind", ["NUMERIC", "BIGNUMERIC", "INTEGER"])
async def test_cost_may_be_of_any_number_type(runs: TenantRuns, kind: str) -> None:
    costs = ["7", "-2", "0"] if kind == "INTEGER" else ["0.123456789", "-0.000000001", "99999999999.999999999"]
    amount = "NUMERIC" if kind == "INTEGER" else kind
    fields = schema(types={"cost": kind, "credits.amount": amount, "cost_at_list": kind})
    rows = [row(cost=cost, cost_at_list=cost, credits=[{**credit(0), "amount": "-0.1"}]) for cost in costs]
    await run_and_compare(runs, runs.customer.export(rows, fields=fields), 3)
    stored = await runs.rows("SELECT t.cost, t.cost_at_list FROM gcp_cost_billing AS t ORDER BY t.cost")
    assert [item["cost"] for item in stored] == sorted(Decimal(cost) for cost in costs)
    assert all(item["cost"] == item["cost_at_list"] for item in stored)


async def test_an_old_export_has_fewer_columns(runs: TenantRuns) -> None:
    fields = [
        bigquery.SchemaField("billing_account_id", "STRING"),
        bigquery.SchemaField("service", "RECORD", fields=[bigquery.SchemaField("id", "STRING")]),
        bigquery.SchemaField("sku", "RECORD", fields=[bigquery.SchemaField("id", "STRING")]),
        bigquery.SchemaField("usage_start_time", "TIMESTAMP"),
        bigquery.SchemaField("usage_end_time", "TIMESTAMP"),
        bigquery.SchemaField("cost", "FLOAT"),
        bigquery.SchemaField("currency", "STRING"),
        bigquery.SchemaField("invoice", "RECORD", fields=[bigquery.SchemaField("month", "INTEGER")]),
    ]
    full = row(service={"id": "S"}, sku={"id": "K"}, invoice={"month": 202511})
    rows = [{field.name: full[field.name] for field in fields}]
    runs.customer.export(rows, fields=fields, partition="usage_start_time")
    result = await run(runs)
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, 1)
    assert {"credits", "project", "price", "service.description"} <= set(result.steps[0].details["missing_columns"])
    [stored] = await runs.rows(
        "SELECT t.service_id, t.service_description, t.invoice_month, t.credits, t.credits_total, t.net_cost"
        " FROM gcp_cost_billing AS t"
    )
    assert stored == {
        "service_id": "S",
        "service_description": None,
        "invoice_month": "202511",
        "credits": [],
        "credits_total": Decimal(0),
        "net_cost": Decimal("0.1"),
    }


async def test_columns_nobody_knew_are_kept_as_json(runs: TenantRuns) -> None:
    field = bigquery.SchemaField
    base = schema()
    fields = [item for item in base if item.name not in ("invoice", "credits", "service")]
    fields += [
        field("invoice", "RECORD", fields=[field("month", "STRING"), field("issuer", "STRING")]),
        field(
            "service", "RECORD", fields=[field("id", "STRING"), field("tier", "RECORD", fields=[field("n", "INTEGER")])]
        ),
        field(
            "credits",
            "RECORD",
            mode="REPEATED",
            fields=[field("type", "STRING"), field("amount", "FLOAT"), field("campaign", "STRING")],
        ),
        field("carbon_kg", "NUMERIC"),
        field("seen", "TIMESTAMP", mode="REPEATED"),
    ]
    rich = row(
        invoice={"month": "202511", "issuer": "Google"},
        service={"id": "S", "tier": {"n": 3}},
        credits=[{"type": "PROMOTION", "amount": -0.01, "campaign": "spring"}, {"type": "DISCOUNT", "amount": -0.02}],
        carbon_kg="0.000000001",
        seen=["2025-11-17T01:02:03Z"],
    )
    plain = row(service={"id": "S"}, credits=[])
    result = await run_and_compare(runs, runs.customer.export([rich, plain], fields=fields), 2)
    assert set(result.steps[0].details["extra_columns"]) == {
        "carbon_kg",
        "seen",
        "invoice.issuer",
        "service.tier",
        "credits.campaign",
    }
    stored = await runs.rows("SELECT t.source_extra FROM gcp_cost_billing AS t ORDER BY t.credits_total")
    assert [item["source_extra"] for item in stored] == [
        {
            "carbon_kg": "0.000000001",
            "seen": ["2025-11-17T01:02:03+00:00"],
            "invoice": {"issuer": "Google"},
            "service": {"tier": {"n": 3}},
            "credits": [{"campaign": "spring"}, None],
        },
        None,
    ]


async def test_rows_alike_stay_as_many_as_they_are_and_a_warning_does_not_stop(runs: TenantRuns) -> None:
    rows = [row(cost=1.0)] * 3 + [row(cost=2.0)] * 2 + [row(cost=2.0, labels=[])]
    rows += [row(cost=3.0, usage_end_time="2025-11-17T07:00:00Z")]
    context = await runs.begin()
    runs.customer.export(rows)
    await Engine().run(PIPELINE, context)
    stored = await runs.rows("SELECT t.cost, COUNT(*) AS n FROM gcp_cost_billing AS t GROUP BY t.cost ORDER BY t.cost")
    assert [(item["cost"], item["n"]) for item in stored] == [(Decimal(1), 3), (Decimal(2), 3), (Decimal(3), 1)]
    assert isinstance(context.journal, MemoryJournal)
    [distinct] = [item for item in context.journal.results if item.check_name == "distinct_rows_equal_source"]
    assert (distinct.expected, distinct.actual) == ("4", "4")
    assert context.journal.failed() == {"usage_ends_after_start"}


async def test_whole_days_in_utc_and_nothing_beside_them(runs: TenantRuns) -> None:
    inside = ["2025-11-17T00:00:00Z", "2025-11-17T23:59:59.999999Z"]
    outside = ["2025-11-16T23:59:59.999999Z", "2025-11-18T00:00:00Z"]
    runs.customer.export([row(usage_start_time=at, usage_end_time=at) for at in inside + outside])
    result = await run(runs)
    assert result.rows_published == 2
    result = await run(runs, date(2025, 11, 16), date(2025, 11, 18))
    assert result.rows_published == 4
    stored = await runs.rows(
        "SELECT t.usage_date, COUNT(*) AS n FROM gcp_cost_billing AS t GROUP BY t.usage_date ORDER BY t.usage_date"
    )
    assert [item["n"] for item in stored] == [1, 2, 1]


# ------------------------------------------------------------------------------------------------- partitions


def late_rows() -> Sequence[dict[str, Any]]:
    return [
        row(cost=1.0, export_time="2025-11-17T10:00:00Z"),
        row(cost=2.0, export_time="2025-11-18T03:00:00Z"),
        row(cost=4.0, export_time="2025-12-02T03:00:00Z"),
    ]


@pytest.mark.parametrize(
    ("partition", "count"), [("", 0), ("export_time", 400), ("usage_start_time", 37), (None, 1)], ids=repr
)
async def test_random_exports_arrive_exactly_with_late_rows_from_newer_partitions(
    runs: TenantRuns, partition: str | None, count: int
) -> None:
    chance = random.Random(20251117 + count)
    rows = [*late_rows(), row(), row()]
    for _ in range(count):
        kinds = chance.sample(["PROMOTION", "DISCOUNT", "FREE_TIER", "FEE_UTILIZATION_OFFSET"], chance.randrange(4))
        rows.append(
            row(
                cost=chance.choice([chance.uniform(-1e-6, 1e-6), chance.uniform(-9, 99), chance.gauss(0, 1e6)]),
                currency=chance.choice(["USD", "EUR", "JPY"]),
                credits=[credit(-(chance.random() ** 9), kind) for kind in kinds],
                usage_start_time=f"2025-11-{chance.choice([16, 17, 17, 17, 18])}T{chance.randrange(24):02}:00:00Z",
                export_time=f"2025-11-{chance.randrange(18, 30)}T00:00:00Z",
            )
        )
    on_day = [item for item in rows if item["usage_start_time"].startswith("2025-11-17")]
    result = await run_and_compare(runs, runs.customer.export(rows, partition=partition), len(on_day))
    restriction = result.steps[0].details["restriction"]
    column = {"": "_PARTITIONTIME", None: "usage_start_time"}.get(partition, partition)
    assert (f"`{column}` >= TIMESTAMP '2025-11-16 00:00:00+00'" in restriction) is (partition is not None)


async def test_a_date_column_bounds_by_date_and_null_partitions_count(runs: TenantRuns) -> None:
    fields = schema(extra=[bigquery.SchemaField("partition_date", "DATE")])
    rows = [row(partition_date="2025-11-17"), row(partition_date="2025-12-01", cost=0.5), row(partition_date=None)]
    result = await run_and_compare(runs, runs.customer.export(rows, fields=fields, partition="partition_date"), 3)
    assert "`partition_date` >= DATE '2025-11-16'" in result.steps[0].details["restriction"]


async def test_an_unknown_partition_column_may_be_a_month(runs: TenantRuns) -> None:
    fields = schema(extra=[bigquery.SchemaField("billing_month", "DATE")])
    rows = [row(billing_month="2025-11-01"), row(billing_month="2025-12-01")]
    await run_and_compare(runs, runs.customer.export(rows, fields=fields, partition="billing_month"), 2)


async def test_usage_times_without_a_zone_are_utc(runs: TenantRuns) -> None:
    fields = schema(types={"usage_start_time": "DATETIME", "usage_end_time": "DATETIME"})
    times = {"usage_start_time": "2025-11-17T23:00:00", "usage_end_time": "2025-11-18T00:00:00"}
    runs.customer.export([row(**times), row(**{**times, "usage_start_time": "2025-11-18T00:00:00"})], fields=fields)
    assert (await run(runs)).rows_published == 1
    [stored] = await runs.rows("SELECT t.usage_start_time FROM gcp_cost_billing AS t")
    assert stored["usage_start_time"].isoformat() == "2025-11-17T23:00:00+00:00"


# ------------------------------------------------------------------------------------------------- publishing


async def test_a_rerun_takes_corrections_in_and_another_changes_nothing(runs: TenantRuns) -> None:
    reference = runs.customer.export([row(cost=10.0), row(cost=1.0)], partition="")
    await run_and_compare(runs, reference, 2)
    negation = {"id": "a", "type": "PRICE_CORRECTION", "mode": "COMPLETE_NEGATION_WITH_REMONETIZATION"}
    runs.customer.append(
        reference,
        [
            row(cost=-10.0, adjustment_info=negation, export_time="2025-11-25T00:00:00Z"),
            row(cost=8.0, adjustment_info=negation, export_time="2025-11-25T00:00:00Z"),
        ],
    )
    await run_and_compare(runs, reference, 4)
    before = await runs.rows(CONTENT)
    await run_and_compare(runs, reference, 4)
    assert await runs.rows(CONTENT) == before


async def test_no_rows_is_no_data_and_keeps_what_was_there(runs: TenantRuns) -> None:
    reference = runs.customer.export([row(cost=3.0)])
    await run(runs)
    before = await runs.rows(CONTENT)
    runs.customer.sql(f"DELETE FROM {DATASET}.{TABLE} AS t WHERE t.cost IS NOT NULL")
    context = await runs.begin()
    result = await Engine().run(PIPELINE, context)
    assert (result.outcome, result.rows_published) == (Outcome.NO_DATA, 0)
    assert [step.status for step in result.steps] == [StepStatus.COMPLETED] + [StepStatus.SKIPPED] * 5
    assert (await runs.status(context))["status"] == "RUNNING"
    assert await runs.rows(CONTENT) == before
    # A window of which one day has rows replaces that day alone.
    runs.customer.append(
        reference, [row(usage_start_time="2025-11-18T00:00:00Z", export_time="2025-11-19T00:00:00Z", cost=5.0)]
    )
    result = await run(runs, date(2025, 11, 16), date(2025, 11, 18))
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, 1)
    stored = await runs.rows("SELECT t.usage_date, t.cost FROM gcp_cost_billing AS t ORDER BY t.usage_date")
    assert [item["cost"] for item in stored] == [Decimal(3), Decimal(5)]


async def set_status(runs: TenantRuns, context: RunContext, status: str) -> None:
    statement = Sql(
        "test/set_status.sql",
        "UPDATE x_meta_pipeline_runs AS r SET status = @status"
        " WHERE r.pipeline_logging_id = @run AND r.attempt = @attempt",
    )
    params: dict[str, Value] = {"status": status, "run": context.pipeline_logging_id, "attempt": context.attempt}
    assert await runs.warehouse.execute(statement, dataset=runs.tenant_id, params=params) == 1


async def test_an_attempt_that_lost_its_run_publishes_nothing(runs: TenantRuns) -> None:
    runs.customer.export([row(cost=3.0)])
    await run(runs)
    before = await runs.rows(CONTENT)
    runs.customer.export([row(cost=4.0), row(cost=5.0)])
    context: RunContext

    class Losing(PlainPublisher):
        """Tries the script in each state in which the run is not this attempt's any more."""

        async def publish(self, sql: Sql, params: Mapping[str, Value]) -> Published:
            for status in ("FAILED", "CANCELLING", "COMPLETED"):
                await set_status(runs, context, status)
                with pytest.raises(errors.Error):
                    await self.warehouse.script(sql, dataset=self.tenant_id, params=params, conflict_retries=5)
                assert (await runs.status(context))["status"] == status
                assert await runs.rows(CONTENT) == before
            return await super().publish(sql, params)

    context = await runs.begin(publisher=Losing(runs.warehouse, runs.tenant_id))
    with pytest.raises(errors.Aborted) as caught:
        await Engine().run(PIPELINE, context)
    assert caught.value.reason == "RUN_FENCED"
    assert caught.value.metadata["step"] == "publish"
    assert await runs.staging() == []


async def test_an_older_reading_does_not_replace_a_newer_one(runs: TenantRuns) -> None:
    reference = runs.customer.export([row(cost=1.0)])
    publisher = PlainPublisher(runs.warehouse, runs.tenant_id)
    slow = await runs.begin(date(2025, 11, 16), DAY, publisher=publisher)
    newer: list[RunContext] = []

    async def overtake() -> None:
        runs.customer.append(reference, [row(cost=2.0, export_time="2025-11-20T00:00:00Z")])
        newer.append(await runs.begin())
        assert (await Engine().run(PIPELINE, newer[0])).rows_published == 2

    publisher.before = overtake
    result = await Engine().run(PIPELINE, slow)
    assert (result.outcome, result.rows_published) == (Outcome.SUPERSEDED, 0)
    assert result.superseded_by == newer[0].pipeline_logging_id
    assert await runs.status(slow) == {
        "status": "COMPLETED",
        "outcome": "SUPERSEDED",
        "superseded_by": newer[0].pipeline_logging_id,
        "rows_published": 0,
    }
    [total] = await runs.rows(TOTALS)
    assert (total["n"], total["cost"]) == (2, Decimal(3))


async def test_cancelled_before_publishing_changes_nothing(runs: TenantRuns) -> None:
    runs.customer.export([row(cost=3.0)])
    await run(runs)
    before = await runs.rows(CONTENT)
    runs.customer.export([row(cost=4.0)])
    publisher, reached = PlainPublisher(runs.warehouse, runs.tenant_id), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await asyncio.Event().wait()

    publisher.before = wait
    context = await runs.begin(publisher=publisher)
    task = asyncio.create_task(Engine().run(PIPELINE, context))
    await reached.wait()
    assert len(await runs.staging()) == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.events[-1].status is StepStatus.CANCELLED
    assert await runs.rows(CONTENT) == before
    assert await runs.staging() == []
    assert not context.staging_dir.exists()


async def test_what_a_killed_process_leaves_expires_and_disturbs_no_one(runs: TenantRuns) -> None:
    """A kill runs no clean-up: the staging tables stay, dated, and the next attempt of the same run is right."""
    reference = runs.customer.export([row(cost=3.0)])
    publisher, reached = PlainPublisher(runs.warehouse, runs.tenant_id), asyncio.Event()

    async def die() -> None:
        reached.set()
        await asyncio.Event().wait()

    publisher.before = die
    context = await runs.begin(publisher=publisher)
    task = asyncio.create_task(Engine().run(PIPELINE, context))
    await reached.wait()
    left = await runs.staging()
    for name in left:
        table = runs.warehouse.client.get_table(f"{runs.warehouse.project_id}.acme.{name}")
        assert table.expires is not None
        assert context.pipeline_logging_id.replace("-", "") in name
    await set_status(runs, context, "FAILED")
    second = await runs.begin(run_id=context.pipeline_logging_id, attempt=2)
    assert (await Engine().run(PIPELINE, second)).rows_published == 1
    assert set(left) <= set(await runs.staging())
    task.cancel()
    await asyncio.wait([task])
    await run_and_compare(runs, reference, 1)


# ------------------------------------------------------------------------------------------------- quality


async def test_rows_that_break_a_rule_are_kept_apart_until_the_source_is_corrected(runs: TenantRuns) -> None:
    good = [row(cost=cost) for cost in (0.1, 0.2, 0.3, 1.5, 2.5, 7.0)]
    bad: dict[str, dict[str, Any]] = {
        "no billing account": {"billing_account_id": None, "credits": [credit(-0.25)]},
        "no service": {"service": {"description": "no id"}},
        "no SKU": {"sku": {"id": ""}, "currency": "EUR"},
        "an invoice month that is none": {"invoice": {"month": "2025-1"}},
        "no currency": {"currency": None},
        "no SKU; a currency that is not of ISO 4217": {"currency": "XXQ", "sku": None},
    }
    tax = row(cost_type="tax", service=None, sku=None, cost=0.7)
    reference = runs.customer.export([*good, tax, *(row(cost=40.0, **changes) for changes in bad.values())])

    class Twice(PlainPublisher):
        """Sends the script again after it has committed, as one does whose first reply was lost."""

        async def publish(self, sql: Sql, params: Mapping[str, Value]) -> Published:
            published = await super().publish(sql, params)
            with pytest.raises(errors.Error):
                await self.warehouse.script(sql, dataset=self.tenant_id, params=params)
            return published

    context = await runs.begin(publisher=Twice(runs.warehouse, runs.tenant_id))
    result = await Engine().run(PIPELINE, context)
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, 7)
    assert (await runs.status(context))["rows_published"] == 7
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() == {"rows_quarantined", "cost_quarantined"}
    said = {(item.check_name, item.dimension): item for item in context.journal.results if item.status == "WARN"}
    assert {(name[:4], currency): item.actual for (name, currency), item in said.items()} == {
        ("rows", None): "1", ("rows", "EUR"): "1", ("rows", "USD"): "3", ("rows", "XXQ"): "1",
        ("cost", None): "40", ("cost", "EUR"): "40", ("cost", "USD"): "119.75", ("cost", "XXQ"): "40",
    }  # fmt: skip
    assert "1 row with no service (cost 40 USD, the first of 2025-11-17)" in said["rows_quarantined", "USD"].message
    assert result.steps[4].details["rows_quarantined"] == 6
    kept = await runs.rows("SELECT t.* FROM x_quarantine AS t")
    assert len(kept) == len(bad)
    assert {item["reason"] for item in kept} == set(bad)
    assert {(item["usage_date"], item["template"]) for item in kept} == {(DAY, "gcp/cost/billing")}
    assert {item["pipeline_logging_id"] for item in kept} == {context.pipeline_logging_id}
    assert all(json.loads(item["source_row"])["cost"] == 40 for item in kept)
    # What is published and what is kept apart are the source, per currency.
    both = await runs.rows(
        """SELECT IFNULL(u.currency, '') AS currency, COUNT(*) AS n, SUM(u.net) AS net FROM (
          SELECT t.currency AS currency, t.net_cost AS net FROM gcp_cost_billing AS t
          UNION ALL SELECT q.currency, CAST(q.cost AS NUMERIC) FROM x_quarantine AS q
        ) AS u GROUP BY 1 ORDER BY 1"""
    )
    expected = runs.customer.sql(SOURCE_TOTALS.format(table=reference.table_id))
    assert [(item["currency"], item["n"], item["net"]) for item in both] == [
        (item["currency"] or "", item["n"], item["cost"] + item["credits"]) for item in expected
    ]
    # Another test's run of a later day left its own.
    [focus] = await runs.rows(
        f"SELECT SUM(t.BilledCost) AS billed FROM focus_cost_and_usage AS t WHERE t.x_ChargeDate = DATE '{DAY}'"
    )
    [raw] = await runs.rows("SELECT SUM(t.net_cost) AS net FROM gcp_cost_billing AS t")
    assert focus["billed"] == raw["net"] == Decimal("12.3")
    await run_and_compare(runs, runs.customer.export([*good, *(row(cost=40.0) for _ in bad)]), 12)
    assert await runs.rows("SELECT q.reason FROM x_quarantine AS q") == []


async def test_too_many_of_them_stop_the_run_before_publishing(runs: TenantRuns) -> None:
    runs.customer.export([row(), row(currency=None, cost=2.0), row(billing_account_id="")])
    before = await runs.rows("SELECT q.* FROM x_quarantine AS q ORDER BY q.reason")
    context = await runs.begin()
    with pytest.raises(errors.FailedPrecondition) as caught:
        await Engine().run(PIPELINE, context)
    assert caught.value.reason == "QUARANTINE_EXCEEDED"
    assert "of 3 rows 2 break a rule, and no more than 1 may" in caught.value.message
    assert "1 row with no currency (cost 2, the first of 2025-11-17)" in caught.value.message
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() == {"rows_quarantined", "cost_quarantined"}
    assert await runs.rows("SELECT t.cost FROM gcp_cost_billing AS t") == []
    assert await runs.rows("SELECT q.* FROM x_quarantine AS q ORDER BY q.reason") == before
    assert await runs.staging() == []


async def test_rows_that_come_between_two_reads_are_noticed_and_read_again(
    runs: TenantRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = runs.customer.export([row(cost=1.0)])
    total, tries = gcp._totals, []

    async def total_then_append(*args: Any) -> Any:
        found = await total(*args)
        tries.append(1)
        if len(tries) == 1:
            await asyncio.to_thread(runs.customer.append, reference, [row(cost=2.0)])
        return found

    monkeypatch.setattr(gcp, "_totals", total_then_append)
    context = await runs.begin()
    result = await Engine(jitter=lambda: 0.0).run(PIPELINE, context)
    assert (result.rows_published, result.steps[0].tries) == (2, 2)
    assert isinstance(context.journal, MemoryJournal)
    waited = [event.error.reason for event in context.journal.events if event.error is not None]
    assert waited == ["SOURCE_CHANGED"]


# ------------------------------------------------------------------------------------------------- finding the source


async def fails(runs: TenantRuns, **changes: Any) -> errors.Error:
    context = await runs.begin(**changes)
    with pytest.raises(errors.FailedPrecondition) as caught:
        await Engine().run(PIPELINE, context)
    assert not caught.value.retryable
    assert "PRIVATE" not in str(caught.value.__cause__) + str(caught.value)
    return caught.value


async def test_the_one_export_of_the_project_is_found_and_several_are_named(runs: TenantRuns) -> None:
    runs.customer.export([row()])
    runs.customer.client.create_dataset("unrelated", exists_ok=True)
    assert (await run(runs)).rows_published == 1
    detailed = "gcp_billing_export_resource_v1_0A1B2C_3D4E5F_678901"
    reference = runs.customer.export([row(), row()], table=detailed, fields=schema(without=()))
    try:
        error = await fails(runs)
        assert error.reason == "SOURCE_AMBIGUOUS"
        assert TABLE in error.message
        assert detailed in error.message
        assert "source.table_id" in error.message
        result = await run(runs, source={"dataset_id": DATASET, "table_id": detailed})
        assert result.rows_published == 2
    finally:
        runs.customer.client.delete_table(reference)
        runs.customer.client.delete_dataset("unrelated")


async def test_no_export_says_what_to_give(runs: TenantRuns) -> None:
    runs.customer.client.create_dataset("empty", exists_ok=True)
    error = await fails(runs, source={"dataset_id": "empty"})
    assert error.reason == "SOURCE_NOT_FOUND"
    assert "source.table_id" in error.message
    runs.customer.client.delete_dataset("empty")


async def test_an_unusable_source_is_named(runs: TenantRuns) -> None:
    runs.customer.export([row()])
    runs.customer.sql(f"CREATE OR REPLACE TABLE {DATASET}.other (a INT64)")
    runs.customer.sql(f"CREATE OR REPLACE VIEW {DATASET}.view AS SELECT t.cost FROM {DATASET}.{TABLE} AS t")
    runs.customer.export([row(), row(cost="NaN")], table="nonsense")
    runs.customer.export([row(cost="cheap")], table="texts", fields=schema(types={"cost": "STRING"}))
    sources = [(DATASET, table) for table in ("missing", "other", "view", "nonsense", "texts")]
    said = {}
    for dataset, table in [("missing", "missing"), *sources]:
        said[dataset, table] = (await fails(runs, source={"dataset_id": dataset, "table_id": table})).reason
    assert said == {
        ("missing", "missing"): "SOURCE_NOT_FOUND",
        (DATASET, "missing"): "SOURCE_NOT_FOUND",
        (DATASET, "other"): "SOURCE_NOT_A_BILLING_EXPORT",
        (DATASET, "view"): "SOURCE_NOT_A_TABLE",
        (DATASET, "nonsense"): "SOURCE_VALUE_INVALID",
        (DATASET, "texts"): "SOURCE_NOT_A_BILLING_EXPORT",
    }


async def test_an_unusable_key_is_named(runs: TenantRuns) -> None:
    for changes in ({"private_key": "-----BEGIN PRIVATE KEY-----\nx"}, {"project_id": ""}, {"client_email": 5}):

        async def open_credential(changes: dict[str, Any] = changes) -> Secret:
            return Secret(service_account_key(runs.customer.project_id, **changes))

        error = await fails(runs, open_credential=open_credential)
        assert error.reason == "CREDENTIAL_UNUSABLE"
        assert error.__cause__ is None


async def test_the_platforms_own_project_is_no_source(runs: TenantRuns) -> None:
    source = {"project_id": runs.warehouse.project_id, "dataset_id": "acme", "table_id": "gcp_cost_billing"}
    assert (await fails(runs, source=source)).reason == "SOURCE_ACCESS_DENIED"
