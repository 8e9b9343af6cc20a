"""aws/cost/billing: reports in a bucket of moto's → the tenant's tables on the emulator, exact or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import io
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from libs import errors
from libs.bigquery import Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.providers import aws as provider
from services.pipeline_executor.run_context import Outcome, RunContext, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.aws import (
    ROLE,
    AwsRuns,
    Bucket,
    Moto,
    as_parquet,
    exported,
    running_moto,
    sample_legacy,
    sample_made,
)
from tests.support.aws_rows import PLAN, RESERVATION, ROWS, row
from tests.support.billing import MemoryJournal

PIPELINE = Templates.load().get("aws", "cost", "billing")
FIRST, LAST = date(2025, 11, 1), date(2025, 11, 30)
_DIGITS = Decimal("1e-17")


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with running_moto(tmp_path_factory.mktemp("moto")) as made:
        yield made


@pytest.fixture(scope="module")
def runs(warehouse: Warehouse, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> AwsRuns:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    made = AwsRuns(warehouse, TenantId("acme"), endpoints, tmp_path_factory.mktemp("staging"))
    asyncio.run(made.prepare())
    return made


@pytest.fixture
def bucket(moto: Moto, runs: AwsRuns) -> Bucket:
    """An empty bucket, and the tenant's tables empty."""
    for table in ("aws_cost_billing", "x_meta_pipeline_runs"):
        runs.warehouse.client.query(f"DELETE FROM acme.{table} AS t WHERE t.pipeline_logging_id IS NOT NULL").result()
    runs.warehouse.client.query("DELETE FROM acme.focus_cost_and_usage AS t WHERE t.x_Provider IS NOT NULL").result()
    return moto.bucket()


async def _no_wait(_: float) -> None:
    """Retries at once."""


async def run(
    runs: AwsRuns, bucket: Bucket, first: date = FIRST, last: date = LAST, **changes: Any
) -> tuple[RunResult, RunContext]:
    context = await runs.begin(bucket.source(**changes.pop("source", {})), first, last, **changes)
    return await Engine(sleep=_no_wait).run(PIPELINE, context), context


async def published(runs: AwsRuns, bucket: Bucket, **kwargs: Any) -> set[str]:
    """The names of the checks that warned."""
    result, context = await run(runs, bucket, **kwargs)
    assert result.outcome is Outcome.PUBLISHED
    assert isinstance(context.journal, MemoryJournal)
    return context.journal.failed()


async def refused(runs: AwsRuns, bucket: Bucket, reason: str, **kwargs: Any) -> errors.Error:
    """The run fails for this reason, and says so without a secret."""
    with pytest.raises(errors.Error) as caught:
        await run(runs, bucket, **kwargs)
    assert caught.value.reason == reason
    assert "wJalr" not in f"{caught.value.message}{caught.value.__cause__!r}"
    return caught.value


@contextlib.asynccontextmanager
async def unchanged(runs: AwsRuns) -> AsyncIterator[None]:
    """What is done inside changes no row."""
    rows = """SELECT TO_JSON_STRING(t) AS content FROM aws_cost_billing AS t
      UNION ALL SELECT TO_JSON_STRING(f) FROM focus_cost_and_usage AS f ORDER BY content"""
    before = await runs.rows(rows)
    yield
    assert await runs.rows(rows) == before


async def total(runs: AwsRuns) -> Decimal:
    [found] = await runs.rows("SELECT SUM(t.line_item_unblended_cost) AS cost FROM aws_cost_billing AS t")
    return Decimal(found["cost"])


def column_sum(content: bytes) -> Decimal:
    """Each value to the seventeenth place, as it is stored."""
    rows = csv.DictReader(io.StringIO(content.decode()))
    return sum((Decimal(item["lineItem/UnblendedCost"]).quantize(_DIGITS, ROUND_HALF_UP) for item in rows), Decimal(0))


async def test_legacy_reports_tie_to_the_last_digit(runs: AwsRuns, bucket: Bucket) -> None:
    bucket.deliver_legacy({"cur-1.csv.gz": gzip.compress(sample_legacy())})
    assert await published(runs, bucket, first=date(2023, 11, 1), last=date(2023, 11, 30)) == set()
    assert await total(runs) == column_sum(sample_legacy()) == Decimal("1.6823086974")
    [focus] = await runs.rows(
        """SELECT COUNT(*) AS n, SUM(t.BilledCost) AS billed, SUM(t.EffectiveCost) AS effective,
          COUNTIF(t.ChargeCategory = 'Tax') AS taxes FROM focus_cost_and_usage AS t"""
    )
    assert (focus["n"], focus["taxes"]) == (1281, 12)
    assert focus["billed"] == focus["effective"]
    assert round(focus["billed"], 6) == Decimal("1.682309")
    # Generated, in two files of one delivery, months apart from the first, by an assumed role.
    lines = sample_made().splitlines(keepends=True)
    halves = [b"".join(lines[:200]), lines[0] + b"".join(lines[200:])]
    bucket.deliver_legacy(
        {f"cur-{n}.csv.gz": gzip.compress(half) for n, half in enumerate(halves)}, period="20251101-20251201"
    )
    assert await published(runs, bucket, secret=lambda: ROLE) == set()
    assert await total(runs) == column_sum(sample_made()) + column_sum(sample_legacy())
    [stored] = await runs.rows(
        """SELECT t.product, t.resource_tags, t.cost_category, t.product_region_code AS region
        FROM aws_cost_billing AS t WHERE t.resource_tags IS NOT NULL AND t.usage_date > '2025-11-01'
        ORDER BY t.usage_date, t.identity_line_item_id LIMIT 1"""
    )
    assert stored["product"]["transfer_type"].startswith("InterRegion")
    assert stored["region"] == stored["product"]["region"]
    assert all(key.startswith(("user:", "aws:")) for key in stored["resource_tags"])


async def test_every_kind_of_charge_of_cur_2(runs: AwsRuns, bucket: Bucket) -> None:
    rows = [{**item, "brand_new_column": "n"} for item in ROWS]
    zipped = gzip.compress(exported(rows[1::2]))
    bucket.deliver({"cur2-00001.parquet": as_parquet(rows[::2]), "cur2-00002.csv.gz": zipped})
    assert await published(runs, bucket) == {"dates_inside_billing_period", "schema_known"}
    assert await total(runs) == sum(Decimal(str(item["line_item_unblended_cost"])) for item in ROWS)
    [extra] = await runs.rows(
        "SELECT MIN(JSON_VALUE(t.source_extra, '$.brand_new_column')) AS x FROM aws_cost_billing AS t"
    )
    assert extra["x"] == "n"
    found = {
        (
            item["ChargeDescription"] if item["x_RowKind"] == "CHARGE" else f"unused {item['CommitmentDiscountType']}"
        ): item
        for item in await runs.rows("SELECT t.* EXCEPT (SkuPriceDetails) FROM focus_cost_and_usage AS t")
    }
    assert len(found) == len(ROWS) - 1 + 2

    def said(name: str, /, **expected: Any) -> Mapping[str, Any]:
        money = {"BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "ListUnitPrice", "ContractedUnitPrice"}
        wanted = {
            key: Decimal(value) if key in money and value is not None else value for key, value in expected.items()
        }
        assert {key: found[name][key] for key in wanted} == wanted
        return found[name]

    plain = said("on demand", BilledCost="0.096", EffectiveCost="0.096", ListCost="0.096", ContractedCost="0.096",
         ListUnitPrice="0.096", PricingCategory="Standard", ConsumedUnit="Hours", ServiceCategory="Compute",
         ServiceName="Amazon Elastic Compute Cloud", ServiceSubcategory="Virtual Machines", SkuId="SKU1",
         RegionName="US East (N. Virginia)", ResourceName="web-1", ResourceType="instance", SubAccountName="Shop",
         BillingAccountName="Payer", x_ServiceCode="AmazonEC2")  # fmt: skip
    assert plain["Tags"] == {"Name": "web-1", "aws:createdBy": "me", "note": 'a "quote", and more'}
    said("spot", PricingCategory="Dynamic")
    said("covered by plan", BilledCost="0", EffectiveCost="1.5", ListCost="2.5", CommitmentDiscountStatus="Used",
         CommitmentDiscountId=PLAN, CommitmentDiscountCategory="Spend", CommitmentDiscountUnit="USD",
         PricingCategory="Committed", CommitmentDiscountQuantity=1.5)  # fmt: skip
    said("SavingsPlanRecurringFee", BilledCost="2", EffectiveCost="0", ChargeCategory="Purchase", ResourceId=PLAN,
         ChargeFrequency="Recurring", PricingCategory="Standard")  # fmt: skip
    said("unused Savings Plan", BilledCost="0", EffectiveCost="0.5", CommitmentDiscountStatus="Unused",
         ChargeCategory="Usage", ConsumedQuantity=None)  # fmt: skip
    said("covered by reservation", BilledCost="0", EffectiveCost="10.5", CommitmentDiscountId=RESERVATION,
         CommitmentDiscountCategory="Usage", CommitmentDiscountQuantity=75.0, ListCost="7.2")  # fmt: skip
    said("RIFee", BilledCost="4", EffectiveCost="0", ChargeCategory="Purchase", ResourceId=RESERVATION)
    said("upfront", BilledCost="10", EffectiveCost="0", ChargeFrequency="One-Time", ResourceId=RESERVATION)
    said("unused Reserved Instance", BilledCost="0", EffectiveCost="3.5", CommitmentDiscountQuantity=25.0)
    said("Tax", ChargeCategory="Tax", SkuId=None, PricingQuantity=None, PricingCategory=None, BilledCost="0.21")
    said("Credit", ChargeCategory="Credit", BilledCost="-1.25", ChargeFrequency="One-Time")
    said("Refund", ChargeCategory="Usage", ChargeClass="Correction", BilledCost="-0.5")
    said("marketplace", PublisherName="MongoDB, Inc.", ServiceProviderName="MongoDB, Inc.", ServiceCategory="Other",
         ServiceName="MongoDB Atlas", BilledCost="3.3", RegionId=None, ResourceId=None)  # fmt: skip
    late = said("late", x_ChargeDate=FIRST, x_InvoiceMonth="202511")
    assert late["ChargePeriodStart"].day == 31 and "x_ChargeDate" in late["x_SourceChanges"]
    said("yuan", BillingCurrency="CNY")
    # Bought and spread are equal here; what is billed is the sum of all line items, negations included.
    [sums] = await runs.rows(
        "SELECT SUM(t.BilledCost) AS billed, SUM(t.EffectiveCost) AS effective FROM focus_cost_and_usage AS t"
    )
    assert sums["billed"] == sums["effective"] == await total(runs)


async def test_net_costs_hold_discounts_once(runs: AwsRuns, bucket: Bucket) -> None:
    discounted = row(line_item_net_unblended_cost=0.09, discount={"EdpDiscount": "-0.006"})
    edp = row(
        line_item_line_item_type="EdpDiscount", line_item_unblended_cost=-0.006, line_item_net_unblended_cost=None,
        line_item_line_item_description="edp", product_sku="",
    )  # fmt: skip
    bucket.deliver({"a.parquet": as_parquet([discounted, edp])})
    assert await published(runs, bucket) == set()
    found = await runs.rows(
        "SELECT t.BilledCost AS billed, t.x_Discounts AS x FROM focus_cost_and_usage AS t ORDER BY t.BilledCost DESC"
    )
    assert [item["billed"] for item in found] == [Decimal("0.09"), Decimal(0)]
    assert found[0]["x"] == {"EdpDiscount": "-0.006"}


async def test_the_newest_delivery_replaces_its_month_and_other_months_stay(runs: AwsRuns, bucket: Bucket) -> None:
    day = {"start": ROWS[0]["line_item_usage_start_date"].replace(day=18)}
    bucket.deliver({"a.parquet": as_parquet([row(), row(**day, line_item_unblended_cost=2.0)])}, execution="z1")
    october = row(start=ROWS[0]["line_item_usage_start_date"].replace(month=10), line_item_unblended_cost=1.0)
    bucket.deliver({"a.parquet": as_parquet([october])}, month="2025-10", execution="z1")
    await published(runs, bucket, first=date(2025, 10, 1))
    assert await total(runs) == Decimal("3.096")
    # Issued anew: a day is gone, another has changed. Older files are still there, and its folder has no age.
    bucket.deliver({"a.csv": exported([row(line_item_unblended_cost="0.5")])}, execution="a2")
    bucket.client.copy_object(  # touched last, so that it is the newest even where times have whole seconds
        Bucket=bucket.name, Key="costs/cur2/metadata/BILLING_PERIOD=2025-11/a3/cur2-Manifest.json",
        CopySource={"Bucket": bucket.name, "Key": "costs/cur2/metadata/BILLING_PERIOD=2025-11/a2/cur2-Manifest.json"},
    )  # fmt: skip
    bucket.client.delete_object(
        Bucket=bucket.name, Key="costs/cur2/metadata/BILLING_PERIOD=2025-11/z1/cur2-Manifest.json"
    )
    await published(runs, bucket)
    stored = await runs.rows(
        "SELECT t.usage_date, t.line_item_unblended_cost AS cost FROM aws_cost_billing AS t ORDER BY t.usage_date"
    )
    assert [(item["usage_date"].month, item["cost"]) for item in stored] == [(10, Decimal(1)), (11, Decimal("0.5"))]
    # One day of a month leaves the others alone; a day without rows is no data.
    await published(runs, bucket, first=date(2025, 11, 17), last=date(2025, 11, 17))
    assert await total(runs) == Decimal("1.5")
    result, _ = await run(runs, bucket, first=date(2025, 11, 20))
    assert result.outcome is Outcome.NO_DATA


async def test_rows_that_break_a_rule_are_kept_apart_until_they_are_delivered_well(
    runs: AwsRuns, bucket: Bucket
) -> None:
    in_october = ROWS[0]["line_item_usage_start_date"].replace(month=10)
    bad = {
        "no usage date": {"line_item_usage_start_date": ""},
        "no cost": {"line_item_unblended_cost": ""},
        "no payer account": {"bill_payer_account_id": ""},
        "no line item type; no currency": {"line_item_line_item_type": "", "line_item_currency_code": ""},
        "a currency that is not of ISO 4217": {"line_item_currency_code": "BTC"},
    }
    october = [row(start=in_october), row(start=in_october.replace(day=3))]
    bucket.deliver({"a.csv": exported(october)}, month="2025-10", execution="z1")
    november = [*[row()] * 8, *(row(**changes) for changes in bad.values())]
    bucket.deliver({"a.csv": exported(november)}, execution="z1")
    assert await published(runs, bucket, first=date(2025, 10, 1)) == {"rows_quarantined", "cost_quarantined"}
    assert await total(runs) == 10 * Decimal("0.096")
    kept = await runs.rows("SELECT q.usage_date, q.delivery, q.cost, q.reason FROM x_quarantine AS q ORDER BY q.reason")
    assert {item["reason"] for item in kept} == set(bad)
    assert {(item["usage_date"].day, item["cost"]) for item in kept} == {
        (1, Decimal("0.096")), (17, None), (17, Decimal("0.096"))
    }  # fmt: skip
    # November is delivered well, October without its second day and with nothing that may be published.
    bucket.deliver({"a.csv": exported([row()] * 13)}, execution="z2")
    bucket.deliver(
        {"a.csv": exported([row(start=in_october, bill_payer_account_id="")])}, month="2025-10", execution="z2"
    )
    await published(runs, bucket, first=date(2025, 10, 1))
    assert await total(runs) == 13 * Decimal("0.096")
    [focus] = await runs.rows("SELECT SUM(t.BilledCost) AS billed FROM focus_cost_and_usage AS t")
    assert focus["billed"] == 13 * Decimal("0.096")
    kept = await runs.rows("SELECT q.usage_date, q.reason FROM x_quarantine AS q")
    assert kept == [{"usage_date": in_october.date(), "reason": "no payer account"}]


UNREADABLE: Sequence[tuple[str, Mapping[str, bytes]]] = [
    (
        "SOURCE_COLUMNS_MISSING",
        {"renamed.csv.gz": gzip.compress(exported([row()]).replace(b"unblended_cost", b"kosten"))},
    ),
    ("SOURCE_FILE_DAMAGED", {"truncated.csv.gz": gzip.compress(exported([row()] * 500), mtime=0)[:-40]}),
    ("SOURCE_VALUE_INVALID", {"no_number.csv": exported([row(line_item_unblended_cost="1,50")])}),
    ("SOURCE_VALUE_INVALID", {"no_date.csv": exported([row(line_item_usage_end_date="soon")])}),
    ("SOURCE_FILE_DAMAGED", {"damaged.parquet": b"PAR1 no more"}),
    ("DELIVERY_INVALID", {"packed.csv.zip": b"PK"}),
]


async def test_a_delivery_that_is_incomplete_changing_or_unreadable_is_said_and_changes_nothing(
    runs: AwsRuns, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"a.parquet": as_parquet([row()]), "b.parquet": as_parquet([row(line_item_unblended_cost=9.0)])}
    manifest = bucket.deliver(parts, leave_out=["b.parquet"])
    error = await refused(runs, bucket, "DELIVERY_INCOMPLETE")
    assert error.retryable and "1 of 2 files are missing (b.parquet)" in error.message
    bucket.deliver(parts)
    three = {**parts, "c.parquet": parts["b.parquet"]}  # the third is not asked for while the first is decoded
    decode = provider._decode
    count = 0

    def rewrite(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 1:
            bucket.put(manifest, json.dumps({"dataFiles": [], "executionId": "next"}).encode())
        elif count == 3:
            bucket.deliver(dict.fromkeys(three, parts["a.parquet"]))
        decode(*args)

    monkeypatch.setattr(provider, "_decode", rewrite)
    # The first try finds another manifest at its end; the second finds that it names nothing.
    result, _ = await run(runs, bucket)
    assert (result.outcome, count, result.steps[0].tries) == (Outcome.NO_DATA, 2, 2)
    bucket.deliver(three)
    # Files replaced in mid-read are not mixed in: the next try reads the delivery that came meanwhile.
    result, _ = await run(runs, bucket)
    assert (result.outcome, result.steps[0].tries) == (Outcome.PUBLISHED, 2)
    assert await total(runs) == Decimal("0.288")
    # Nor is a row of it changed by what comes next and cannot be read.
    async with unchanged(runs):
        for reason, unreadable in UNREADABLE:
            bucket.deliver(unreadable)
            error = await refused(runs, bucket, reason)
            assert next(iter(unreadable)) in error.message


async def test_credentials_and_places_that_do_not_serve(runs: AwsRuns, bucket: Bucket) -> None:
    bucket.deliver({"a.parquet": as_parquet([row()])})
    async with unchanged(runs):
        await refused(runs, bucket, "CREDENTIAL_UNUSABLE", secret=lambda: {"access_key_id": "x"})
        await refused(runs, bucket, "SOURCE_NOT_FOUND", source={"bucket": "nothere-0001"})
        await refused(runs, bucket, "SOURCE_NOT_FOUND", source={"prefix": "other"})
        await refused(runs, bucket, "SOURCE_NOT_FOUND", source={"export_name": "other"})
        await refused(runs, bucket, "SOURCE_INVALID", source_endpoints=SourceEndpoints())
        bucket.deliver({"a.parquet": as_parquet([row()])}, export="second")
        bucket.deliver({"a.csv": b"BilledCost\n"}, export="standard", columns=["BilledCost"])
        error = await refused(runs, bucket, "SOURCE_AMBIGUOUS")
        assert error.metadata["candidates"] == "costs/cur2,costs/second"
    assert await published(runs, bucket, source={"export_name": "second"}) == set()
