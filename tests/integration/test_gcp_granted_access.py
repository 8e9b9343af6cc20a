"""gcp/cost/billing with read access that was granted to the platform instead of a key: the same rows, nobody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from libs import errors
from libs.bigquery import Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.providers import gcp
from services.pipeline_executor.run_context import Outcome, Secret, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.billing import DATASET, TABLE, Customer, MemoryJournal, TenantRuns, row, schema

PIPELINE = Templates.load().get("gcp", "cost", "billing")
CONTENT = """SELECT TO_JSON_STRING(t) AS content
FROM (SELECT s.* EXCEPT (pipeline_logging_id) FROM gcp_cost_billing AS s) AS t ORDER BY content"""
FOCUS = """SELECT TO_JSON_STRING(t) AS content
FROM (SELECT s.* EXCEPT (x_PipelineLoggingId) FROM focus_cost_and_usage AS s) AS t ORDER BY content"""
CREDIT = {"id": "c1", "full_name": "Promo", "type": "PROMOTION", "name": "credit", "amount": -0.07}
KEPT = """SELECT TO_JSON_STRING(STRUCT(
  q.usage_date AS usage_date, q.reason AS reason, q.currency AS currency, q.cost AS cost
)) AS content FROM x_quarantine AS q"""
ROWS = [
    row(cost=0.1),
    row(
        cost=0.30000000000000004,
        credits=[CREDIT, {**CREDIT, "type": "DISCOUNT", "amount": -1e-7}],
        labels=[{"key": "team", "value": "web"}, {"key": "empty", "value": ""}],
        tags=[{"key": "env", "value": "prod", "inherited": True, "namespace": "org/1"}],
        resource={"name": "vm-1", "global_name": "//compute.googleapis.com/projects/1/zones/a/instances/7"},
        price={"effective_price": "0.031611", "tier_start_amount": "0", "unit": "hour", "list_price": "0.04"},
        adjustment_info={"id": "adj-1", "type": "USAGE_CORRECTION", "mode": "PARTIAL_CORRECTION"},
        cost_at_list=0.4,
        cost_at_effective_price_default="0.123456789",
        system_labels=[{"key": "compute.googleapis.com/cores", "value": "4"}],
    ),
    row(cost=1e-7, currency="EUR", currency_conversion_rate=0.9, usage=None, project=None, location=None),
    row(cost=-2.5, cost_type="adjustment", service=None, sku=None),
]


@pytest.fixture(scope="module")
def customer(bigquery_emulator: Emulator, project_id: str) -> Iterator[Customer]:
    client = build_client(f"{project_id}-grantor", endpoint=bigquery_emulator.rest)
    yield Customer(client)
    client.close()


@pytest.fixture(scope="module")
def runs(
    warehouse: Warehouse, customer: Customer, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TenantRuns]:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    made = {
        name: TenantRuns(warehouse, TenantId(name), customer, endpoints, tmp_path_factory.mktemp("staging"))
        for name in ("by_key", "granted")
    }
    for item in made.values():
        asyncio.run(item.prepare())
    return made


def label(customer: Customer, tenant_id: str | None) -> None:
    dataset = customer.client.get_dataset(DATASET)
    dataset.labels = {gcp.OWNER_LABEL: tenant_id} if tenant_id else {gcp.OWNER_LABEL: None}  # type: ignore[dict-item]
    customer.client.update_dataset(dataset, ["labels"])


async def granted() -> Secret:
    return Secret({"type": "granted_access"})


async def run(runs: TenantRuns, **changes: Any) -> tuple[RunResult, MemoryJournal]:
    source = {"project_id": runs.customer.project_id, "dataset_id": DATASET, "table_id": TABLE}
    context = await runs.begin(**{"open_credential": granted, "source": source, **changes})
    assert isinstance(context.journal, MemoryJournal)
    return await Engine(sleep=_no_wait).run(PIPELINE, context), context.journal


async def _no_wait(_: float) -> None:
    """Retries at once."""


async def contents(runs: TenantRuns) -> list[Any]:
    found = [_plain(json.loads(item["content"])) for sql in (CONTENT, FOCUS, KEPT) for item in await runs.rows(sql)]
    return sorted(found, key=lambda item: json.dumps(item, sort_keys=True))


def _plain(value: Any) -> Any:
    """BigQuery stores no array that is NULL, it is empty; the stand-in tells the two apart."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value] or None
    return value


@pytest.mark.parametrize("form", ["standard", "detailed", "with a column nobody knows"])
async def test_both_ways_give_the_same_rows(
    customer: Customer, runs: dict[str, TenantRuns], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detailed = form != "standard"
    extra = [SchemaField("carbon", "STRING")] if form == "with a column nobody knows" else []
    rows = [*ROWS, row(cost=7.5, billing_account_id=None)]
    if not detailed:
        rows = [{name: value for name, value in item.items() if name != "resource"} for item in rows]
    customer.export(
        [{**item, "carbon": "1.5"} for item in rows] if extra else rows,
        fields=schema(without=(), extra=extra) if detailed else schema(),
    )
    label(customer, "granted")
    by_key = await Engine().run(PIPELINE, await runs["by_key"].begin())
    read = gcp._Reader.read
    bytes_through_python = []

    def spied(self: Any, *args: Any) -> Any:
        bytes_through_python.append(args)
        return read(self, *args)

    monkeypatch.setattr(gcp._Reader, "read", spied)
    by_grant, journal = await run(runs["granted"])
    assert by_key.outcome is by_grant.outcome is Outcome.PUBLISHED
    assert by_key.rows_published == by_grant.rows_published == len(ROWS)
    assert await contents(runs["by_key"]) == await contents(runs["granted"])
    quarantined = {"rows_quarantined", "cost_quarantined"}
    assert journal.failed() == quarantined | ({"schema_known"} if extra else set())
    # Only what BigQuery could not name by itself is read row by row.
    assert len(bytes_through_python) == len(extra)
    assert await runs["granted"].staging() == []


async def test_what_somebody_else_has_granted_is_not_read(customer: Customer, runs: dict[str, TenantRuns]) -> None:
    mine = runs["granted"]
    customer.export(ROWS)

    async def refused(reason: str, **changes: Any) -> errors.Error:
        with pytest.raises(errors.Error) as caught:
            await run(mine, **changes)
        assert caught.value.reason == reason
        return caught.value

    # The platform could read it in all of these cases; the dataset does not say that it is this tenant's.
    label(customer, None)
    error = await refused("SOURCE_NOT_YOURS")
    assert "label convergence_tenant to granted" in error.message
    label(customer, "by_key")
    await refused("SOURCE_NOT_YOURS")
    label(customer, "granted")
    # A view in one's own dataset would be resolved with the platform's rights to what others have granted.
    view = bigquery.Table(bigquery.DatasetReference(customer.project_id, DATASET).table("gcp_billing_export_v1_view"))
    view.view_query = f"SELECT * FROM `{customer.project_id}.{DATASET}.{TABLE}`"
    customer.client.create_table(view)
    source = {"project_id": customer.project_id, "dataset_id": DATASET, "table_id": "gcp_billing_export_v1_view"}
    await refused("SOURCE_NOT_A_TABLE", source=source)
    # The platform's own datasets are open to its account, other tenants' among them.
    home = {"project_id": mine.warehouse.project_id, "dataset_id": "by_key", "table_id": "gcp_cost_billing"}
    await refused("SOURCE_ACCESS_DENIED", source=home)
    await refused("SOURCE_INVALID", source={"project_id": customer.project_id})


async def test_what_changes_hands_or_form_while_it_is_read_is_not_published(
    customer: Customer, runs: dict[str, TenantRuns], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = runs["granted"]
    before = await contents(mine)
    customer.export([row(cost=7.0)])
    label(customer, "granted")
    copy = gcp._copy

    async def replaced(*args: Any) -> None:
        await copy(*args)
        customer.export([row(cost=8.0)])

    monkeypatch.setattr(gcp, "_copy", replaced)
    with pytest.raises(errors.Unavailable) as changed:
        await run(mine)
    assert changed.value.reason == "SOURCE_CHANGED"

    async def taken_back(*args: Any) -> None:
        await copy(*args)
        label(customer, "by_key")

    monkeypatch.setattr(gcp, "_copy", taken_back)
    with pytest.raises(errors.FailedPrecondition) as lost:
        await run(mine)
    assert lost.value.reason == "SOURCE_NOT_YOURS"
    assert await contents(mine) == before


async def test_an_export_that_did_not_grow_is_not_read_again(customer: Customer, runs: dict[str, TenantRuns]) -> None:
    mine = runs["granted"]
    reference = customer.export(ROWS)
    label(customer, "granted")
    first, _ = await run(mine)
    again, _ = await run(mine, parameters={})
    assert (first.outcome, again.outcome) == (Outcome.PUBLISHED, Outcome.UNCHANGED)
    customer.append(reference, [row(cost=9.0, export_time="2025-11-20T00:00:00Z")])
    grown, _ = await run(mine, parameters={})
    assert (grown.outcome, grown.rows_published) == (Outcome.PUBLISHED, len(ROWS) + 1)
