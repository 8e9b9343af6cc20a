"""The worked commitment discounts of the FOCUS specification, from rows of AWS, Azure and Google Cloud that are them.

Each scenario is an account's; all of them are one delivery and one run per provider. A scenario's rows must be among
those of its account, in every column it fixes that the provider's data can say; what else the account has is of another
kind: the purchase that the scenario leaves out, or the usage of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

from deploy.local.objects import Keys, Server
from libs import tables
from libs.bigquery import Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.domain import Outcome
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.run_context import RunContext, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support import aws, aws_rows, azure, azure_rows
from tests.support import billing as google

GOLDEN = TenantId("golden")
DATA = Path(__file__).parents[1] / "support" / "data" / "focus_scenarios"
KEYS = Keys(**{**aws.KEY, "account": "golden", "account_key": base64.b64encode(bytes(32)).decode()})
FIRST, LAST = date(2023, 1, 1), date(2023, 1, 31)
START = datetime(2023, 1, 1)
COMMITMENT, RESOURCE, LARGE, MEDIUM = (
    "<my-commitment-discount-id>", "<my-resource-id>", "<my-large-vm-id>", "<my-medium-vm-id>",
)  # fmt: skip
COMPARED = (
    "BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd", "ChargeCategory",
    "ChargeFrequency", "PricingCategory", "PricingQuantity", "ResourceId", "BilledCost", "EffectiveCost",
    "ConsumedQuantity", "ConsumedUnit", "CommitmentDiscountId", "CommitmentDiscountCategory",
    "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountUnit",
)  # fmt: skip
# FOCUS 1.2 wants units in the plural; AWS calls what its instance sizes are multiples of normalised units.
UNITS = {"Hour": "Hours", "Normalized Hour": "Normalized Units"}
# The scenario's periods are no hours (2023-01-01T10 to 2023-02-01T20).
_PERIODS = {"ChargePeriodStart", "ChargePeriodEnd"}
# A line item has one amount, which is what was priced at its rate.
_CONSUMED = {"ConsumedQuantity"}
# Nobody has consumed what is unused, as usage_scenario_2 has it; this scenario has it consumed by a resource.
_UNUSED = {"ConsumedQuantity", "ConsumedUnit", "ResourceId", "PricingQuantity"}
# A row of Azure is a day's; the months of Google's invoices are Pacific.
EVERYWHERE = {"azure": _PERIODS, "gcp": {"BillingPeriodStart", "BillingPeriodEnd"}}
LEFT_OUT: Mapping[tuple[str, str], set[str]] = {
    ("aws", "purchase_scenario_2"): _PERIODS,
    ("aws", "purchase_scenario_3"): _PERIODS,
    ("gcp", "purchase_scenario_2"): _PERIODS,
    ("aws", "flexible_1_resource"): _CONSUMED,
    ("aws", "inflexible_unused"): _UNUSED,
    ("azure", "inflexible_unused"): _UNUSED,
    ("gcp", "inflexible_unused"): _UNUSED,
    # Of a fee that is used in part Google bills the usage itself, and takes it off the fee.
    ("gcp", "usage_scenario_3"): {"BilledCost"},
}


# ------------------------------------------------------------------------------------------------- AWS


def item(kind: str, hour: int = 0, **changes: Any) -> dict[str, Any]:
    """A line item of the hour without anything that the scenario does not fix."""
    start = START + timedelta(hours=hour)
    return aws_rows.row(
        **{
            "start": start, "line_item_line_item_type": kind, "line_item_line_item_description": kind,
            "bill_billing_period_start_date": START, "bill_billing_period_end_date": datetime(2023, 2, 1),
            "line_item_resource_id": RESOURCE, "resource_tags": {}, "pricing_unit": "Hrs", **changes,
        }
    )  # fmt: skip


def plan(kind: str, hour: int = 0, **changes: Any) -> dict[str, Any]:
    """A line item of a savings plan; its covered usage costs 2.00 on demand."""
    return item(kind, hour, savings_plan_savings_plan_a_r_n=COMMITMENT, **changes)


def covered(share: str) -> list[dict[str, Any]]:
    return [
        plan("SavingsPlanCoveredUsage", line_item_unblended_cost="2.00",
             savings_plan_savings_plan_effective_cost=share),
        plan("SavingsPlanNegation", line_item_unblended_cost="-2.00"),
    ]  # fmt: skip


def fee(paid: str, committed: str = "1.00", used: str = "1.00", hour: int = 0) -> dict[str, Any]:
    return plan(
        "SavingsPlanRecurringFee", hour, line_item_unblended_cost=paid, savings_plan_total_commitment_to_date=committed,
        savings_plan_used_commitment=used, line_item_resource_id="",
    )  # fmt: skip


def upfront(paid: str) -> dict[str, Any]:
    return plan(
        "SavingsPlanUpfrontFee", line_item_unblended_cost=paid, line_item_usage_end_date=datetime(2024, 1, 1),
        line_item_resource_id="",
    )  # fmt: skip


def reserved(resource: str, share: str, amount: str = "1.00", units: str = "") -> dict[str, Any]:
    return item(
        "DiscountedUsage", line_item_resource_id=resource, line_item_unblended_cost="0", line_item_usage_amount=amount,
        line_item_normalized_usage_amount=units, reservation_reservation_a_r_n=COMMITMENT,
        reservation_effective_cost=share,
    )  # fmt: skip


def reservation(paid: str, units: str = "", **changes: Any) -> dict[str, Any]:
    return item(
        "RIFee", line_item_resource_id="", line_item_unblended_cost=paid, line_item_normalized_usage_amount=units,
        reservation_reservation_a_r_n=COMMITMENT, **changes,
    )  # fmt: skip


def on_demand(resource: str, cost: str, amount: str) -> dict[str, Any]:
    return item("Usage", line_item_resource_id=resource, line_item_unblended_cost=cost, line_item_usage_amount=amount)


AWS: Mapping[str, Sequence[dict[str, Any]]] = {
    "purchase_scenario_1": [upfront("8760.00")],
    "purchase_scenario_2": [fee("1.00", hour=hour) for hour in range(3)],
    "purchase_scenario_3": [upfront("4380.00"), *(fee("0.50", hour=hour) for hour in range(3))],
    "usage_scenario_1": [fee("1.00"), *covered("1.00")],
    "usage_scenario_2": [fee("1.00", used="0.00")],
    "usage_scenario_3": [fee("1.00", used="0.75"), *covered("0.75")],
    "usage_scenario_4": [fee("1.00"), *covered("1.00"), on_demand(RESOURCE, "0.50", "1.00")],
    "flexible_1_resource": [
        reservation("0.50", "1.00"), reserved(LARGE, "0.50", "0.333", "1.00"), on_demand(LARGE, "2.25", "0.75"),
    ],
    "flexible_2_resources": [reservation("2.00", "4.00"), *[reserved(MEDIUM, "1.00", units="2.00")] * 2],
    "inflexible_used": [reservation("1.50"), reserved(LARGE, "1.50")],
    "inflexible_unused": [
        reservation("1.50", reservation_unused_recurring_fee="1.50", reservation_unused_quantity="1.00"),
        on_demand(MEDIUM, "2.00", "1.00"),
    ],
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- Azure


def charge(kind: str, cost: str, **changes: Any) -> dict[str, Any]:
    """A row of the first of January."""
    return azure_rows.row(
        **{
            "chargeType": kind, "costInBillingCurrency": cost, "date": "01/01/2023", "quantity": "1",
            "billingPeriodStartDate": "01/01/2023", "billingPeriodEndDate": "01/31/2023", "ResourceId": RESOURCE,
            "paygCostInBillingCurrency": "", **changes,
        }
    )  # fmt: skip


SAVED = {"pricingModel": "SavingsPlan", "benefitId": COMMITMENT, "benefitName": "plan"}
RESERVED = {"pricingModel": "Reservation", "benefitId": COMMITMENT, "benefitName": "machines"}
ONCE, MONTHLY = {"frequency": "OneTime", "ResourceId": ""}, {"frequency": "Recurring", "ResourceId": ""}
# Rows of the actual export, then of the amortized one.
AZURE: Mapping[str, tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]] = {
    "purchase_scenario_1": ([charge("Purchase", "8760.00", **SAVED, **ONCE)], []),
    "purchase_scenario_2": ([charge("Purchase", "1.00", **SAVED, **MONTHLY)] * 3, []),
    "purchase_scenario_3": (
        [charge("Purchase", "4380.00", **SAVED, **ONCE), *[charge("Purchase", "0.50", **SAVED, **MONTHLY)] * 3], [],
    ),
    "usage_scenario_1": ([charge("Usage", "0", **SAVED)], [charge("Usage", "1.00", **SAVED)]),
    "usage_scenario_2": ([], [charge("UnusedSavingsPlan", "1.00", **SAVED)]),
    "usage_scenario_3": ([], [charge("Usage", "0.75", **SAVED), charge("UnusedSavingsPlan", "0.25", **SAVED)]),
    "usage_scenario_4": (
        [charge("Usage", "0", **SAVED), charge("Usage", "0.50")],
        [charge("Usage", "1.00", **SAVED), charge("Usage", "0.50")],
    ),
    "inflexible_used": (
        [charge("Purchase", "1.50", unitOfMeasure="1 Hour", **RESERVED, **MONTHLY)],
        [charge("Usage", "1.50", **{**RESERVED, "ResourceId": LARGE})],
    ),
    "inflexible_unused": (
        [charge("Purchase", "1.50", unitOfMeasure="1 Hour", **RESERVED, **MONTHLY),
         charge("Usage", "2.00", ResourceId=MEDIUM)],
        [charge("UnusedReservation", "1.50", **RESERVED), charge("Usage", "2.00", ResourceId=MEDIUM)],
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- Google Cloud


def used(resource: str, cost: float, *credits: tuple[str, float], **changes: Any) -> dict[str, Any]:
    """An hour's usage of a machine."""
    return google.row(
        **{
            "usage_start_time": "2023-01-01T00:00:00Z", "usage_end_time": "2023-01-01T01:00:00Z",
            "export_time": "2023-01-01T06:00:00Z", "invoice": {"month": "202301"}, "cost": cost, "labels": [],
            "usage": {"amount": 1.0, "unit": "hour", "amount_in_pricing_units": 1.0, "pricing_unit": "hour"},
            "credits": [{"type": kind, "amount": amount} for kind, amount in credits],
            "resource": {"global_name": resource}, **changes,
        }
    )  # fmt: skip


def committed(sku: str, cost: float, *credits: tuple[str, float]) -> dict[str, Any]:
    """An hour's fee of a commitment."""
    return used("", cost, *credits, sku={"id": "F", "description": sku}, subscription={"instance_id": COMMITMENT})


SPENT = {"subscription": {"instance_id": COMMITMENT}}
MODEL = {"consumption_model": {"id": "M", "description": "Compute Flexible CUDs"}}
OF_SPEND, OF_USE = "Commitment - dollar based v1: GCE for 1 year", "Commitment v1: N1 in Americas for 1 Year"
DOLLARS, HOURS, OFFSET = (
    "COMMITTED_USAGE_DISCOUNT_DOLLAR_BASE", "COMMITTED_USAGE_DISCOUNT", "FEE_UTILIZATION_OFFSET",
)  # fmt: skip
# What is covered costs 2.00 on demand, a large machine 3.00. Google sells no commitment paid once.
GCP: Mapping[str, Sequence[dict[str, Any]]] = {
    "purchase_scenario_2": [*[committed(OF_SPEND, 1.0)] * 3, used(RESOURCE, 6.0, (DOLLARS, -6.0), **SPENT)],
    "usage_scenario_1": [committed(OF_SPEND, 1.0), used(RESOURCE, 2.0, (DOLLARS, -2.0), **SPENT)],
    "usage_scenario_2": [committed(OF_SPEND, 1.0)],
    "usage_scenario_3": [committed(OF_SPEND, 1.0, (OFFSET, -0.75)), used(RESOURCE, 0.75, **SPENT, **MODEL)],
    "usage_scenario_4": [
        committed(OF_SPEND, 1.0), used(RESOURCE, 2.0, (DOLLARS, -2.0), **SPENT), used(RESOURCE, 0.5),
    ],
    "inflexible_used": [committed(OF_USE, 1.5), used(LARGE, 3.0, (HOURS, -3.0), **SPENT)],
    "inflexible_unused": [committed(OF_USE, 1.5), used(MEDIUM, 2.0)],
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), tmp_path_factory.mktemp("objects"), KEYS)
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def found(
    warehouse: Warehouse, bigquery_emulator: Emulator, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]:
    """The FOCUS rows by provider and scenario."""
    _deliver(server.folder)
    address = f"http://127.0.0.1:{server.server_port}"
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    folder = tmp_path_factory.mktemp("staging")
    sas = {"sas_token": KEYS.sas(datetime(2099, 1, 1, tzinfo=UTC))}
    sources: Mapping[str, tuple[Any, Mapping[str, str], Mapping[str, str]]] = {
        "aws": (aws.AwsRuns, {"bucket": "golden", "endpoint_url": address}, aws.KEY),
        "azure": (
            azure.AzureRuns,
            {"storage_account": "golden", "container": "exports", "endpoint_url": f"{address}/golden"},
            sas,
        ),
    }

    published: dict[tuple[str, str], list[Mapping[str, Any]]] = {}

    async def publish(provider: str, runs: Any, context: RunContext, warned: set[str]) -> None:
        result = await Engine().run(Templates.load().get(provider, "cost", "billing"), context)
        assert result.outcome is Outcome.PUBLISHED
        assert isinstance(context.journal, google.MemoryJournal)
        assert context.journal.failed() <= warned
        columns = ", ".join(f"t.{name}" for name in ("SubAccountId", *COMPARED))
        for row in await runs.rows(
            f"SELECT {columns} FROM focus_cost_and_usage AS t WHERE t.x_Provider = '{provider}'"
        ):
            published.setdefault((provider, row["SubAccountId"]), []).append(row)

    async def run() -> None:
        await warehouse.create_dataset(GOLDEN)
        for provider in ("aws", "azure", "gcp"):
            schemas = [*tables.group("x_meta"), *tables.of_provider(provider)]
            await warehouse.ensure_tables(GOLDEN, schemas, tables.views(provider))
        for provider, (kind, source, secret) in sources.items():
            runs = kind(warehouse, GOLDEN, endpoints, folder)
            context = await runs.begin(source, FIRST, LAST, secret=lambda secret=secret: secret)
            await publish(provider, runs, context, {"sku_not_null", "dates_inside_billing_period"})

    async def run_google(client: bigquery.Client) -> None:
        # A fee is spread over its billing account.
        given = [
            {**row, "billing_account_id": name, "project": {"id": name}} for name, rows in GCP.items() for row in rows
        ]
        customer = google.Customer(client)
        customer.export(given, fields=google.schema(without=()))
        runs = google.TenantRuns(warehouse, GOLDEN, customer, endpoints, folder)
        await publish("gcp", runs, await runs.begin(FIRST, FIRST), set())

    asyncio.run(run())
    with contextlib.closing(build_client("golden-customer", endpoint=endpoints.bigquery)) as client:
        asyncio.run(run_google(client))
    return published


def _deliver(folder: Path) -> None:
    items = [{**row, "line_item_usage_account_id": name} for name, rows in AWS.items() for row in rows]
    report = "cur2/{}/BILLING_PERIOD=2023-01/{}"
    files = {f"s3/golden/{report.format('data', 'a.csv')}": aws.exported(items)}
    manifest = {"executionId": "e", "dataFiles": [f"s3://golden/{report.format('data', 'a.csv')}"], "columns": []}
    files[f"s3/golden/{report.format('metadata', 'cur2-Manifest.json')}"] = json.dumps(manifest).encode()
    for place, export in enumerate(("actual", "amortized")):
        rows = [{**row, "SubscriptionId": name} for name, views in AZURE.items() for row in views[place]]
        run = f"{export}/20230101-20230131/r1"
        files[f"blob/golden/exports/{run}/part.csv"] = azure.exported(rows)
        body = {
            "exportConfig": {"exportName": export, "type": f"{export.title()}Cost"},
            "runInfo": {"runId": "r1", "submittedTime": "2023-02-05T04:00:00Z"},
            "blobs": [{"blobName": f"{run}/part.csv"}],
        }
        files[f"blob/golden/exports/{run}/manifest.json"] = json.dumps(body).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def plain(column: str, value: Any) -> Any:
    """A value of either side so that equal ones are: times in UTC, numbers as decimals, units of today."""
    if value in (None, "", "null"):
        return None
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if column.endswith(("Cost", "Quantity")):
        return Decimal(str(value)).normalize()
    return UNITS.get(value, value)


@pytest.mark.parametrize(
    ("provider", "scenario"),
    [*(("aws", name) for name in AWS), *(("azure", name) for name in AZURE), *(("gcp", name) for name in GCP)],
)
def test_a_worked_commitment_discount(
    found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], provider: str, scenario: str
) -> None:
    with (DATA / f"{scenario}.csv").open(encoding="utf-8-sig", newline="") as file:
        expected = list(csv.DictReader(file))
    assert expected
    left_out = LEFT_OUT.get((provider, scenario), set()) | EVERYWHERE.get(provider, set())
    columns = [name for name in COMPARED if name in expected[0] and name not in left_out]
    left = [{name: plain(name, row[name]) for name in columns} for row in found[provider, scenario]]
    for row in expected:
        wanted = {name: plain(name, row[name]) for name in columns}
        assert wanted in left, left
        left.remove(wanted)
    assert not {row["ChargeCategory"] for row in left} & {row["ChargeCategory"] for row in expected}
