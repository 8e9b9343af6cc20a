"""gcp/cost/billing in FOCUS columns: one worked example for each rule of the mapping that is this project's own reading
of the specification, then replacement, views, and the questions users ask of the table.

All examples are rows of one export, each in a billing account and project named after it, so that commitments of one
cannot meet usage of another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from libs import tables
from libs.bigquery import Warehouse, build_client
from libs.errors import NotFound
from libs.tenancy import TenantId
from services.pipeline_executor.cost_store import BigQueryCostStore
from services.pipeline_executor.costs import Cost, CostQuestion, CostRequest, Costs
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.run_context import Outcome, RunContext, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.billing import Customer, MemoryJournal, TenantRuns, row, schema

PIPELINE = Templates.load().get("gcp", "cost", "billing")
ACME = TenantId("acme")
FEE = {"id": "FEE", "description": "Commitment v1: Cpu in Americas for 1 Year"}
NUMBERS = {"BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "ListUnitPrice", "ContractedUnitPrice"}
PRICE = {"list_price": "0.5", "effective_price": "0.45", "effective_price_default": "0.4", "tier_start_amount": "10"}


def credit(amount: float, kind: str, /, **changes: Any) -> dict[str, Any]:
    return {"id": f"id-{kind}", "full_name": f"Full {kind}", "type": kind, "name": kind, "amount": amount, **changes}


def case(name: str, /, **changes: Any) -> dict[str, Any]:
    project = {"id": name, "number": "1", "name": name.title()}
    return row(**{"billing_account_id": name, "project": project, "labels": [], **changes})


CUD, CUD_SPEND, OFFSET = "COMMITTED_USAGE_DISCOUNT", "COMMITTED_USAGE_DISCOUNT_DOLLAR_BASE", "FEE_UTILIZATION_OFFSET"
PROMOTED = ((-0.6, "PROMOTION"), (-0.1, "DISCOUNT"), (-0.2, "PROMOTION"))
EXPORT: list[dict[str, Any]] = [
    case("plain", cost=1.0, price=PRICE, cost_at_list=1.25, cost_at_effective_price_default="1.125"),
    case("discount", cost=1.0, credits=[credit(-0.25, "SUSTAINED_USAGE_DISCOUNT"), credit(-0.05, "RESELLER_MARGIN")]),
    case("promotion", cost=1.0, credits=[credit(amount, kind) for amount, kind in PROMOTED]),
    case("tax", cost=0.2, cost_type="tax", sku={"id": "TAX", "description": "Tax"}, project=None, price=PRICE),
    case("rounding", cost=-0.003, cost_type="rounding error", project=None),
    case(
        "goodwill",
        cost=-0.5,
        cost_type="adjustment",
        invoice={"month": "202512"},
        adjustment_info={"type": "GOODWILL", "description": "Sorry"},
    ),
    case("late", cost=-2.0, invoice={"month": "202512"}, adjustment_info={"type": "USAGE_CORRECTION"}),
    case("in-period", cost=-2.0, adjustment_info={"type": "USAGE_CORRECTION"}),
    # A fee of 1.00 that two rows of covered usage bear three to one, and one that is not covered does not.
    case("legacy", cost=1.0, sku=FEE, subscription={"instance_id": "sub-9"}),
    case("legacy", cost=0.9, credits=[credit(-0.9, CUD)], usage_start_time="2025-11-17T01:00:00Z"),
    case("legacy", cost=0.3, credits=[credit(-0.3, CUD)], usage_start_time="2025-11-17T02:00:00Z"),
    case("legacy", cost=0.7, usage_start_time="2025-11-17T03:00:00Z"),
    case("thirds", cost=0.01, sku=FEE),
    *(case("thirds", cost=1.0, credits=[credit(-1.0, CUD_SPEND)], resource={"name": str(n)}) for n in range(3)),
    case("unused", cost=1.5, sku=FEE, usage=None),
    # The newer model: usage is billed at the commitment's price, and the fee is offset as far as it was used.
    case("offset", cost=10.0, sku=FEE, credits=[credit(-8.0, OFFSET)], subscription={"instance_id": "sub-8"}),
    case(
        "offset",
        cost=8.0,
        subscription={"instance_id": "sub-8"},
        consumption_model={"id": "CM-3", "description": "CUD 3 years"},
    ),
    case("default-model", cost=1.0, consumption_model={"id": "7754-699E-0EBF", "description": "Default"}),
    case("spot", cost=0.1, sku={"id": "S", "description": "Spot Preemptible N2 Core"}),
    case("seller", cost=1.0, transaction_type="THIRD_PARTY_RESELLER", seller_name="MongoDB Inc."),
    case("euro", cost=1.84, currency="EUR", currency_conversion_rate=0.92, price=PRICE),
    case("global", cost=1.0, location={"location": "global"}, service={"id": "X", "description": "Nobody Knows It"}),
    case("resource", cost=1.0, resource={"name": "vm-1", "global_name": "//compute.googleapis.com/projects/1/zones/a/instances/7"}),  # noqa: E501
    case("storage", cost=1.0, usage={"amount": 7.0, "unit": "byte-seconds", "amount_in_pricing_units": 2.0, "pricing_unit": "gibibyte month"}),  # noqa: E501
    case("odd-unit", cost=1.0, usage={"amount": 7.0, "unit": "characters", "amount_in_pricing_units": 2.0, "pricing_unit": "thing"}),  # noqa: E501
    case("zero-length", cost=1.0, usage_end_time="2025-11-17T08:00:00Z"),
    case("trademark", cost=1.0, service={"id": "R", "description": "Red Hat® OpenShift®"}),
    case("no-service", cost=1.0, service={"id": "AAAA-BBBB"}),
    case(
        "tags",
        cost=1.0,
        labels=[{"key": "team", "value": "web"}, {"key": "quote", "value": 'a"b\\'}, {"key": "empty", "value": ""}],
        tags=[
            {"key": "env", "value": "inherited", "inherited": True, "namespace": "111"},
            {"key": "env", "value": "direct", "inherited": False, "namespace": "111"},
        ],
        system_labels=[{"key": "compute.googleapis.com/cores", "value": "4"}],
        project={"id": "tags", "number": "1", "name": "Tags", "labels": [{"key": "team", "value": "project's"}]},
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def customer(bigquery_emulator: Emulator, project_id: str) -> Iterator[Customer]:
    client = build_client(f"{project_id}-customer", endpoint=bigquery_emulator.rest)
    yield Customer(client)
    for item in list(client.list_datasets()):
        client.delete_dataset(item.reference, delete_contents=True, not_found_ok=True)
    client.close()


@pytest.fixture(scope="module")
def runs(
    warehouse: Warehouse, customer: Customer, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> TenantRuns:
    """The tenant, with all examples published once."""
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    made = TenantRuns(warehouse, ACME, customer, endpoints, tmp_path_factory.mktemp("staging"))

    async def publish() -> None:
        await made.prepare()
        await run(made)

    asyncio.run(publish())
    return made


async def run(runs: TenantRuns, rows: list[dict[str, Any]] = EXPORT) -> RunContext:
    runs.customer.export(rows, fields=schema(without=()))
    context = await runs.begin()
    result = await Engine().run(PIPELINE, context)
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, len(rows))
    assert isinstance(context.journal, MemoryJournal)
    assert context.journal.failed() <= {"usage_ends_after_start"}
    return context


async def charges(runs: TenantRuns, name: str) -> list[dict[str, Any]]:
    """The rows of one example: charges by their start, then what was split from them."""
    return await runs.rows(
        f"""SELECT t.* FROM focus_cost_and_usage AS t WHERE t.BillingAccountId = '{name}'
        ORDER BY t.x_RowKind, t.ChargePeriodStart, t.ResourceName, t.BilledCost"""
    )


def said(stored: Mapping[str, Any], **expected: Any) -> None:
    shown = {name: stored[name] for name in expected}
    assert shown == {n: Decimal(v) if n in NUMBERS and v is not None else v for n, v in expected.items()}


# ---------------------------------------------------------------------------------------------- one rule each


async def test_prices_and_costs_come_from_the_export_where_it_has_them(runs: TenantRuns) -> None:
    [plain] = await charges(runs, "plain")
    said(
        plain,
        BilledCost="1", EffectiveCost="1", ListCost="1.25", ContractedCost="1.125", ListUnitPrice="0.5",
        ContractedUnitPrice="0.4", ChargeCategory="Usage", ChargeFrequency="Usage-Based", ChargeClass=None,
        PricingCategory="Standard", SkuPriceId="2E27-4F75-95CD/10", x_SourceChanges="BillingAccountName from its id",
        BillingAccountName="plain", x_RowKind="CHARGE",
        BillingAccountType="Billing Account", SubAccountId="plain", SubAccountType="Project", ConsumedUnit="Seconds",
        PricingQuantity=1.0, PricingUnit="Hours", ServiceCategory="Compute", ServiceSubcategory="Virtual Machines",
        SkuPriceDetails={"x_TierStartAmount": "10"}, InvoiceIssuerName="Google Cloud", InvoiceId=None,
    )  # fmt: skip


async def test_without_them_they_are_the_cost_and_that_is_said(runs: TenantRuns) -> None:
    [stored] = await charges(runs, "discount")
    said(stored, BilledCost="0.7", EffectiveCost="0.7", ListCost="1", ContractedCost="1", ListUnitPrice=None)
    assert stored["x_SourceChanges"] == ("BillingAccountName from its id; ListCost from cost; ContractedCost from cost")


async def test_promotions_are_credits_of_their_own_and_other_credits_stay_on_the_row(runs: TenantRuns) -> None:
    charge, *credits = await charges(runs, "promotion")
    said(charge, BilledCost="0.9", EffectiveCost="0.9", ChargeCategory="Usage")
    assert [item["BilledCost"] for item in credits] == [Decimal("-0.6"), Decimal("-0.2")]
    for item in credits:
        said(
            item,
            ChargeCategory="Credit", ChargeFrequency="One-Time", x_RowKind="PROMOTION", PricingCategory=None,
            ConsumedQuantity=None, PricingQuantity=None, ListUnitPrice=None, SkuPriceId=None,
            ServiceName="Compute Engine", SubAccountId="promotion", ChargeDescription="Full PROMOTION",
            EffectiveCost=item["BilledCost"], ListCost=item["BilledCost"], ContractedCost=item["BilledCost"],
        )  # fmt: skip


async def test_tax_is_bare(runs: TenantRuns) -> None:
    [tax] = await charges(runs, "tax")
    said(
        tax,
        BilledCost="0.2", ChargeCategory="Tax", ChargeFrequency="One-Time", SkuId=None, SkuMeter=None, SkuPriceId=None,
        SkuPriceDetails=None, ConsumedQuantity=None, ConsumedUnit=None, PricingQuantity=None, PricingUnit=None,
        ListUnitPrice=None, ContractedUnitPrice=None, PricingCategory=None, SubAccountId=None, SubAccountName=None,
        SubAccountType=None,
    )  # fmt: skip


async def test_adjustments_and_rounding(runs: TenantRuns) -> None:
    [rounding] = await charges(runs, "rounding")
    said(rounding, BilledCost="-0.003", ChargeCategory="Adjustment", ChargeClass=None, ChargeFrequency="One-Time")
    [goodwill] = await charges(runs, "goodwill")
    said(goodwill, BilledCost="-0.5", ChargeCategory="Adjustment", ChargeClass=None, x_InvoiceMonth="202512")


async def test_a_correction_is_one_of_a_period_already_invoiced(runs: TenantRuns) -> None:
    [late] = await charges(runs, "late")
    said(late, ChargeClass="Correction", ChargeCategory="Usage", BilledCost="-2")
    [same] = await charges(runs, "in-period")
    said(same, ChargeClass=None, ChargeCategory="Usage")


async def test_the_billing_period_is_the_invoice_month_in_pacific_time_with_an_exclusive_end(runs: TenantRuns) -> None:
    [late] = await charges(runs, "late")
    assert late["BillingPeriodStart"] == datetime(2025, 12, 1, 8, tzinfo=UTC)
    assert late["BillingPeriodEnd"] == datetime(2026, 1, 1, 8, tzinfo=UTC)
    [plain] = await charges(runs, "plain")
    assert plain["BillingPeriodStart"] == datetime(2025, 11, 1, 7, tzinfo=UTC), "daylight saving time ended on the 2nd"
    assert plain["BillingPeriodEnd"] == datetime(2025, 12, 1, 8, tzinfo=UTC)


async def test_a_legacy_commitments_fee_moves_to_the_usage_it_covers(runs: TenantRuns) -> None:
    most, less, uncovered, fee = await charges(runs, "legacy")
    said(
        fee,
        BilledCost="1", EffectiveCost="0", ChargeCategory="Purchase", ChargeFrequency="Recurring",
        CommitmentDiscountId="sub-9", ResourceId="sub-9", CommitmentDiscountStatus=None, PricingCategory="Standard",
        CommitmentDiscountType="Committed Use Discount",
    )  # fmt: skip
    said(
        most,
        BilledCost="0", EffectiveCost="0.75", CommitmentDiscountStatus="Used", CommitmentDiscountCategory="Usage",
        PricingCategory="Committed", CommitmentDiscountId=f"id-{CUD}", CommitmentDiscountName=f"Full {CUD}",
        CommitmentDiscountQuantity=1.0, CommitmentDiscountUnit="Hours",
    )  # fmt: skip
    assert "CommitmentDiscountId" in most["x_SourceChanges"]
    said(less, BilledCost="0", EffectiveCost="0.25", CommitmentDiscountStatus="Used")
    said(uncovered, BilledCost="0.7", EffectiveCost="0.7", CommitmentDiscountId=None, CommitmentDiscountStatus=None)


async def test_what_cannot_be_split_evenly_is_still_split_exactly(runs: TenantRuns) -> None:
    usage = [item for item in await charges(runs, "thirds") if item["ChargeCategory"] == "Usage"]
    assert sorted(item["EffectiveCost"] for item in usage) == [
        Decimal("0.003333333"),
        Decimal("0.003333333"),
        Decimal("0.003333334"),
    ]
    for item in usage:
        said(item, CommitmentDiscountCategory="Spend", CommitmentDiscountUnit="USD")


async def test_a_fee_that_nothing_used_is_an_unused_row(runs: TenantRuns) -> None:
    fee, unused = await charges(runs, "unused")
    said(fee, BilledCost="1.5", EffectiveCost="0", ChargeCategory="Purchase")
    said(
        unused,
        BilledCost="0", EffectiveCost="1.5", ListCost="0", ContractedCost="0", ChargeCategory="Usage",
        CommitmentDiscountStatus="Unused", CommitmentDiscountId="FEE", x_RowKind="UNUSED", PricingCategory="Committed",
    )  # fmt: skip


async def test_of_an_offset_fee_only_the_leftover_is_unused(runs: TenantRuns) -> None:
    first, second, unused = await charges(runs, "offset")
    fee, usage = sorted((first, second), key=lambda item: item["ChargeCategory"])
    said(fee, BilledCost="2", EffectiveCost="0", ChargeCategory="Purchase", CommitmentDiscountQuantity=10.0)
    said(
        usage,
        BilledCost="8", EffectiveCost="8", ChargeCategory="Usage", CommitmentDiscountStatus="Used",
        CommitmentDiscountCategory="Spend", CommitmentDiscountId="sub-8", PricingCategory="Committed",
    )  # fmt: skip
    said(unused, BilledCost="0", EffectiveCost="2", CommitmentDiscountStatus="Unused", CommitmentDiscountId="sub-8")


async def test_the_default_consumption_model_is_no_commitment(runs: TenantRuns) -> None:
    [stored] = await charges(runs, "default-model")
    said(stored, CommitmentDiscountId=None, CommitmentDiscountCategory=None, PricingCategory="Standard")


async def test_spot_is_dynamic_and_a_marketplace_seller_is_the_service_provider(runs: TenantRuns) -> None:
    [spot] = await charges(runs, "spot")
    said(spot, PricingCategory="Dynamic")
    [sold] = await charges(runs, "seller")
    said(
        sold,
        PublisherName="MongoDB Inc.", ServiceProviderName="MongoDB Inc.", HostProviderName="Google Cloud",
        ProviderName="Google Cloud", InvoiceIssuerName="Google Cloud",
    )  # fmt: skip


async def test_prices_are_quoted_in_dollars(runs: TenantRuns) -> None:
    [euro] = await charges(runs, "euro")
    said(euro, BillingCurrency="EUR", PricingCurrency="USD", BilledCost="1.84")
    assert euro["PricingCurrencyEffectiveCost"] == Decimal(2)
    assert euro["PricingCurrencyListUnitPrice"] == Decimal("0.543478261")


async def test_regions_services_units_and_resources_are_named(runs: TenantRuns) -> None:
    [stored] = await charges(runs, "global")
    said(stored, RegionId=None, RegionName=None, ServiceCategory="Other", ServiceSubcategory="Other (Other)")
    [stored] = await charges(runs, "resource")
    said(stored, ResourceName="vm-1", ResourceType="instances", RegionId="us-central1", RegionName="Iowa")
    assert stored["ResourceId"].endswith("/instances/7")
    [stored] = await charges(runs, "storage")
    said(stored, ConsumedUnit="Byte-Seconds", ConsumedQuantity=7.0, PricingUnit="GiB-Months", PricingQuantity=2.0)
    [stored] = await charges(runs, "odd-unit")
    said(stored, ConsumedUnit="Characters", PricingUnit="Thing")


async def test_what_the_source_lacks_is_filled_in_and_said(runs: TenantRuns) -> None:
    [stored] = await charges(runs, "zero-length")
    assert stored["ChargePeriodEnd"] == datetime(2025, 11, 17, 9, tzinfo=UTC)
    assert "ChargePeriodEnd one hour after its start" in stored["x_SourceChanges"]
    [stored] = await charges(runs, "no-service")
    said(stored, ServiceName="AAAA-BBBB", ServiceCategory="Other")
    [marked] = await charges(runs, "trademark")
    said(marked, ServiceName="Red Hat OpenShift")
    assert "ServiceName in ASCII" in marked["x_SourceChanges"]
    assert "ServiceName" in stored["x_SourceChanges"]


async def test_tags_are_one_flat_object_in_which_the_nearer_wins(runs: TenantRuns) -> None:
    [stored] = await charges(runs, "tags")
    assert stored["Tags"] == {
        "team": "web",
        "quote": 'a"b\\',
        "empty": "",
        "111/env": "direct",
        "project/team": "project's",
        "system/compute.googleapis.com/cores": "4",
    }


# ----------------------------------------------------------------------------------------------- the table as a whole


async def test_both_tables_tie_to_each_other_per_invoice_month_and_currency(runs: TenantRuns) -> None:
    raw = await runs.rows(
        """SELECT t.invoice_month AS month, t.currency AS currency, SUM(t.net_cost) AS net
        FROM gcp_cost_billing AS t GROUP BY 1, 2 ORDER BY 1, 2"""
    )
    focus = await runs.rows(
        """SELECT t.x_InvoiceMonth AS month, t.BillingCurrency AS currency, SUM(t.BilledCost) AS net,
          SUM(t.EffectiveCost) AS effective
        FROM focus_cost_and_usage AS t GROUP BY 1, 2 ORDER BY 1, 2"""
    )
    assert [(item["month"], item["currency"], item["net"]) for item in focus] == [
        (item["month"], item["currency"], item["net"]) for item in raw
    ]
    assert all(item["net"] == item["effective"] for item in focus)
    assert len(raw) == 3


async def test_a_rerun_replaces_its_dates_of_its_provider_and_nothing_else(runs: TenantRuns) -> None:
    content = """SELECT TO_JSON_STRING(t) AS content FROM (
      SELECT s.* EXCEPT (x_PipelineLoggingId) FROM focus_cost_and_usage AS s) AS t ORDER BY content"""
    before = await runs.rows(content)
    # Another provider's row of the same day, and this provider's of another.
    copied = [field.name for field in tables.table("focus", "focus_cost_and_usage").fields]
    for provider, day in (("aws", "2025-11-17"), ("gcp", "2025-11-16")):
        values = {"x_Provider": f"'{provider}'", "x_ChargeDate": f"DATE '{day}'"}
        runs.warehouse.client.query(
            f"INSERT INTO acme.focus_cost_and_usage ({', '.join(copied)}) "
            f"SELECT {', '.join(values.get(name, f't.{name}') for name in copied)} "
            "FROM acme.focus_cost_and_usage AS t WHERE t.BillingAccountId = 'plain' AND t.x_Provider = 'gcp' LIMIT 1"
        ).result()
    context = await run(runs)
    others = "t.x_Provider != 'gcp' OR t.x_ChargeDate != DATE '2025-11-17'"
    assert len(await runs.rows(f"SELECT t.x_Provider FROM focus_cost_and_usage AS t WHERE {others}")) == 2
    runs.warehouse.client.query(f"DELETE FROM acme.focus_cost_and_usage AS t WHERE {others}").result()
    assert await runs.rows(content) == before
    written = await runs.rows("SELECT DISTINCT t.x_PipelineLoggingId AS id FROM focus_cost_and_usage AS t")
    assert [item["id"] for item in written] == [context.pipeline_logging_id]


async def test_the_views_serve_two_versions(runs: TenantRuns, warehouse: Warehouse) -> None:
    await warehouse.ensure_tables(ACME, tables.of_provider("gcp"), tables.views("gcp"))
    [old] = await runs.rows("SELECT t.* FROM focus_v1_2 AS t WHERE t.BillingAccountId = 'plain'")
    [new] = await runs.rows("SELECT t.* FROM focus_v1_4 AS t WHERE t.BillingAccountId = 'plain'")
    assert len([name for name in old if not name.startswith("x_")]) == 57
    assert len([name for name in new if not name.startswith("x_")]) == 65
    assert {"ProviderName", "PublisherName"} <= set(old) - set(new)
    assert {"ServiceProviderName", "InvoiceDetailId", "AllocatedTags"} <= set(new) - set(old)


# --------------------------------------------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def costs(warehouse: Warehouse, runs: TenantRuns) -> Costs:
    """Two more months beside the examples, of another provider."""
    runs.warehouse.client.query(
        """INSERT INTO acme.focus_cost_and_usage (BilledCost, BillingAccountId, BillingCurrency, BillingPeriodEnd,
          BillingPeriodStart, ChargeCategory, ChargePeriodEnd, ChargePeriodStart, ContractedCost, EffectiveCost,
          InvoiceIssuerName, ListCost, ServiceCategory, ServiceName, ServiceProviderName, SubAccountId, RegionId, Tags,
          x_ChargeDate, x_Provider, x_RowKind, x_PipelineLoggingId)
        SELECT CAST(r.cost AS NUMERIC), 'b', r.currency, r.at, r.at, 'Usage', r.at, r.at, 0,
          CAST(r.cost AS NUMERIC) / 2,
          'i', 0, 'Other', r.service, 's', r.account, 'eu', PARSE_JSON(r.tags), DATE(r.at), 'aws', 'CHARGE', 'x'
        FROM UNNEST([
          STRUCT('7.000000001' AS cost, 'USD' AS currency, TIMESTAMP '2025-01-05 00:00:00+00' AS at,
            'EC2' AS service, 'one' AS account, '{"team": "web", "a.b/c": "x"}' AS tags),
          STRUCT('3', 'USD', TIMESTAMP '2025-01-31 00:00:00+00', 'EC2', 'two', '{"team": "ops"}'),
          STRUCT('5', 'EUR', TIMESTAMP '2025-01-31 23:00:00+00', 'S3', 'two', '{}'),
          STRUCT('6', 'USD', TIMESTAMP '2025-02-28 00:00:00+00', 'EC2', 'one', '{"team": "web"}'),
          STRUCT('1', 'USD', TIMESTAMP '2025-02-01 00:00:00+00', 'S3', 'one', '{}')
        ]) AS r"""
    ).result()
    return Costs(BigQueryCostStore(warehouse), now=lambda: datetime(2025, 2, 10, tzinfo=UTC))


async def ask(costs: Costs, start: str, end: str, *group_by: str, size: int = 100, **changes: Any) -> list[Cost]:
    request = CostRequest(tenant_id=ACME, start_date=start, end_date=end, group_by=group_by, **changes)
    found, _ = await costs.ask(costs.check(request), size, None)
    return list(found)


def shown(found: list[Cost]) -> list[tuple[tuple[str, ...], str, str]]:
    return [(cost.values, cost.currency, format(cost.cost.normalize(), "f")) for cost in found]


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ((), [((), "USD", "10.000000001"), ((), "EUR", "5")]),
        (("provider",), [(("aws",), "USD", "10.000000001"), (("aws",), "EUR", "5")]),
        (("service",), [(("EC2",), "USD", "10.000000001"), (("S3",), "EUR", "5")]),
        (("charge_category",), [(("Usage",), "USD", "10.000000001"), (("Usage",), "EUR", "5")]),
        (("account",), [(("one",), "USD", "7.000000001"), (("two",), "EUR", "5"), (("two",), "USD", "3")]),
        (("tag:team",), [(("web",), "USD", "7.000000001"), (("",), "EUR", "5"), (("ops",), "USD", "3")]),
        (("tag:a.b/c",), [(("x",), "USD", "7.000000001"), (("",), "EUR", "5"), (("",), "USD", "3")]),
        (("region", "month"), [(("eu", "2025-01"), "USD", "10.000000001"), (("eu", "2025-01"), "EUR", "5")]),
        (
            ("day", "currency"),
            [
                (("2025-01-05", "USD"), "USD", "7.000000001"),
                (("2025-01-31", "EUR"), "EUR", "5"),
                (("2025-01-31", "USD"), "USD", "3"),
            ],
        ),
    ],
)
async def test_costs_by_every_dimension_never_mix_currencies(
    costs: Costs, group_by: tuple[str, ...], expected: list[Any]
) -> None:
    assert shown(await ask(costs, "2025-01-01", "2025-01-31", *group_by)) == expected


@pytest.mark.parametrize(
    ("filters", "total"),
    [
        ({"provider": "AWS", "currency": "usd"}, "10.000000001"),
        ({"currency": "USD", "metric": "effective", "account": "two"}, "1.5"),
        ({"service": "EC2", "account": "one"}, "7.000000001"),
        ({"region": "eu", "currency": "EUR"}, "5"),
        ({"tag": "team=ops"}, "3"),
        ({"tag": "a.b/c=x", "charge_category": "Usage"}, "7.000000001"),
    ],
)
async def test_filters(costs: Costs, filters: dict[str, Any], total: str) -> None:
    assert [text for _, _, text in shown(await ask(costs, "2025-01-01", "2025-01-31", **filters))] == [total]


async def test_what_is_filtered_out_leaves_nothing(costs: Costs) -> None:
    for filters in ({"charge_category": "Tax"}, {"tag": "team=nobody"}, {"tag": "nokey=web"}, {"provider": "azure"}):
        assert await ask(costs, "2025-01-01", "2025-01-31", **filters) == []


async def test_a_month_is_compared_with_the_month_before_it(costs: Costs) -> None:
    found = await ask(costs, "2025-02-01", "2025-02-28", "service", "month", compare=True, currency="USD")
    assert [(cost.values, cost.cost, cost.previous_cost) for cost in found] == [
        (("EC2", "2025-02"), Decimal(6), Decimal("10.000000001")),
        (("S3", "2025-02"), Decimal(1), Decimal(0)),
    ]
    days = await ask(costs, "2025-02-01", "2025-02-28", "day", compare=True, currency="USD")
    # The last of January counts as the last of February.
    assert {cost.values[0]: (cost.cost, cost.previous_cost) for cost in days}["2025-02-28"] == (Decimal(6), Decimal(3))


async def test_pages_go_on_where_they_ended(costs: Costs) -> None:
    question = costs.check(
        CostRequest(tenant_id=ACME, start_date="2025-01-01", end_date="2025-02-28", group_by=("account", "service"))
    )
    whole, _ = await costs.ask(question, 100, None)
    paged: list[Cost] = []
    while True:
        after = (paged[-1].cost, paged[-1].key, paged[-1].currency) if paged else None
        page, _ = await costs.ask(question, 1, after)
        if not page:
            break
        paged += page
    assert paged == list(whole)
    assert len(whole) == 4


async def test_the_examples_add_up_in_the_answer(costs: Costs, runs: TenantRuns) -> None:
    found = await ask(costs, "2025-11-17", "2025-11-17", provider="gcp")
    raw = await runs.rows("SELECT t.currency, SUM(t.net_cost) AS net FROM gcp_cost_billing AS t GROUP BY 1")
    assert {cost.currency: cost.cost for cost in found} == {item["currency"]: item["net"] for item in raw}


async def test_a_tenant_without_the_table_has_no_costs_and_one_that_is_not_is_not_found(
    costs: Costs, warehouse: Warehouse
) -> None:
    await warehouse.create_dataset("fresh")
    store = BigQueryCostStore(warehouse)

    def question(tenant: str) -> CostQuestion:
        return costs.check(CostRequest(tenant_id=TenantId(tenant)))

    assert list(await store.costs(question("fresh"), 10, None)) == []
    with pytest.raises(NotFound):
        await store.costs(question("nobody"), 10, None)


def test_every_service_has_a_subcategory_of_its_category() -> None:
    focus = next(step for step in PIPELINE.steps if step.name == "focus")
    lookups: Mapping[str, str] = focus.config.lookups  # type: ignore[attr-defined]
    services = json.loads(lookups["services"])
    by_name = {item["service"]: item for item in services}
    assert len(by_name) == len(services) >= 125
    assert by_name["Cloud Run"]["subcategory"] == "Serverless Compute"
    for name in ("units", "regions"):
        values = [tuple(item.values()) for item in json.loads(lookups[name])]
        assert len({value[0] for value in values}) == len(values)
