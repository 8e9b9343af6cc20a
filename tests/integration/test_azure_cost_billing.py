"""azure/cost/billing: exports in Azurite → the tenant's tables on the emulator, to the last digit or not at all."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import gzip
import io
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from libs import errors
from libs.bigquery import Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.run_context import Outcome, RunContext, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.azure import AzureRuns, Azurite, Storage, exported, running_azurite, sample_ea, sample_made, sas
from tests.support.azure_rows import ACTUAL, ALIKE, AMORTIZED, RESERVATION, as_parquet, row
from tests.support.billing import MemoryJournal

PIPELINE = Templates.load().get("azure", "cost", "billing")
FIRST, LAST = date(2025, 11, 1), date(2025, 11, 30)


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as made:
        yield made


@pytest.fixture(scope="module")
def runs(warehouse: Warehouse, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> AzureRuns:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    made = AzureRuns(warehouse, TenantId("acme"), endpoints, tmp_path_factory.mktemp("staging"))
    asyncio.run(made.prepare())
    return made


@pytest.fixture
def storage(azurite: Azurite, runs: AzureRuns) -> Storage:
    """An empty container, and the tenant's tables empty."""
    for table in ("azure_cost_billing", "x_meta_pipeline_runs"):
        runs.warehouse.client.query(f"DELETE FROM acme.{table} AS t WHERE t.pipeline_logging_id IS NOT NULL").result()
    runs.warehouse.client.query("DELETE FROM acme.focus_cost_and_usage AS t WHERE t.x_Provider IS NOT NULL").result()
    return azurite.container()


async def run(
    runs: AzureRuns, storage: Storage, first: date = FIRST, last: date = LAST, **changes: Any
) -> tuple[RunResult, RunContext]:
    context = await runs.begin(storage.source(**changes.pop("source", {})), first, last, **changes)
    return await Engine().run(PIPELINE, context), context


async def published(runs: AzureRuns, storage: Storage, **kwargs: Any) -> RunContext:
    result, context = await run(runs, storage, **kwargs)
    assert result.outcome is Outcome.PUBLISHED
    return context


async def refused(runs: AzureRuns, storage: Storage, reason: str, **kwargs: Any) -> errors.Error:
    """The run fails for this reason, and says so without a secret."""
    with pytest.raises(errors.Error) as caught:
        await run(runs, storage, **kwargs)
    assert caught.value.reason == reason
    assert "sig=" not in f"{caught.value.message}{caught.value.__cause__!r}"
    return caught.value


@contextlib.asynccontextmanager
async def unchanged(runs: AzureRuns) -> AsyncIterator[None]:
    """What is done inside changes no row."""
    rows = """SELECT TO_JSON_STRING(t) AS content FROM azure_cost_billing AS t
      UNION ALL SELECT TO_JSON_STRING(f) FROM focus_cost_and_usage AS f ORDER BY content"""
    before = await runs.rows(rows)
    yield
    assert await runs.rows(rows) == before


async def total(runs: AzureRuns) -> Decimal:
    [found] = await runs.rows("SELECT SUM(t.cost) AS cost FROM azure_cost_billing AS t")
    return Decimal(found["cost"])


def column_sum(content: bytes, column: str) -> Decimal:
    """Each value to the seventeenth place, as it is stored."""
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    return sum((Decimal(item[column]).quantize(Decimal("1e-17"), ROUND_HALF_UP) for item in rows), Decimal(0))


# ------------------------------------------------------------------------------------------------- totals


async def test_the_ea_sample_ties_to_the_last_digit(runs: AzureRuns, storage: Storage) -> None:
    # As older exports lie there: without a manifest.
    storage.deliver({"part_0_0001.csv": sample_ea()}, period="20230901-20230930", run="old", kind=None)
    context = await published(runs, storage, first=date(2023, 9, 1), last=date(2023, 9, 30))
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() == set()
    assert round(await total(runs), 8) == Decimal("1.26136927")
    assert await total(runs) == column_sum(sample_ea(), "CostInBillingCurrency")
    [focus] = await runs.rows(
        """SELECT COUNT(*) AS n, SUM(t.BilledCost) AS billed, SUM(t.EffectiveCost) AS effective,
          COUNTIF(t.PricingCategory = 'Dynamic') AS spot, MIN(t.BillingCurrency) AS currency,
          MIN(t.ChargePeriodStart) AS start
        FROM focus_cost_and_usage AS t"""
    )
    assert (focus["n"], focus["spot"], focus["currency"]) == (27, 3, "CAD")
    assert focus["billed"] == focus["effective"] == Decimal("1.261369264")
    [stored] = await runs.rows("SELECT t.tags, t.usage_date FROM azure_cost_billing AS t LIMIT 1")
    assert stored == {"tags": {"tagA": "valueA", "tagB": "valueB", "tagC": "valueC"}, "usage_date": date(2023, 9, 2)}


async def test_the_generated_month_adds_up_from_files_of_every_form(runs: AzureRuns, storage: Storage) -> None:
    content = sample_made()
    lines = content.splitlines(keepends=True)
    plain, zipped, rest = (
        lines[0] + b"".join(lines[first:last]) for first, last in ((1, 100), (100, 170), (170, None))
    )
    parts = {"part_0.csv": plain, "part_1.csv.gz": gzip.compress(zipped), "part_2.snappy.parquet": as_parquet(rest)}
    storage.deliver(parts, rows=[99, 70, 71])
    context = await published(runs, storage)
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() <= {"meter_id_not_null"}
    assert await total(runs) == column_sum(content, "CostInBillingCurrency")
    [focus] = await runs.rows("SELECT COUNT(*) AS n, SUM(t.BilledCost) AS billed FROM focus_cost_and_usage AS t")
    assert focus["n"] == 240
    assert abs(focus["billed"] - await total(runs)) < Decimal("0.0000003")


async def test_both_casings_both_date_forms_and_columns_nobody_knew(runs: AzureRuns, storage: Storage) -> None:
    other = {name.lower(): value for name, value in row(date="2025-11-18", carbonKg="1.5").items()}
    other |= {"cost": other.pop("costinbillingcurrency"), "tags": '{"a": "1", "b": null}', "additionalinfo": "no JSON"}
    storage.deliver({"a.csv": exported([row()]), "b.csv": exported([other])}, rows=[1, 1])
    result, _ = await run(runs, storage)
    assert result.steps[0].details["extra_columns"] == ["carbonkg"]
    stored = await runs.rows(
        """SELECT t.usage_date, t.cost, t.tags, t.source_extra, t.additional_info, t.cost_view
        FROM azure_cost_billing AS t ORDER BY t.usage_date"""
    )
    assert [item["usage_date"].day for item in stored] == [17, 18]
    assert stored[0]["tags"] == {"team": "web"}
    assert stored[1]["tags"] == {"a": "1", "b": ""}
    assert stored[1]["source_extra"] == {"carbonkg": "1.5"}
    assert stored[1]["additional_info"] == "no JSON"
    assert {item["cost_view"] for item in stored} == {"ACTUAL"}


# ------------------------------------------------------------------------------------------------- FOCUS


async def test_actual_and_amortized_exports_together_say_what_is_billed_and_what_it_is_worth(
    runs: AzureRuns, storage: Storage
) -> None:
    # A row that breaks a rule is kept apart in both, and its cost counts once.
    bad = [row(date="", costInBillingCurrency="5"), row(billingAccountId="", billingProfileId="", chargeType="")]
    storage.deliver({"a.csv": exported([*ACTUAL, *bad])})
    storage.deliver({"b.csv": exported([*AMORTIZED, *bad])}, export="amortized", kind="AmortizedCost")
    context = await published(runs, storage)
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() == {"dates_inside_billing_period", "rows_quarantined", "cost_quarantined"}
    assert {
        item.check_name: item.actual for item in context.journal.results if item.check_type == "quarantine"
    } == {"rows_quarantined": "4", "cost_quarantined": "5.8"}  # fmt: skip
    kept = await runs.rows("SELECT q.usage_date, q.cost, q.reason FROM x_quarantine AS q ORDER BY q.reason, q.cost")
    account = "no billing account or profile; no charge type"
    assert [(item["usage_date"].day, item["cost"], item["reason"]) for item in kept] == [
        (17, None, account), (17, Decimal("0.8"), account), (1, None, "no date"), (1, Decimal(5), "no date")
    ]  # fmt: skip
    found = {
        item["ChargeDescription"]: item
        for item in await runs.rows("SELECT t.* EXCEPT (Tags, SkuPriceDetails) FROM focus_cost_and_usage AS t")
    }
    assert len(found) == len(ALIKE) + 5

    def said(name: str, /, **expected: Any) -> Mapping[str, Any]:
        money = {"BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "ListUnitPrice"}
        wanted = {
            key: Decimal(value) if key in money and value is not None else value for key, value in expected.items()
        }
        assert {key: found[name][key] for key in wanted} == wanted
        return found[name]

    said("plain", BilledCost="0.8", EffectiveCost="0.8", ListCost="1", ContractedCost="0.8", ListUnitPrice="0.5",
         BillingAccountType="Billing Profile", RegionName="West Europe", ServiceName="Virtual Machines",
         ResourceType="Virtual machine", ResourceName="VM-1", PricingCategory="Standard",
         ConsumedUnit="Hours")  # fmt: skip
    said("spot", PricingCategory="Dynamic")
    said("euro", BillingCurrency="EUR", PricingCurrency="USD", BilledCost="0.72", PublisherName="MongoDB",
         InvoiceId="G1",
         PricingCurrencyEffectiveCost=Decimal("0.8"), x_CurrencyConversionRate=0.9)  # fmt: skip
    said("tax", ChargeCategory="Tax", SkuId=None, PricingQuantity=None, SubAccountId=None, ChargeFrequency="One-Time")
    said("refund", ChargeCategory="Usage", ChargeClass="Correction", BilledCost="-5", EffectiveCost="-5")
    said("rounding", ChargeCategory="Adjustment", PricingCategory=None)
    late = said("late", x_ChargeDate=FIRST, BilledCost="0.3")
    assert late["ChargePeriodStart"].date() == date(2025, 10, 30)
    assert "x_ChargeDate" in late["x_SourceChanges"]
    odd = said("odd", ServiceName="Odd Service", ServiceCategory="Other", ConsumedUnit="Units", ResourceId=None)
    assert "ServiceName" in odd["x_SourceChanges"]
    said("covered", BilledCost="0", EffectiveCost="7.5", CommitmentDiscountStatus="Used", PricingCategory="Committed",
         CommitmentDiscountType="Reservation", CommitmentDiscountCategory="Usage",
         CommitmentDiscountId=RESERVATION)  # fmt: skip
    said("left", BilledCost="0", EffectiveCost="2.5", CommitmentDiscountStatus="Unused", ChargeCategory="Usage",
         ConsumedQuantity=None, ResourceId=RESERVATION)  # fmt: skip
    said("saved", CommitmentDiscountType="Savings Plan", CommitmentDiscountCategory="Spend",
         CommitmentDiscountUnit="USD",
         BilledCost="0", EffectiveCost="4")  # fmt: skip
    said("Reserved VM", BilledCost="10", EffectiveCost="0", ChargeCategory="Purchase", CommitmentDiscountStatus=None,
         ResourceId=RESERVATION, ChargeFrequency="Recurring", PricingCategory="Standard")  # fmt: skip
    said("Plan", BilledCost="4", EffectiveCost="0", ServiceName="Azure Savings Plan for Compute")
    # Bought and spread are equal here, per commitment and in all.
    [sums] = await runs.rows(
        "SELECT SUM(t.BilledCost) AS billed, SUM(t.EffectiveCost) AS effective FROM focus_cost_and_usage AS t"
    )
    assert sums["billed"] == sums["effective"] == Decimal("12.631")


async def test_one_export_alone_says_what_it_can(runs: AzureRuns, storage: Storage) -> None:
    storage.deliver({"b.csv": exported(AMORTIZED)}, export="amortized", kind="AmortizedCost")
    await published(runs, storage)
    [covered] = await runs.rows("SELECT t.* FROM focus_cost_and_usage AS t WHERE t.ChargeDescription = 'covered'")
    assert (covered["BilledCost"], covered["EffectiveCost"]) == (Decimal(0), Decimal("7.5"))
    assert "BilledCost without the purchase" in covered["x_SourceChanges"]


# ------------------------------------------------------------------------------------------------- deliveries


async def test_the_newest_of_two_runs_replaces_the_period_and_other_periods_stay(
    runs: AzureRuns, storage: Storage
) -> None:
    storage.deliver({"a.csv": exported([row(), row(date="2025-11-18", costInBillingCurrency="2")])}, run="zz")
    october = row(date="2025-10-31", billingPeriodStartDate="2025-10-01", billingPeriodEndDate="2025-10-31")
    storage.deliver({"a.csv": exported([october])}, period="20251001-20251031")
    await published(runs, storage, first=date(2025, 10, 1))
    assert await total(runs) == Decimal("3.6")
    # Reissued: a day is gone from it, and another has changed. Its folder's name says nothing of its age.
    storage.deliver({"a.csv": exported([row(costInBillingCurrency="0.9")])}, run="aa", submitted="2025-11-21T04:00:00Z")
    await published(runs, storage)
    stored = await runs.rows("SELECT t.usage_date, t.cost FROM azure_cost_billing AS t ORDER BY t.usage_date")
    assert [(item["usage_date"].month, item["cost"]) for item in stored] == [(10, Decimal("0.8")), (11, Decimal("0.9"))]
    assert [item["n"] for item in await runs.rows("SELECT COUNT(*) AS n FROM focus_cost_and_usage AS t")] == [2]
    # One day of it leaves the others alone.
    await published(runs, storage, first=date(2025, 11, 17), last=date(2025, 11, 17))
    assert await total(runs) == Decimal("1.7")
    # Days without rows are no data.
    result, _ = await run(runs, storage, first=date(2025, 11, 20))
    assert result.outcome is Outcome.NO_DATA


UNREADABLE: Sequence[tuple[str, Mapping[str, bytes]]] = [
    ("SOURCE_COLUMNS_MISSING", {"renamed.csv": exported([row()]).replace(b"costInBillingCurrency", b"kosten")}),
    ("SOURCE_FILE_DAMAGED", {"truncated.csv.gz": gzip.compress(exported([row()] * 500), mtime=0)[:-40]}),
    ("SOURCE_VALUE_INVALID", {"date_of_no_known_form.csv": exported([row(date="17.11.2025")])}),
    ("SOURCE_VALUE_INVALID", {"no_number.csv": exported([row(costInBillingCurrency="1,50")])}),
    ("SOURCE_FILE_DAMAGED", {"damaged.parquet": b"PAR1 no more"}),
]


async def test_a_delivery_that_is_incomplete_or_cannot_be_read_is_said_and_changes_nothing(
    runs: AzureRuns, storage: Storage
) -> None:
    storage.deliver({"a.csv": exported([row()])})
    await published(runs, storage)
    assert await total(runs) == Decimal("0.8")
    parts = {"a.csv": exported([row()]), "b.csv": exported([row(costInBillingCurrency="9")])}
    async with unchanged(runs):
        storage.deliver(parts, run="r2", submitted="2025-11-22T00:00:00Z", leave_out=["b.csv"])
        error = await refused(runs, storage, "DELIVERY_INCOMPLETE")
        assert "1 of 2 files are missing (b.csv)" in error.message
        folder = storage.deliver(parts, run="r3", submitted="2025-11-23T00:00:00Z", rows=[1, 2])
        assert "2" in (await refused(runs, storage, "DELIVERY_INCOMPLETE")).message
        storage.put(f"{folder}/b.csv", b"date\n")
        assert "not of its size" in (await refused(runs, storage, "DELIVERY_INCOMPLETE")).message
        for day, (reason, unreadable) in enumerate(UNREADABLE, start=24):
            storage.deliver(unreadable, run=f"r{day}", submitted=f"2025-11-{day}T00:00:00Z")
            error = await refused(runs, storage, reason)
            assert next(iter(unreadable)) in error.message


async def test_credentials_and_places_that_do_not_serve(runs: AzureRuns, storage: Storage) -> None:
    async with unchanged(runs):
        storage.deliver({"a.csv": exported([row()])})
        await refused(
            runs, storage, "CREDENTIAL_EXPIRED", secret=lambda: {"sas_token": sas(valid_for=timedelta(minutes=-1))}
        )
        forged = base64.b64encode(b"x" * 64).decode()
        await refused(runs, storage, "CREDENTIAL_REJECTED", secret=lambda: {"sas_token": sas(key=forged)})
        await refused(runs, storage, "SOURCE_ACCESS_DENIED", secret=lambda: {"sas_token": sas("w")})
        await refused(runs, storage, "CREDENTIAL_UNUSABLE", secret=lambda: {"client_id": "x"})
        await refused(runs, storage, "SOURCE_NOT_FOUND", source={"container": "nothere"})
        await refused(runs, storage, "SOURCE_NOT_FOUND", source={"export_name": "other"})
        await refused(runs, storage, "SOURCE_INVALID", source_endpoints=SourceEndpoints())
        storage.deliver({"a.csv": exported([row()])}, export="second")
        error = await refused(runs, storage, "SOURCE_AMBIGUOUS")
        assert error.metadata["candidates"] == "actual,second"
    await published(runs, storage, source={"export_name": "second"})
