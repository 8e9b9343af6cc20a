"""{aws,azure,gcp}/cost/focus: the clouds' own FOCUS exports → the tenant's tables on the emulator, holes mended."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from libs import errors, tables
from libs.bigquery import Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.domain import StepStatus
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.run_context import Outcome, RunContext, SourceEndpoints
from services.pipeline_executor.templates import Pipeline, Templates
from tests.conftest import Emulator
from tests.support import aws_rows, focus_rows
from tests.support.aws import AwsRuns, Moto, as_parquet, running_moto
from tests.support.aws import exported as aws_exported
from tests.support.azure import AzureRuns, Azurite, exported, running_azurite
from tests.support.billing import Customer, MemoryJournal, TenantRuns

TEMPLATES = Templates.load()
ACME = TenantId("acme")
FIRST, LAST = date(2025, 11, 1), date(2025, 11, 30)
MONEY = {"BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "ListUnitPrice", "ContractedUnitPrice"}


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with running_moto(tmp_path_factory.mktemp("moto")) as made:
        yield made


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as made:
        yield made


@pytest.fixture(scope="module")
def tables_of_all(warehouse: Warehouse) -> TenantId:
    """A tenant with the tables of all three clouds."""

    async def prepare() -> None:
        await warehouse.create_dataset(ACME)
        for provider in ("aws", "azure", "gcp"):
            schemas = [*tables.group("x_meta"), *tables.of_provider(provider)]
            await warehouse.ensure_tables(ACME, schemas, tables.views(provider))

    asyncio.run(prepare())
    return ACME


@pytest.fixture
def acme(tables_of_all: TenantId, warehouse: Warehouse) -> TenantId:
    """The tenant, without a row of AWS."""
    for table, column in (
        ("focus_cost_and_usage", "x_Provider"), ("aws_cost_billing", "usage_date"), ("aws_cost_focus", "usage_date"),
        ("x_quarantine", "provider"), ("x_meta_pipeline_runs", "provider"),
    ):  # fmt: skip
        given = "IS NOT NULL" if column == "usage_date" else "= 'aws'"
        warehouse.client.query(f"DELETE FROM acme.{table} AS t WHERE t.{column} {given}").result()
    return tables_of_all


@pytest.fixture(scope="module")
def endpoints(bigquery_emulator: Emulator) -> SourceEndpoints:
    return SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)


async def run(pipeline: str, context: RunContext) -> set[str]:
    """Runs it; the names of the checks that warned."""
    result = await Engine().run(TEMPLATES.get(*pipeline.split("/")), context)
    assert result.outcome is Outcome.PUBLISHED
    assert isinstance(context.journal, MemoryJournal)
    return context.journal.failed()


async def charges(runs: AwsRuns | AzureRuns | TenantRuns, provider: str) -> Mapping[str, Mapping[str, Any]]:
    """The published charges by their description."""
    found = await runs.rows(
        f"SELECT t.* EXCEPT (SkuPriceDetails) FROM focus_cost_and_usage AS t WHERE t.x_Provider = '{provider}'"
    )
    return {item["ChargeDescription"]: item for item in found}


def said(found: Mapping[str, Any], *changes: str, **expected: Any) -> None:
    wanted = {
        name: Decimal(value) if name in MONEY and value is not None else value for name, value in expected.items()
    }
    assert {name: found[name] for name in wanted} == wanted
    for change in changes:
        assert change in (found["x_SourceChanges"] or "")


async def test_aws(
    acme: TenantId,
    warehouse: Warehouse,
    moto: Moto,
    endpoints: SourceEndpoints,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runs = AwsRuns(warehouse, acme, endpoints, tmp_path_factory.mktemp("staging"), template="focus")
    bucket = moto.bucket()
    rows = [{**item, "BrandNew": "n"} for item in focus_rows.AWS]
    parts = {
        "focus-00001.parquet": as_parquet(rows[::2]),
        "focus-00002.csv.gz": gzip.compress(aws_exported(rows[1::2])),
    }
    bucket.deliver(parts, export="focus", columns=list(rows[0]))
    bucket.deliver({"cur.parquet": as_parquet([aws_rows.row()])}, columns=["line_item_unblended_cost"])
    context = await runs.begin(bucket.source(), FIRST, LAST)
    assert await run("aws/cost/focus", context) == {"dates_inside_billing_period", "schema_known"}
    assert isinstance(context.journal, MemoryJournal)
    details = next(event.details for event in context.journal.events if event.step_name == "extract" and event.details)
    assert details["extra_columns"] == ["BrandNew"]
    [raw] = await runs.rows(
        """SELECT COUNT(*) AS n, SUM(t.BilledCost) AS billed, MIN(JSON_VALUE(t.source_extra, '$.BrandNew')) AS new
        FROM aws_cost_focus AS t"""
    )
    assert raw == {"n": 10, "billed": sum(Decimal(str(item["BilledCost"])) for item in rows), "new": "n"}
    found = await charges(runs, "aws")
    assert len(found) == len(focus_rows.AWS)
    plain = found["on demand"]
    said(plain, BilledCost="0.096", ListCost="0.1", ServiceName="Amazon Elastic Compute Cloud", ResourceName="i-0abc",
         ResourceType="instance", x_Operation="RunInstances", x_ServiceCode="AmazonEC2",
         x_SourceTemplate="aws/cost/focus", x_Discounts={"Edp": "-0.004"},
         x_CostCategories={"Team": "web"}, x_InvoiceMonth="202511")  # fmt: skip
    assert plain["Tags"] == {"team": "web", "note": 'a "quote", and more'}
    said(found["covered"], BilledCost="0", EffectiveCost="1.5", CommitmentDiscountStatus="Used",
         CommitmentDiscountUnit="USD", CommitmentDiscountName="cccc-dddd", PricingCategory="Committed",
         ContractedCost="2.5")  # fmt: skip
    said(found["left"], "CommitmentDiscountQuantity from cost", CommitmentDiscountStatus="Unused", EffectiveCost="0.5",
         ContractedCost="0", ConsumedQuantity=None, CommitmentDiscountQuantity=0.5)  # fmt: skip
    said(found["plan"], EffectiveCost="0", BilledCost="2", CommitmentDiscountStatus=None, ChargeFrequency="Recurring",
         PricingQuantity=1.0, ServiceSubcategory="Other (Compute)", PricingCategory="Standard")  # fmt: skip
    said(found["Tax"], "no SKU", SkuId=None, PricingQuantity=None, PricingCategory=None, InvoiceIssuerName="AWS")
    said(found["priceless"], "SkuId from", "PublisherName from", PricingUnit="Hours", ContractedUnitPrice="0.096",
         SkuId="BoxUsage:m5.large", PublisherName="AWS")  # fmt: skip
    said(found["late"], "x_ChargeDate inside", x_ChargeDate=FIRST)
    said(found["refund"], ChargeClass="Correction", BilledCost="-0.5")
    assert {item["x_SourceTemplate"] for item in found.values()} == {"aws/cost/focus"}


async def test_two_templates_of_one_provider_do_not_count_an_account_twice(
    acme: TenantId,
    warehouse: Warehouse,
    moto: Moto,
    endpoints: SourceEndpoints,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runs = AwsRuns(warehouse, acme, endpoints, tmp_path_factory.mktemp("staging"), template="focus")
    report = AwsRuns(warehouse, acme, endpoints, tmp_path_factory.mktemp("staging"))
    bucket = moto.bucket()
    other = focus_rows.row(BillingAccountId="999999999999", ChargeDescription="other payer")
    bad = aws_rows.row(line_item_line_item_type=None)
    bucket.deliver({"a.parquet": as_parquet([aws_rows.row(), bad])}, columns=["line_item_unblended_cost"])
    bucket.deliver({"b.parquet": as_parquet([other])}, export="focus", columns=["BilledCost"])

    async def shown() -> list[tuple[str, str]]:
        found = await runs.rows(
            """SELECT t.x_SourceTemplate AS template, t.ChargeDescription AS what FROM focus_cost_and_usage AS t
            WHERE t.x_Provider = 'aws'
            ORDER BY t.x_SourceTemplate, t.ChargeDescription"""
        )
        return [(item["template"].rpartition("/")[2], item["what"]) for item in found]

    # Of different payers they stand beside each other, and running one again leaves the other's rows alone.
    await run("aws/cost/focus", await runs.begin(bucket.source(), FIRST, LAST))
    await run("aws/cost/billing", await report.begin(bucket.source(), FIRST, LAST))
    assert await shown() == [("billing", "on demand"), ("focus", "other payer")]
    await run("aws/cost/focus", await runs.begin(bucket.source(), FIRST, LAST))
    assert await shown() == [("billing", "on demand"), ("focus", "other payer")]
    # Of the same payer the second is refused, whole: neither table nor run row says that it was published.
    rows = [focus_rows.row(), focus_rows.row(ChargeCategory=None)]
    bucket.deliver({"b.parquet": as_parquet(rows)}, export="focus", columns=["BilledCost"])
    context = await runs.begin(bucket.source(), FIRST, LAST)
    with pytest.raises(errors.FailedPrecondition) as refused:
        await run("aws/cost/focus", context)
    assert refused.value.reason == "COST_COUNTED_TWICE" and "parameters.take_over" in refused.value.message
    [row] = await runs.rows(
        f"""SELECT r.status FROM x_meta_pipeline_runs AS r
        WHERE r.pipeline_logging_id = '{context.pipeline_logging_id}'"""
    )
    assert row["status"] == "RUNNING"
    assert await shown() == [("billing", "on demand"), ("focus", "other payer")]
    quarantine = "SELECT q.template, q.reason FROM x_quarantine AS q"
    assert await runs.rows(quarantine) == [{"template": "aws/cost/billing", "reason": "no line item type"}]
    # Unless it is told to take the account over; what the other one has published as its own source stays.
    await run("aws/cost/focus", await runs.begin(bucket.source(), FIRST, LAST, parameters={"take_over": True}))
    assert await shown() == [("focus", "on demand")]
    [kept] = await runs.rows("SELECT COUNT(*) AS n FROM aws_cost_billing AS t")
    assert kept["n"] == 1
    assert await runs.rows(quarantine) == [{"template": "aws/cost/focus", "reason": "no ChargeCategory"}]


async def test_azure(
    acme: TenantId,
    warehouse: Warehouse,
    azurite: Azurite,
    endpoints: SourceEndpoints,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runs = AzureRuns(warehouse, acme, endpoints, tmp_path_factory.mktemp("staging"), template="focus")
    storage = azurite.container()
    halves = focus_rows.AZURE[::2], focus_rows.AZURE[1::2]
    parts = {
        "part_0_0001.csv": exported([focus_rows.as_text(item) for item in halves[0]]),
        "part_0_0002.parquet": as_parquet(halves[1]),
    }
    storage.deliver(parts, export="focus-cost", kind="FocusCost", rows=[len(half) for half in halves])
    storage.deliver({"part_0_0001.csv": b"x\n"})
    context = await runs.begin(storage.source(), FIRST, LAST)
    assert await run("azure/cost/focus", context) == {"dates_inside_billing_period"}
    assert isinstance(context.journal, MemoryJournal)
    details = next(event.details for event in context.journal.events if event.step_name == "extract" and event.details)
    assert details["extra_columns"] == []
    [raw] = await runs.rows(
        """SELECT COUNT(*) AS n, SUM(t.EffectiveCost) AS effective,
          MIN(JSON_VALUE(t.source_extra, '$.x_InvoiceSectionName')) AS section FROM azure_cost_focus AS t"""
    )
    expected = sum(Decimal(str(item["EffectiveCost"])) for item in focus_rows.AZURE)
    assert raw == {"n": len(focus_rows.AZURE), "effective": expected, "section": "IT"}
    found = await charges(runs, "azure")
    said(found["on demand"], BilledCost="0.096", ResourceType="Virtual machine", x_ChargeDate=date(2025, 11, 17))
    assert found["on demand"]["Tags"]["note"] == 'a "quote", and more'
    said(found["covered"], "ContractedCost from", "ListCost from", ContractedCost="7.5", ListCost="7.5", BilledCost="0",
         CommitmentDiscountStatus="Used", CommitmentDiscountQuantity=1.0, CommitmentDiscountUnit="Hours")  # fmt: skip
    said(found["left"], ContractedCost="0", CommitmentDiscountStatus="Unused", EffectiveCost="2.5")
    said(found["bought"], "ServiceName from", "InvoiceId from", InvoiceId="G1", ServiceName="Reservation",
         ContractedCost="10", ServiceCategory="Other", EffectiveCost="0", ResourceName="r1")  # fmt: skip
    said(found["marketplace"], "ServiceCategory of the service", ServiceName="MongoDB", ServiceCategory="Other",
         ServiceProviderName="MongoDB", ContractedCost="0.096")  # fmt: skip
    said(found["late"], "x_ChargeDate inside", x_ChargeDate=FIRST)
    said(found["euro"], x_CurrencyConversionRate=0.9, PricingCurrencyEffectiveCost=Decimal("0.1"))


async def test_google(
    acme: TenantId, warehouse: Warehouse, endpoints: SourceEndpoints, tmp_path_factory: pytest.TempPathFactory
) -> None:
    customer = Customer(build_client("focus-customer", endpoint=endpoints.bigquery))
    runs = TenantRuns(warehouse, acme, customer, endpoints, tmp_path_factory.mktemp("staging"))
    focus_rows.export_google(customer)
    context = await runs.begin(date(2025, 11, 17), date(2025, 11, 17))
    assert await run("gcp/cost/focus", context) == set()
    raw = await runs.rows(
        """SELECT t.BillingCurrency AS currency, SUM(t.BilledCost) AS billed FROM gcp_cost_focus AS t
        GROUP BY 1 ORDER BY 1"""
    )
    assert raw == [
        {"currency": "EUR", "billed": Decimal("0.123456789")},
        {"currency": "USD", "billed": Decimal("0.392")},
    ]
    found = await charges(runs, "gcp")
    assert sorted(found) == ["euro", "first form", "on demand", "tax"]
    said(found["on demand"], BilledCost="0.096", BillingAccountName="0A1B2C-3D4E5F-678901", SubAccountType="Project",
         Tags={"team": "web"}, x_ExportTime=datetime(2025, 11, 18, 3, tzinfo=UTC), x_CostType="regular",
         x_InvoiceMonth="202511")  # fmt: skip
    assert found["on demand"]["x_Credits"][0]["type"] == "PROMOTION"
    said(found["first form"], "ChargeCategory as FOCUS writes it", "BillingPeriodEnd exclusive", "ServiceCategory of",
         ChargeCategory="Usage", ChargeFrequency="Usage-Based", ServiceCategory="Compute",
         BillingPeriodEnd=datetime(2025, 12, 1, 8, tzinfo=UTC))  # fmt: skip
    said(found["tax"], "no SKU", SkuId=None)
    # A row that came later, under the day of its charge.
    await run("gcp/cost/focus", await runs.begin(date(2025, 11, 17), date(2025, 11, 18)))
    assert len(await charges(runs, "gcp")) == 5
    customer.client.close()


async def test_what_stands_published_is_not_read_again_and_drift_is_reported_refused_or_dropped(
    acme: TenantId,
    warehouse: Warehouse,
    moto: Moto,
    endpoints: SourceEndpoints,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runs = AwsRuns(warehouse, acme, endpoints, tmp_path_factory.mktemp("staging"), template="focus")
    bucket = moto.bucket()
    pipeline = TEMPLATES.get("aws", "cost", "focus")

    async def ran(template: Pipeline = pipeline, **parameters: Any) -> tuple[RunResult, MemoryJournal]:
        context = await runs.begin(bucket.source(), FIRST, LAST, parameters=parameters)
        assert isinstance(context.journal, MemoryJournal)
        return await Engine().run(template, context), context.journal

    bucket.deliver({"a.parquet": as_parquet([focus_rows.row()])}, export="focus")
    first, journal = await ran()
    assert first.outcome is Outcome.PUBLISHED and journal.failed() == set()
    # Nothing was written anew: one look at the manifest, and it says which run stands.
    second, journal = await ran()
    assert (second.outcome, second.rows_published) == (Outcome.UNCHANGED, 0)
    [published] = await runs.rows(
        "SELECT DISTINCT t.x_PipelineLoggingId AS run FROM focus_cost_and_usage AS t WHERE t.x_Provider = 'aws'"
    )
    assert second.steps[0].details["unchanged_since"] == published["run"]
    assert {step.status for step in second.steps[1:]} == {StepStatus.SKIPPED}
    changed = replace(pipeline, revision="another text of the template")
    assert (await ran(changed))[0].outcome is Outcome.PUBLISHED
    # The same rows delivered anew, with a column nobody knows.
    bucket.deliver({"a.parquet": as_parquet([{**focus_rows.row(), "Surprise": "!"}])}, export="focus")
    third, journal = await ran()
    assert third.outcome is Outcome.PUBLISHED and journal.failed() == {"schema_known"}
    [drift] = [result for result in journal.results if result.check_name == "schema_known"]
    assert (drift.severity, drift.status, drift.actual) == ("WARNING", "WARN", "Surprise")
    assert third.steps[0].details["extra_columns"] == ["Surprise"]

    async def kept() -> list[Any]:
        found = await runs.rows("SELECT JSON_VALUE(t.source_extra, '$.Surprise') AS x FROM aws_cost_focus AS t")
        return [item["x"] for item in found]

    def with_drift(policy: str) -> Pipeline:
        config = pipeline.steps[0].config.model_copy(update={"schema_drift": policy})
        return replace(pipeline, steps=(replace(pipeline.steps[0], config=config), *pipeline.steps[1:]))

    assert await kept() == ["!"]
    with pytest.raises(errors.FailedPrecondition) as refused:
        await ran(with_drift("freeze"), force=True)
    assert (refused.value.reason, refused.value.metadata["columns"]) == ("SCHEMA_DRIFT", "Surprise")
    assert await kept() == ["!"]
    # Delivered as before, and still published: it was told to.
    forced, journal = await ran(with_drift("discard"), force=True)
    assert forced.outcome is Outcome.PUBLISHED
    assert journal.failed() == {"schema_known"} and await kept() == [None]
