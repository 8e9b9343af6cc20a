"""Line items of AWS's report made by hand, as CUR 2.0 has them: one of each kind of charge."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

RESERVATION = "arn:aws:ec2:us-east-1:123456789012:reserved-instances/aaaa-bbbb"
PLAN = "arn:aws:savingsplans::123456789012:savingsplan/cccc-dddd"
VM = "arn:aws:ec2:us-east-1:210987654321:instance/i-0abc"
START = datetime(2025, 11, 17, 5)
MONTH = (datetime(2025, 11, 1), datetime(2025, 12, 1))


def row(**changes: Any) -> dict[str, Any]:
    """One hour of a virtual machine on demand."""
    start = changes.pop("start", START)
    return {
        "bill_bill_type": "Anniversary",
        "bill_billing_entity": "AWS",
        "bill_billing_period_start_date": MONTH[0],
        "bill_billing_period_end_date": MONTH[1],
        "bill_invoice_id": "",
        "bill_invoicing_entity": "Amazon Web Services EMEA SARL",
        "bill_payer_account_id": "123456789012",
        "bill_payer_account_name": "Payer",
        "cost_category": {},
        "discount": {},
        "identity_line_item_id": "x",
        "line_item_line_item_type": "Usage",
        "line_item_usage_account_id": "210987654321",
        "line_item_usage_account_name": "Shop",
        "line_item_usage_start_date": start,
        "line_item_usage_end_date": start + timedelta(hours=1),
        "line_item_product_code": "AmazonEC2",
        "line_item_usage_type": "BoxUsage:m5.large",
        "line_item_operation": "RunInstances",
        "line_item_resource_id": VM,
        "line_item_usage_amount": 1.0,
        "line_item_currency_code": "USD",
        "line_item_unblended_rate": "0.096",
        "line_item_unblended_cost": 0.096,
        "line_item_line_item_description": "on demand",
        "line_item_legal_entity": "Amazon Web Services, Inc.",
        "line_item_tax_type": "",
        "pricing_public_on_demand_cost": 0.096,
        "pricing_public_on_demand_rate": "0.096",
        "pricing_rate_code": "SKU1.OD.HRS",
        "pricing_term": "OnDemand",
        "pricing_unit": "Hrs",
        "product": {"product_name": "Amazon Elastic Compute Cloud", "region": "us-east-1"},
        "product_instance_type": "m5.large",
        "product_product_family": "Compute Instance",
        "product_region_code": "us-east-1",
        "product_servicecode": "AmazonEC2",
        "product_sku": "SKU1",
        "reservation_effective_cost": None,
        "reservation_reservation_a_r_n": "",
        "reservation_unused_amortized_upfront_fee_for_billing_period": None,
        "reservation_unused_quantity": None,
        "reservation_unused_recurring_fee": None,
        "resource_tags": {"user_Name": "web-1", "aws:createdBy": "me", "user_note": 'a "quote", and more'},
        "savings_plan_savings_plan_a_r_n": "",
        "savings_plan_savings_plan_effective_cost": None,
        "savings_plan_total_commitment_to_date": None,
        "savings_plan_used_commitment": None,
        **changes,
    }


def _bare(kind: str, cost: float, **changes: Any) -> dict[str, Any]:
    """A line item without a resource, price or SKU."""
    empty = dict.fromkeys(
        ("line_item_resource_id", "line_item_usage_type", "line_item_operation", "line_item_unblended_rate",
         "pricing_public_on_demand_rate", "pricing_rate_code", "pricing_term", "pricing_unit", "product_sku",
         "product_instance_type", "product_product_family"), ""
    )  # fmt: skip
    given = {
        "line_item_line_item_type": kind, "line_item_unblended_cost": cost, "pricing_public_on_demand_cost": None,
        "line_item_line_item_description": kind, "line_item_usage_start_date": MONTH[0],
        "line_item_usage_end_date": MONTH[1], "resource_tags": {},
    }  # fmt: skip
    return row(**{**empty, **given, **changes})


# A reserved instance, 10 paid upfront for the month and 4 as it goes, three quarters used; 1.5 of a savings plan of 2.
ROWS = [
    row(),
    row(line_item_line_item_description="spot", line_item_usage_type="SpotUsage:m5.large", pricing_term="Spot",
        line_item_unblended_cost=0.03, line_item_unblended_rate="0.03"),
    row(line_item_line_item_description="covered by plan", line_item_line_item_type="SavingsPlanCoveredUsage",
        savings_plan_savings_plan_a_r_n=PLAN, savings_plan_savings_plan_effective_cost=1.5,
        line_item_unblended_cost=2.5, pricing_public_on_demand_cost=2.5, pricing_public_on_demand_rate="2.5"),
    row(line_item_line_item_description="negation", line_item_line_item_type="SavingsPlanNegation",
        savings_plan_savings_plan_a_r_n=PLAN, line_item_unblended_cost=-2.5, pricing_public_on_demand_cost=None),
    _bare("SavingsPlanRecurringFee", 2.0, savings_plan_savings_plan_a_r_n=PLAN, savings_plan_used_commitment=1.5,
          savings_plan_total_commitment_to_date=2.0, line_item_product_code="ComputeSavingsPlans",
          product={"product_name": "Savings Plans for AWS Compute usage"}, line_item_usage_start_date=START,
          line_item_usage_end_date=START + timedelta(hours=1)),
    row(line_item_line_item_description="covered by reservation", line_item_line_item_type="DiscountedUsage",
        reservation_reservation_a_r_n=RESERVATION, reservation_effective_cost=10.5, line_item_unblended_cost=0.0,
        line_item_unblended_rate="0", line_item_usage_amount=75.0, pricing_public_on_demand_cost=7.2),
    _bare("RIFee", 4.0, reservation_reservation_a_r_n=RESERVATION, reservation_unused_recurring_fee=1.0,
          reservation_unused_amortized_upfront_fee_for_billing_period=2.5, reservation_unused_quantity=25.0,
          product_sku="SKU1", line_item_usage_type="HeavyUsage:m5.large", pricing_unit="Hrs"),
    _bare("Fee", 10.0, reservation_reservation_a_r_n=RESERVATION, line_item_line_item_description="upfront",
          line_item_usage_type="HeavyUsage:m5.large"),
    _bare("Tax", 0.21, line_item_tax_type="VAT", line_item_usage_account_id="123456789012"),
    _bare("Credit", -1.25, line_item_product_code="AmazonEC2"),
    _bare("Refund", -0.5, product_sku="SKU1", line_item_usage_type="BoxUsage:m5.large", line_item_usage_amount=None),
    row(line_item_line_item_description="marketplace", bill_billing_entity="AWS Marketplace",
        line_item_product_code="8wdpegl1a1", line_item_legal_entity="MongoDB, Inc.", line_item_resource_id="",
        product={"product_name": "MongoDB Atlas"}, product_sku="", line_item_unblended_cost=3.3,
        line_item_unblended_rate="", pricing_rate_code="", pricing_public_on_demand_cost=None,
        pricing_public_on_demand_rate="", pricing_unit="Units", product_region_code=""),
    row(line_item_line_item_description="late", start=datetime(2025, 10, 31, 23), line_item_unblended_cost=0.5),
    row(line_item_line_item_description="yuan", line_item_currency_code="CNY", line_item_unblended_cost=7.0),
]  # fmt: skip
