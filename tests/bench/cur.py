"""A month of an AWS cost and usage report (CUR 2.0, parquet) made from row numbers: 125 columns, four of them maps.

The same number of rows is always the same report. DuckDB writes it, a file of ``FILE_ROWS`` rows at a time. Types and
sparseness are those of real reports: money and amounts are doubles, most columns are empty on most rows, and the kinds
of charge are usage, reserved and planned usage with the plan's negations, their fees, tax and credits.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

MONTH, FIRST, LAST = "2025-11", "2025-11-01", "2025-11-30"
FILE_ROWS = 100_000
_GROUP_ROWS = 50_000

# A savings plan's negation cancels the row four places before it: ``k`` is what a row is like, ``n`` whose cost it has.
_ROWS = """
SELECT
  n AS place,
  n % 50 AS k,
  CASE WHEN n % 50 >= 46 THEN n - 4 ELSE n END AS n,
  CASE
    WHEN n % 1000 = 0 THEN 'RIFee'
    WHEN n % 1000 = 50 THEN 'SavingsPlanRecurringFee'
    WHEN n % 1000 = 100 THEN 'Tax'
    WHEN n % 1000 = 150 THEN 'Credit'
    WHEN n % 50 < 35 THEN 'Usage'
    WHEN n % 50 < 42 THEN 'DiscountedUsage'
    WHEN n % 50 < 46 THEN 'SavingsPlanCoveredUsage'
    ELSE 'SavingsPlanNegation'
  END AS kind
FROM range({first}, {after}) AS r(n)
"""
_ITEMS = """
SELECT
  *,
  kind NOT IN ('Tax', 'Credit', 'RIFee', 'SavingsPlanRecurringFee') AS is_usage,
  kind = 'DiscountedUsage' OR kind = 'RIFee' AS reserved,
  starts_with(kind, 'SavingsPlan') AS planned,
  TIMESTAMP '{start}' + INTERVAL 1 HOUR * (n % 720) AS began,
  (n * 7919 % 100003) / 1e6 AS amount,
  ((n * 104729 % 999983) + 1) / 1e7 AS cost,
  ['AmazonEC2', 'AmazonS3', 'AmazonRDS', 'AWSLambda', 'AmazonCloudWatch', 'AmazonDynamoDB'][n % 6 + 1] AS code,
  ['us-east-1', 'us-west-2', 'eu-west-1', 'eu-central-1', 'ap-southeast-1'][n % 5 + 1] AS region,
  lpad((n % 40 + 100000000000)::VARCHAR, 12, '0') AS account,
  'SKU' || upper(substr(md5((n % 900)::VARCHAR), 1, 13)) AS sku,
  ['m5.large', 'm6i.xlarge', 'c7g.2xlarge', 'r6g.large', 't4g.medium'][n % 5 + 1] AS machine
FROM ({rows})
JOIN maps ON maps.m = n % 18000
"""
# Maps are made once per kind: DuckDB looks for equal keys in each that it makes.
_MAPS = """
CREATE TABLE maps AS SELECT
  m,
  MAP {'team': 'team-' || m % 12, 'environment': ['production', 'test'][m % 2 + 1]} AS cost_category,
  CASE WHEN m % 9 = 0 THEN MAP {'edp_discount': '-0.0001'} ELSE MAP {}::MAP(VARCHAR, VARCHAR) END AS discount,
  MAP {
    'product_name': 'Amazon ' || ['Elastic Compute Cloud', 'Simple Storage Service', 'Lambda'][m % 3 + 1],
    'region': ['us-east-1', 'us-west-2', 'eu-west-1', 'eu-central-1', 'ap-southeast-1'][m % 5 + 1],
    'instance_family': 'General purpose', 'vcpu': (m % 16)::VARCHAR, 'memory': m % 64 || ' GiB',
    'operating_system': 'Linux', 'tenancy': 'Shared', 'storage': 'EBS only'
  } AS product,
  MAP {
    'user_Name': 'node-' || m, 'user_team': 'team-' || m % 12, 'user_cost_center': (m % 90 + 4000)::VARCHAR,
    'aws_created_by': 'IAMUser:' || m % 300
  } AS resource_tags
FROM range(18000) AS r(m)
"""
_TEXT, _NUMBER, _TIME = "NULL::VARCHAR", "NULL::DOUBLE", "NULL::TIMESTAMP"
_COLUMNS = {
    "bill_bill_type": "'Anniversary'",
    "bill_billing_entity": "'AWS'",
    "bill_billing_period_end_date": "TIMESTAMP '2025-12-01'",
    "bill_billing_period_start_date": "TIMESTAMP '2025-11-01'",
    "bill_invoice_id": _TEXT,
    "bill_invoicing_entity": "'Amazon Web Services EMEA SARL'",
    "bill_payer_account_id": "'100000000000'",
    "bill_payer_account_name": "'Payer'",
    "cost_category": "cost_category",
    "discount": "discount",
    "discount_bundled_discount": _NUMBER,
    "discount_total_discount": _NUMBER,
    "identity_line_item_id": "md5(place::VARCHAR)",
    "identity_time_interval": "strftime(began, '%xT%XZ') || '/' || strftime(began + INTERVAL 1 HOUR, '%xT%XZ')",
    "line_item_availability_zone": "CASE WHEN is_usage THEN region || 'a' END",
    "line_item_blended_cost": "CASE WHEN kind = 'SavingsPlanNegation' THEN -cost ELSE cost END",
    "line_item_blended_rate": "'0.0480000000'",
    "line_item_currency_code": "'USD'",
    "line_item_legal_entity": "'Amazon Web Services, Inc.'",
    "line_item_line_item_description": "'$' || (n % 400) / 1000 || ' per unit of ' || machine || ' in ' || region",
    "line_item_line_item_type": "kind",
    "line_item_net_unblended_cost": _NUMBER,
    "line_item_net_unblended_rate": _TEXT,
    "line_item_normalization_factor": "CASE WHEN reserved THEN 4.0::DOUBLE END",
    "line_item_normalized_usage_amount": "CASE WHEN reserved THEN 4.0 * amount END",
    "line_item_operation": "CASE WHEN is_usage THEN ['RunInstances', 'PutObject', 'CreateDBInstance'][n % 3 + 1] END",
    "line_item_product_code": "code",
    "line_item_resource_id": "CASE WHEN is_usage THEN 'arn:aws:ec2:' || region || ':' || account || ':instance/i-' "
    "|| substr(md5((n % 20000)::VARCHAR), 1, 17) END",
    "line_item_tax_type": "CASE WHEN kind = 'Tax' THEN 'VAT' END",
    "line_item_unblended_cost": "CASE kind WHEN 'SavingsPlanNegation' THEN -cost WHEN 'DiscountedUsage' THEN 0 "
    "WHEN 'Credit' THEN -cost ELSE cost END",
    "line_item_unblended_rate": "CASE WHEN is_usage THEN '0.0480000000' END",
    "line_item_usage_account_id": "account",
    "line_item_usage_account_name": "'Account ' || n % 40",
    "line_item_usage_amount": "CASE WHEN is_usage THEN amount END",
    "line_item_usage_end_date": "began + INTERVAL 1 HOUR",
    "line_item_usage_start_date": "began",
    "line_item_usage_type": "CASE WHEN is_usage THEN 'BoxUsage:' || machine END",
    "pricing_currency": "'USD'",
    "pricing_lease_contract_length": _TEXT,
    "pricing_offering_class": _TEXT,
    "pricing_public_on_demand_cost": "CASE WHEN is_usage THEN cost * 1.5 END",
    "pricing_public_on_demand_rate": "CASE WHEN is_usage THEN '0.0720000000' END",
    "pricing_purchase_option": _TEXT,
    "pricing_rate_code": "sku || '.JRTCKXETXF.6YS6EN2CT7'",
    "pricing_rate_id": "(n % 900 + 1000000)::VARCHAR",
    "pricing_term": "CASE WHEN is_usage THEN 'OnDemand' END",
    "pricing_unit": "CASE WHEN is_usage THEN 'Hrs' END",
    "product": "product",
    "product_comment": _TEXT,
    "product_fee_code": _TEXT,
    "product_fee_description": _TEXT,
    "product_from_location": _TEXT,
    "product_from_location_type": _TEXT,
    "product_from_region_code": _TEXT,
    "product_instance_family": "CASE WHEN is_usage THEN 'General purpose' END",
    "product_instance_type": "CASE WHEN is_usage THEN machine END",
    "product_instancesku": _TEXT,
    "product_location": "region",
    "product_location_type": "'AWS Region'",
    "product_operation": "'RunInstances'",
    "product_pricing_unit": _TEXT,
    "product_product_family": "CASE WHEN is_usage THEN 'Compute Instance' END",
    "product_region_code": "region",
    "product_servicecode": "code",
    "product_sku": "CASE WHEN is_usage THEN sku END",
    "product_to_location": _TEXT,
    "product_to_location_type": _TEXT,
    "product_to_region_code": _TEXT,
    "product_usagetype": "CASE WHEN is_usage THEN 'BoxUsage:' || machine END",
    **dict.fromkeys(
        (
            "reservation_amortized_upfront_cost_for_usage",
            "reservation_amortized_upfront_fee_for_billing_period",
        ),
        "CASE WHEN reserved THEN 0.5 * cost END",
    ),
    "reservation_availability_zone": _TEXT,
    "reservation_effective_cost": "CASE WHEN kind = 'DiscountedUsage' THEN 0.8 * cost END",
    "reservation_end_time": "CASE WHEN reserved THEN '2026-06-01T00:00:00.000Z' END",
    "reservation_modification_status": _TEXT,
    "reservation_net_amortized_upfront_cost_for_usage": _NUMBER,
    "reservation_net_amortized_upfront_fee_for_billing_period": _NUMBER,
    "reservation_net_effective_cost": _NUMBER,
    "reservation_net_recurring_fee_for_usage": _NUMBER,
    "reservation_net_unused_amortized_upfront_fee_for_billing_period": _NUMBER,
    "reservation_net_unused_recurring_fee": _NUMBER,
    "reservation_net_upfront_value": _NUMBER,
    "reservation_normalized_units_per_reservation": _TEXT,
    "reservation_number_of_reservations": _TEXT,
    "reservation_recurring_fee_for_usage": "CASE WHEN reserved THEN 0.3 * cost END",
    "reservation_reservation_a_r_n": "CASE WHEN reserved THEN "
    "'arn:aws:ec2:' || region || ':' || account || ':reserved-instances/r-' || n % 60 END",
    "reservation_start_time": "CASE WHEN reserved THEN '2025-06-01T00:00:00.000Z' END",
    "reservation_subscription_id": "CASE WHEN reserved THEN (n % 60 + 1000000)::VARCHAR END",
    "reservation_total_reserved_normalized_units": _TEXT,
    "reservation_total_reserved_units": _TEXT,
    "reservation_units_per_reservation": _TEXT,
    "reservation_unused_amortized_upfront_fee_for_billing_period": "CASE WHEN kind = 'RIFee' THEN 0.1 * cost END",
    "reservation_unused_normalized_unit_quantity": _NUMBER,
    "reservation_unused_quantity": "CASE WHEN kind = 'RIFee' THEN 3.0::DOUBLE END",
    "reservation_unused_recurring_fee": "CASE WHEN kind = 'RIFee' THEN 0.2 * cost END",
    "reservation_upfront_value": _NUMBER,
    "resource_tags": "resource_tags",
    "savings_plan_amortized_upfront_commitment_for_billing_period": _NUMBER,
    "savings_plan_end_time": "CASE WHEN planned THEN '2026-06-01T00:00:00.000Z' END",
    "savings_plan_instance_type_family": _TEXT,
    "savings_plan_net_amortized_upfront_commitment_for_billing_period": _NUMBER,
    "savings_plan_net_recurring_commitment_for_billing_period": _NUMBER,
    "savings_plan_net_savings_plan_effective_cost": _NUMBER,
    "savings_plan_offering_type": "CASE WHEN planned THEN 'ComputeSavingsPlans' END",
    "savings_plan_payment_option": "CASE WHEN planned THEN 'No Upfront' END",
    "savings_plan_purchase_term": "CASE WHEN planned THEN '1yr' END",
    "savings_plan_recurring_commitment_for_billing_period": _NUMBER,
    "savings_plan_region": _TEXT,
    "savings_plan_savings_plan_a_r_n": "CASE WHEN planned THEN "
    "'arn:aws:savingsplans::100000000000:savingsplan/p-' || n % 8 END",
    "savings_plan_savings_plan_effective_cost": "CASE WHEN kind = 'SavingsPlanCoveredUsage' THEN 0.7 * cost END",
    "savings_plan_savings_plan_rate": "CASE WHEN kind = 'SavingsPlanCoveredUsage' THEN 0.0336::DOUBLE END",
    "savings_plan_start_time": "CASE WHEN planned THEN '2025-06-01T00:00:00.000Z' END",
    "savings_plan_total_commitment_to_date": "CASE WHEN kind = 'SavingsPlanRecurringFee' THEN cost END",
    "savings_plan_used_commitment": "CASE WHEN kind = 'SavingsPlanRecurringFee' THEN 0.9 * cost END",
    "split_line_item_actual_usage": _NUMBER,
    "split_line_item_net_split_cost": _NUMBER,
    "split_line_item_net_unused_cost": _NUMBER,
    "split_line_item_parent_resource_id": _TEXT,
    "split_line_item_public_on_demand_split_cost": _NUMBER,
    "split_line_item_public_on_demand_unused_cost": _NUMBER,
    "split_line_item_reserved_usage": _NUMBER,
    "split_line_item_split_cost": _NUMBER,
    "split_line_item_split_usage": _NUMBER,
    "split_line_item_split_usage_ratio": _NUMBER,
    "split_line_item_unused_cost": _NUMBER,
}

NAMES = tuple(_COLUMNS)
MAPS = ("cost_category", "discount", "product", "resource_tags")


def write(folder: Path, rows: int) -> list[Path]:
    """Writes the report's files into the folder; those that are there already are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with duckdb.connect(config={"threads": "2", "memory_limit": "1GB"}) as engine:
        engine.execute(_MAPS)
        for number, first in enumerate(range(0, rows, FILE_ROWS), 1):
            path = folder / f"cur2-{number:05d}.snappy.parquet"
            made.append(path)
            if path.exists():
                continue
            drafts = _ITEMS.format(start=FIRST, rows=_ROWS.format(first=first, after=min(first + FILE_ROWS, rows)))
            columns = ", ".join(f"{value} AS {name}" for name, value in _COLUMNS.items())
            temporary = path.with_suffix(".new")
            engine.sql(f"SELECT {columns} FROM ({drafts})").write_parquet(
                str(temporary), compression="snappy", row_group_size=_GROUP_ROWS
            )
            temporary.replace(path)
    return made
