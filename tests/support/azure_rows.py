"""Rows of Azure's cost exports made by hand: one of each kind of charge, as an MCA has them."""

from __future__ import annotations

import csv
import io
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RESERVATION = "/providers/Microsoft.Capacity/reservationOrders/o1/reservations/r1"
PLAN = "/providers/Microsoft.BillingBenefits/savingsPlanOrders/o2/savingsPlans/p1"


def row(**changes: Any) -> dict[str, Any]:
    """One row of an MCA export."""
    return {
        "billingAccountId": "acct:1",
        "billingProfileId": "P-1",
        "billingProfileName": "Profile",
        "SubscriptionId": "sub-1",
        "subscriptionName": "Shop",
        "date": "11/17/2025",
        "billingPeriodStartDate": "11/01/2025",
        "billingPeriodEndDate": "11/30/2025",
        "productName": "Virtual Machines D2 v3",
        "ProductId": "DZH318Z0BQ4C00G8",
        "meterId": "m-1",
        "meterName": "D2 v3",
        "meterCategory": "Virtual Machines",
        "consumedService": "Microsoft.Compute",
        "ResourceId": "/subscriptions/sub-1/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/VM-1",
        "resourceLocation": "westeurope",
        "unitOfMeasure": "1 Hour",
        "quantity": "2",
        "unitPrice": "0.4",
        "PayGPrice": "0.5",
        "costInBillingCurrency": "0.8",
        "paygCostInBillingCurrency": "1",
        "billingCurrency": "USD",
        "pricingCurrency": "USD",
        "exchangeRatePricingToBilling": "1",
        "chargeType": "Usage",
        "frequency": "UsageBased",
        "pricingModel": "OnDemand",
        "publisherType": "Azure",
        "publisherName": "Microsoft",
        "tags": '"team": "web"',
        "additionalInfo": '{"ServiceType":"Standard_D2_v3","VCPUs":2}',
        "benefitId": "",
        "benefitName": "",
        **changes,
    }


COVERED = {"pricingModel": "Reservation", "benefitId": RESERVATION, "benefitName": "VMs", "unitPrice": "0.4"}
BOUGHT = {
    "chargeType": "Purchase", "frequency": "Recurring", "meterId": "", "quantity": "1",
    "consumedService": "Microsoft.Capacity",
    "ResourceId": RESERVATION, "SubscriptionId": "", "subscriptionName": "", "productName": "Reserved VM",
    "PayGPrice": "",
    "paygCostInBillingCurrency": "", "unitOfMeasure": "1",
}  # fmt: skip
ALIKE = [
    row(productName="plain"),
    row(productName="spot", pricingModel="Spot"),
    row(productName="euro", billingCurrency="EUR", costInBillingCurrency="0.72", exchangeRatePricingToBilling="0.9",
        paygCostInBillingCurrency="0.9", publisherName="MongoDB", publisherType="Marketplace", invoiceId="G1"),
    row(productName="tax", chargeType="Tax", frequency="OneTime", costInBillingCurrency="0.21", quantity="", meterId="",
        unitPrice="", PayGPrice="", paygCostInBillingCurrency="", ProductId="", pricingModel="", SubscriptionId=""),
    row(productName="refund", chargeType="Refund", costInBillingCurrency="-5", pricingModel="OnDemand", quantity=""),
    row(productName="rounding", chargeType="RoundingAdjustment", costInBillingCurrency="0.001", pricingModel=""),
    row(productName="late", date="10/30/2025", costInBillingCurrency="0.3"),
    row(productName="odd", consumedService="Nobody.Knows", meterCategory="Odd Service", ResourceId="",
        unitOfMeasure=""),
]  # fmt: skip
ACTUAL = [
    *ALIKE,
    row(productName="covered", costInBillingCurrency="0", **COVERED),
    row(**{**COVERED, **BOUGHT, "costInBillingCurrency": "10"}),
    row(**{**COVERED, **BOUGHT, "productName": "Plan", "pricingModel": "SavingsPlan", "benefitId": PLAN,
           "costInBillingCurrency": "4", "consumedService": "Microsoft.BillingBenefits"}),
]  # fmt: skip
AMORTIZED = [
    *ALIKE,
    row(productName="covered", costInBillingCurrency="7.5", **COVERED),
    row(productName="left", chargeType="UnusedReservation", costInBillingCurrency="2.5", **COVERED),
    row(
        productName="saved", costInBillingCurrency="4", **{**COVERED, "pricingModel": "SavingsPlan", "benefitId": PLAN}
    ),
]


def as_parquet(content: bytes) -> bytes:
    """A CSV export as parquet, with dates and costs of their own types."""
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    columns: dict[str, Any] = {name: pa.array([item[name] or None for item in rows]) for name in rows[0]}
    columns["Date"] = pa.array([date.fromisoformat(item["Date"]) for item in rows]).cast(pa.timestamp("ms"))
    columns["CostInBillingCurrency"] = pa.array(
        [Decimal(item["CostInBillingCurrency"]) for item in rows], pa.decimal128(38, 20)
    )
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()
