"""Rows of providers' own FOCUS exports made by hand: what each of the three clouds really delivers, holes included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud.bigquery import SchemaField

from tests.support.billing import Customer

START = datetime(2025, 11, 17, 5, tzinfo=UTC)
MONTH = (datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC))
PLAN = "arn:aws:savingsplans::123456789012:savingsplan/cccc-dddd"
RESERVATION = "/providers/Microsoft.Capacity/reservationOrders/o1/reservations/r1"


def row(**changes: Any) -> dict[str, Any]:
    """One hour of a virtual machine at list price, in the columns of FOCUS 1.2."""
    start = changes.pop("start", START)
    return {
        "BilledCost": 0.096,
        "BillingAccountId": "123456789012",
        "BillingAccountName": "Payer",
        "BillingAccountType": "Management Account",
        "BillingCurrency": "USD",
        "BillingPeriodStart": MONTH[0],
        "BillingPeriodEnd": MONTH[1],
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": "on demand",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": start,
        "ChargePeriodEnd": start + timedelta(hours=1),
        "CommitmentDiscountCategory": None,
        "CommitmentDiscountId": None,
        "CommitmentDiscountName": None,
        "CommitmentDiscountQuantity": None,
        "CommitmentDiscountStatus": None,
        "CommitmentDiscountType": None,
        "CommitmentDiscountUnit": None,
        "ConsumedQuantity": 1.0,
        "ConsumedUnit": "Hours",
        "ContractedCost": 0.096,
        "ContractedUnitPrice": 0.096,
        "EffectiveCost": 0.096,
        "InvoiceId": None,
        "InvoiceIssuerName": "Amazon Web Services EMEA SARL",
        "ListCost": 0.1,
        "ListUnitPrice": 0.1,
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingQuantity": 1.0,
        "PricingUnit": "Hours",
        "ProviderName": "AWS",
        "PublisherName": "AWS",
        "RegionId": "us-east-1",
        "RegionName": "US East (N. Virginia)",
        "ResourceId": "arn:aws:ec2:us-east-1:210987654321:instance/i-0abc",
        "ResourceName": None,
        "ResourceType": None,
        "ServiceCategory": "Compute",
        "ServiceName": "Amazon Elastic Compute Cloud",
        "ServiceSubcategory": "Virtual Machines",
        "SkuId": "SKU1",
        "SkuMeter": "BoxUsage:m5.large",
        "SkuPriceId": "SKU1.OD.HRS",
        "SubAccountId": "210987654321",
        "SubAccountName": "Shop",
        "SubAccountType": "Account",
        "Tags": {"team": "web", "note": 'a "quote", and more'},
        **changes,
    }


def bare(category: str, cost: float, **changes: Any) -> dict[str, Any]:
    """A charge without a resource, price or SKU."""
    empty = dict.fromkeys(
        ("ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "ListUnitPrice", "PricingCategory",
         "PricingQuantity", "PricingUnit", "RegionId", "RegionName", "ResourceId", "SkuId", "SkuMeter", "SkuPriceId")
    )  # fmt: skip
    given = {
        "BilledCost": cost, "EffectiveCost": cost, "ListCost": cost, "ContractedCost": cost, "ChargeCategory": category,
        "ChargeDescription": category, "ChargeFrequency": "One-Time", "Tags": {},
    }  # fmt: skip
    return row(**{**empty, **given, **changes})


COVERED = {
    "CommitmentDiscountId": PLAN, "CommitmentDiscountCategory": "Spend", "CommitmentDiscountType": "Savings Plan",
    "PricingCategory": "Committed",
}  # fmt: skip
AWS_OWN = {
    "x_Operation": "RunInstances", "x_ServiceCode": "AmazonEC2", "x_UsageType": "BoxUsage:m5.large",
    "x_Discounts": {"Edp": "-0.004"}, "x_CostCategories": {"Team": "web"},
}  # fmt: skip
# 1.5 of a savings plan of 2 were used. AWS leaves prices, units and SKUs of some products empty.
AWS = [
    row(**AWS_OWN),
    row(ChargeDescription="covered", BilledCost=0.0, EffectiveCost=1.5, ListCost=2.5, ContractedCost=2.5,
        CommitmentDiscountStatus="Used", CommitmentDiscountQuantity=1.5, CommitmentDiscountUnit="USD", **COVERED),
    row(ChargeDescription="left", BilledCost=0.0, EffectiveCost=0.5, ListCost=0.0, ContractedCost=0.0,
        CommitmentDiscountStatus="Unused", ResourceId=PLAN, ConsumedQuantity=None, ConsumedUnit=None, **COVERED),
    bare("Purchase", 2.0, EffectiveCost=0.0, ChargeDescription="plan", ChargeFrequency="Recurring", ResourceId=PLAN,
         ServiceName="Savings Plans for AWS Compute usage", ServiceSubcategory=None,
         **{**COVERED, "PricingCategory": "Standard"}),
    bare("Tax", 0.21, InvoiceIssuerName=None, SkuId="TAX"),
    bare("Credit", -1.25),
    row(ChargeDescription="priceless", ContractedUnitPrice=None, ListUnitPrice=None, PricingUnit=None, SkuId=None,
        SkuPriceId=None, PublisherName=None, ServiceName="AWS Marketplace thing", ServiceCategory="Other",
        ServiceSubcategory="Other (Other)"),
    row(ChargeDescription="late", start=datetime(2025, 10, 31, 23, tzinfo=UTC)),
    row(ChargeDescription="yuan", BillingCurrency="CNY", PricingCurrency="CNY", BilledCost=7.0, EffectiveCost=7.0),
    bare("Usage", -0.5, ChargeDescription="refund", ChargeClass="Correction"),
]  # fmt: skip

AZURE_OWN = {
    "x_InvoiceSectionName": "IT", "x_BillingExchangeRate": "1", "x_SkuMeterCategory": "Virtual Machines",
    "x_PricingBlockSize": "1", "x_SkuMeterId": "m-1", "x_SkuDescription": "Reserved VM",
}  # fmt: skip


def azure(**changes: Any) -> dict[str, Any]:
    """A day of a virtual machine, as Microsoft writes it: times as text, tags as JSON text."""
    day = START.replace(hour=0)
    made = row(**{
        "start": day, "ChargePeriodEnd": day + timedelta(days=1), "ProviderName": "Microsoft",
        "PublisherName": "Microsoft", "InvoiceIssuerName": "Microsoft", "RegionId": "westeurope",
        "RegionName": "West Europe", "SubAccountId": "/subscriptions/sub-1", "SubAccountType": "Subscription",
        "BillingAccountId": "/providers/Microsoft.Billing/billingAccounts/acct:1/billingProfiles/P-1",
        "BillingAccountType": "Billing Profile", "ServiceName": "Virtual Machines", "ResourceName": "VM-1",
        "ResourceId": "/subscriptions/sub-1/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm-1",
        "ResourceType": "Virtual machine", **AZURE_OWN, **changes,
    })  # fmt: skip
    return made


BOUGHT = {
    "CommitmentDiscountId": RESERVATION, "CommitmentDiscountCategory": "Usage", "CommitmentDiscountName": "VMs",
    "CommitmentDiscountType": "Reservation",
}  # fmt: skip
# 10 paid for a reservation, 7.5 of them used. Microsoft's own report names these holes: no list and contracted cost of
# reservations, no service of purchases, the invoice in a column of its own, commitments without quantities.
AZURE = [
    azure(),
    azure(ChargeDescription="covered", BilledCost=0.0, EffectiveCost=7.5, ContractedCost=0.0, ListCost=0.0,
          ContractedUnitPrice=0.0, ListUnitPrice=0.0, CommitmentDiscountStatus="Used", PricingCategory="Committed",
          x_AmortizationClass="Amortized Charge", **BOUGHT),
    azure(ChargeDescription="left", BilledCost=0.0, EffectiveCost=2.5, ContractedCost=0.0, ListCost=0.0,
          CommitmentDiscountStatus="Unused", PricingCategory="Committed", ConsumedQuantity=None, ConsumedUnit=None,
          **BOUGHT),
    azure(ChargeDescription="bought", ChargeCategory="Purchase", ChargeFrequency="Recurring", BilledCost=10.0,
          EffectiveCost=0.0, ContractedCost=0.0, ListCost=0.0, ContractedUnitPrice=0.0, ListUnitPrice=0.0,
          ServiceName=None, ServiceCategory=None,
          x_SkuMeterCategory=None, ServiceSubcategory=None, x_InvoiceId="G1", ResourceId=RESERVATION,
          ResourceName=None, ResourceType=None, ConsumedQuantity=None, ConsumedUnit=None, **BOUGHT),
    azure(ChargeDescription="marketplace", ServiceName=None, ServiceCategory="other", x_SkuMeterCategory=None,
          x_SkuDescription=None, PublisherName="MongoDB", ContractedCost=None, ListCost=None),
    azure(ChargeDescription="rounding", ChargeCategory="Adjustment", BilledCost=0.001, EffectiveCost=0.001,
          ChargeFrequency="One-Time"),
    azure(ChargeDescription="late", start=datetime(2025, 10, 30, tzinfo=UTC),
          ChargePeriodEnd=datetime(2025, 10, 31, tzinfo=UTC)),
    azure(ChargeDescription="euro", BillingCurrency="EUR", BilledCost=0.09, EffectiveCost=0.09,
          x_BillingExchangeRate="0.9"),
]  # fmt: skip


def as_text(made: dict[str, Any]) -> dict[str, Any]:
    """A row as Microsoft's CSV has it."""

    def cell(value: Any) -> Any:
        match value:
            case datetime():
                return value.strftime("%Y-%m-%dT%H:%M:%SZ")
            case dict():
                return json.dumps(value)
            case None:
                return ""
        return value

    return {name: cell(value) for name, value in made.items()}


def google(**changes: Any) -> dict[str, Any]:
    """An hour of a virtual machine, as a row of Google's table has it."""
    return row(**{
        "ProviderName": "Google Cloud", "PublisherName": "Google Cloud", "InvoiceIssuerName": "Google Cloud",
        "BillingAccountId": "0A1B2C-3D4E5F-678901", "BillingAccountName": None, "BillingAccountType": None,
        "BillingPeriodStart": datetime(2025, 11, 1, 7, tzinfo=UTC),
        "BillingPeriodEnd": datetime(2025, 12, 1, 8, tzinfo=UTC), "SubAccountId": "shop-prod",
        "SubAccountType": "Project", "ServiceName": "Compute Engine",
        "ResourceId": "//compute.googleapis.com/projects/1/zones/a/instances/7", "ResourceType": "Instance",
        "Tags": [{"key": "team", "value": "web", "x_namespace": None}],
        "x_CostType": "regular", "x_ExportTime": datetime(2025, 11, 18, 3, tzinfo=UTC), "x_ServiceId": "6F81-5844-456A",
        "x_Credits": [{"id": "c1", "type": "PROMOTION", "amount": -0.1}], "x_CurrencyConversionRate": 1.0, **changes,
    })  # fmt: skip


GOOGLE = [
    google(),
    # Google's first form: values in lower case, the last day as the end of the period.
    google(ChargeDescription="first form", ChargeCategory="usage", ChargeFrequency="usage-based",
           BillingPeriodEnd=datetime(2025, 11, 30, 8, tzinfo=UTC), ServiceCategory="compute"),
    google(ChargeDescription="tax", ChargeCategory="Tax", ChargeFrequency="One-Time", BilledCost=0.2, EffectiveCost=0.2,
           ConsumedQuantity=None, PricingQuantity=None, SkuId="T", ResourceId=None, ResourceType=None),
    google(ChargeDescription="euro", BillingCurrency="EUR", BilledCost=0.123456789, EffectiveCost=0.123456789),
    google(ChargeDescription="next day", start=datetime(2025, 11, 18, 0, tzinfo=UTC)),
]  # fmt: skip


def export_google(customer: Customer, rows: Sequence[dict[str, Any]] = GOOGLE) -> None:
    """Puts the rows into a table as Google does, with columns of their kinds."""
    kinds: dict[str, Any] = {}
    for item in rows:
        kinds |= {name: value for name, value in item.items() if value is not None or name not in kinds}
    customer.export(
        [json.loads(json.dumps(item, default=str)) for item in rows],
        fields=[_field(name, value) for name, value in kinds.items()],
        partition="x_ExportTime",
        dataset="gcp_billing_immutable_1_us",
        table="gcp_billing_export_focus_0A1B2C_3D4E5F_678901",
    )


def _field(name: str, value: Any) -> SchemaField:
    members = {"Tags": ("key", "value", "x_namespace"), "x_Credits": ("id", "type", "amount")}.get(name)
    if members:
        kinds = [SchemaField(part, "NUMERIC" if part == "amount" else "STRING") for part in members]
        return SchemaField(name, "RECORD", mode="REPEATED", fields=kinds)
    kind = {"datetime": "TIMESTAMP", "float": "NUMERIC"}.get(type(value).__name__, "STRING")
    return SchemaField(name, "FLOAT" if name == "x_CurrencyConversionRate" else kind)
