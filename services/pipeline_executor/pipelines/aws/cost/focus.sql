-- Charges in the columns of focus_cost_and_usage: one row per line item of {billing} (those of aws_cost_billing) that
-- is no negation of a savings plan, and one more for what was paid of a reservation or savings plan and nobody used.
-- Parameters: @services, @units, @regions STRING (lookups as JSON text), @pipeline_logging_id, @provider, @domain,
-- @template STRING.
-- {target} is the staging table made. Replaces it, so it may run again.
-- BilledCost is what is invoiced: the net cost where the payer has one, else the unblended one. What a savings plan
-- covers is invoiced by the plan's fee, so that its line items and their negations, which cancel, are billed nothing.
-- EffectiveCost spreads the fees of commitments over what they cover and what nobody used. With net costs, items of
-- discounts repeat what those hold already, and count with their own net cost only. Money is rounded to nine digits,
-- value by value.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
services AS (
  SELECT
    JSON_VALUE(j, '$.product_code') AS product_code,
    JSON_VALUE(j, '$.category') AS category,
    JSON_VALUE(j, '$.subcategory') AS subcategory
  FROM UNNEST(JSON_QUERY_ARRAY(@services)) AS j
),
units AS (
  SELECT JSON_VALUE(j, '$.unit') AS unit, JSON_VALUE(j, '$.focus_unit') AS focus_unit
  FROM UNNEST(JSON_QUERY_ARRAY(@units)) AS j
),
regions AS (
  SELECT JSON_VALUE(j, '$.region') AS region, JSON_VALUE(j, '$.name') AS name
  FROM UNNEST(JSON_QUERY_ARRAY(@regions)) AS j
),
nets AS (
  SELECT COUNTIF(b.line_item_net_unblended_cost IS NOT NULL) > 0 AS are_there
  FROM {billing} AS b
  WHERE b.quarantine_reason IS NULL
),
items AS (
  SELECT
    b.*,
    b.line_item_line_item_type AS kind,
    b.line_item_line_item_type IN (
      'EdpDiscount', 'BundledDiscount', 'PrivateRateDiscount', 'Discount', 'SppDiscount', 'DistributorDiscount'
    ) AS is_discount,
    n.are_there AS has_net,
    CASE
      WHEN b.savings_plan_savings_plan_a_r_n IS NOT NULL OR STARTS_WITH(b.line_item_line_item_type, 'SavingsPlan')
        THEN 'Savings Plan'
      WHEN b.reservation_reservation_a_r_n IS NOT NULL OR b.line_item_line_item_type IN ('DiscountedUsage', 'RIFee')
        THEN 'Reserved Instance'
    END AS commitment_type,
    COALESCE(
      b.savings_plan_savings_plan_a_r_n, b.reservation_reservation_a_r_n, b.reservation_subscription_id,
      b.line_item_resource_id, b.line_item_line_item_type
    ) AS commitment_name,
    CAST(IFNULL(b.line_item_unblended_cost, 0) AS NUMERIC) AS unblended,
    CAST(b.line_item_net_unblended_cost AS NUMERIC) AS net,
    CAST(
      COALESCE(b.savings_plan_net_savings_plan_effective_cost, b.savings_plan_savings_plan_effective_cost, 0) AS NUMERIC
    ) AS plan_share,
    CAST(COALESCE(b.reservation_net_effective_cost, b.reservation_effective_cost, 0) AS NUMERIC) AS reserved_share,
    CAST(
      COALESCE(
        b.reservation_net_unused_amortized_upfront_fee_for_billing_period,
        b.reservation_unused_amortized_upfront_fee_for_billing_period, 0
      ) + COALESCE(b.reservation_net_unused_recurring_fee, b.reservation_unused_recurring_fee, 0) AS NUMERIC
    ) AS reserved_unused,
    CAST(IFNULL(b.savings_plan_total_commitment_to_date, 0) - IFNULL(b.savings_plan_used_commitment, 0) AS NUMERIC)
      AS plan_unused,
    LOWER(TRIM(b.pricing_unit)) AS measured_in,
    COALESCE(b.product_product_name, b.line_item_product_code, b.line_item_legal_entity, 'Unassigned') AS service
  FROM {billing} AS b
  CROSS JOIN nets AS n
  WHERE b.quarantine_reason IS NULL AND b.line_item_line_item_type != 'SavingsPlanNegation'
),
categories AS (
  SELECT
    c.service,
    SPLIT(c.first_one, '|')[OFFSET(0)] AS category,
    SPLIT(c.first_one, '|')[OFFSET(1)] AS subcategory
  FROM (
    SELECT i.service AS service, MIN(CONCAT(s.category, '|', s.subcategory)) AS first_one
    FROM items AS i
    JOIN services AS s ON s.product_code = i.line_item_product_code
    GROUP BY 1
  ) AS c
),
doubled AS (
  SELECT b.*, part
  FROM items AS b
  CROSS JOIN UNNEST(['CHARGE', 'UNUSED']) AS part
  WHERE part = 'CHARGE'
    OR (b.kind = 'RIFee' AND b.reserved_unused != 0)
    OR (b.kind = 'SavingsPlanRecurringFee' AND b.plan_unused != 0)
),
sorted AS (
  SELECT
    b.*,
    CASE
      WHEN b.part = 'UNUSED' THEN 'Usage'
      WHEN b.kind IN ('Usage', 'DiscountedUsage', 'SavingsPlanCoveredUsage') OR b.is_discount THEN 'Usage'
      WHEN b.kind IN ('Fee', 'RIFee', 'SavingsPlanUpfrontFee', 'SavingsPlanRecurringFee') THEN 'Purchase'
      WHEN b.kind = 'Tax' OR (b.kind = 'Refund' AND b.line_item_tax_type IS NOT NULL) THEN 'Tax'
      WHEN b.kind = 'Credit' THEN 'Credit'
      WHEN b.kind = 'Refund' AND b.commitment_type IS NOT NULL THEN 'Purchase'
      WHEN b.kind = 'Refund' AND b.product_sku IS NOT NULL THEN 'Usage'
      ELSE 'Adjustment'
    END AS category,
    IF(b.commitment_type IS NULL, NULL, b.commitment_name) AS commitment
  FROM doubled AS b
),
costed AS (
  SELECT
    b.*,
    b.category IN ('Usage', 'Purchase') AS is_priced,
    b.part = 'CHARGE' AND b.kind IN ('Usage', 'DiscountedUsage', 'SavingsPlanCoveredUsage') AS is_usage,
    b.part = 'UNUSED' OR b.kind IN ('RIFee', 'SavingsPlanUpfrontFee', 'SavingsPlanRecurringFee')
      OR (b.kind IN ('Fee', 'Refund') AND b.commitment IS NOT NULL) AS is_of_commitment,
    CASE
      WHEN b.part = 'UNUSED' OR b.kind = 'SavingsPlanCoveredUsage' THEN 0
      WHEN b.has_net AND b.is_discount THEN IFNULL(b.net, 0)
      ELSE COALESCE(b.net, b.unblended)
    END AS billed,
    CASE
      WHEN b.part = 'UNUSED' AND b.kind = 'RIFee' THEN b.reserved_unused
      WHEN b.part = 'UNUSED' THEN b.plan_unused
      WHEN b.kind = 'SavingsPlanCoveredUsage' THEN b.plan_share
      WHEN b.kind = 'DiscountedUsage' THEN b.reserved_share
      WHEN b.kind IN ('RIFee', 'SavingsPlanUpfrontFee', 'SavingsPlanRecurringFee') THEN 0
      WHEN b.kind IN ('Fee', 'Refund') AND b.commitment IS NOT NULL THEN 0
      WHEN b.has_net AND b.is_discount THEN IFNULL(b.net, 0)
      ELSE COALESCE(b.net, b.unblended)
    END AS effective,
    IF(
      b.category IN ('Usage', 'Purchase'),
      COALESCE(b.product_sku, b.pricing_rate_code, b.line_item_usage_type, b.commitment, b.line_item_product_code), NULL
    ) AS sku,
    COALESCE(u.focus_unit, NULLIF(TRIM(b.pricing_unit), ''), 'Units') AS unit,
    IF(
      b.part = 'UNUSED', NULL, IFNULL(CAST(b.line_item_usage_amount AS FLOAT64), IF(b.category = 'Purchase', 1.0, NULL))
    ) AS amount,
    CAST(b.line_item_normalized_usage_amount AS FLOAT64) AS normalized,
    CAST(b.pricing_public_on_demand_rate AS NUMERIC) AS list_price,
    CAST(b.pricing_public_on_demand_cost AS NUMERIC) AS list_cost,
    CAST(b.line_item_unblended_rate AS NUMERIC) AS rate
  FROM sorted AS b
  LEFT JOIN units AS u ON u.unit = b.measured_in
),
priced AS (
  SELECT
    b.*,
    CASE
      WHEN b.part = 'UNUSED' THEN 0
      WHEN NOT b.is_usage THEN b.billed
      WHEN b.kind = 'Usage' THEN b.unblended
      ELSE COALESCE(b.list_cost, b.unblended)
    END AS contracted,
    CASE
      WHEN b.part = 'UNUSED' THEN 0
      WHEN NOT b.is_usage THEN b.billed
      ELSE COALESCE(b.list_cost, b.unblended)
    END AS listed,
    IF(b.kind = 'Usage', COALESCE(b.rate, b.list_price), b.list_price) AS contracted_price
  FROM costed AS b
)
SELECT
  b.line_item_availability_zone AS AvailabilityZone,
  b.billed AS BilledCost,
  b.bill_payer_account_id AS BillingAccountId,
  IFNULL(b.bill_payer_account_name, b.bill_payer_account_id) AS BillingAccountName,
  'Management Account' AS BillingAccountType,
  b.line_item_currency_code AS BillingCurrency,
  TIMESTAMP(DATE_ADD(b.billing_period, INTERVAL 1 MONTH)) AS BillingPeriodEnd,
  TIMESTAMP(b.billing_period) AS BillingPeriodStart,
  CAST(NULL AS STRING) AS CapacityReservationId,
  CAST(NULL AS STRING) AS CapacityReservationStatus,
  b.category AS ChargeCategory,
  IF(b.kind = 'Refund', 'Correction', NULL) AS ChargeClass,
  IF(
    b.part = 'UNUSED', CONCAT('Unused part of ', b.commitment),
    COALESCE(b.line_item_line_item_description, b.line_item_usage_type, b.kind)
  ) AS ChargeDescription,
  CASE
    WHEN b.part = 'UNUSED' OR b.is_usage OR b.is_discount THEN 'Usage-Based'
    WHEN b.kind IN ('RIFee', 'SavingsPlanRecurringFee') THEN 'Recurring'
    ELSE 'One-Time'
  END AS ChargeFrequency,
  IF(
    b.line_item_usage_end_date > b.line_item_usage_start_date, b.line_item_usage_end_date,
    TIMESTAMP_ADD(b.line_item_usage_start_date, INTERVAL 1 SECOND)
  ) AS ChargePeriodEnd,
  b.line_item_usage_start_date AS ChargePeriodStart,
  CASE b.commitment_type WHEN 'Savings Plan' THEN 'Spend' WHEN 'Reserved Instance' THEN 'Usage' END
    AS CommitmentDiscountCategory,
  b.commitment AS CommitmentDiscountId,
  IF(b.commitment IS NULL, NULL, IFNULL(REGEXP_EXTRACT(b.commitment, r'([^/:]+)$'), b.commitment))
    AS CommitmentDiscountName,
  CASE
    WHEN b.commitment IS NULL OR NOT b.is_priced THEN NULL
    WHEN b.commitment_type = 'Savings Plan' THEN CAST(IF(b.category = 'Purchase', b.billed, b.effective) AS FLOAT64)
    WHEN b.part = 'UNUSED'
      THEN CAST(COALESCE(b.reservation_unused_normalized_unit_quantity, b.reservation_unused_quantity, 0) AS FLOAT64)
    ELSE COALESCE(b.normalized, b.amount)
  END AS CommitmentDiscountQuantity,
  CASE
    WHEN b.commitment IS NULL OR b.category != 'Usage' THEN NULL
    WHEN b.part = 'UNUSED' THEN 'Unused'
    ELSE 'Used'
  END AS CommitmentDiscountStatus,
  b.commitment_type AS CommitmentDiscountType,
  CASE
    WHEN b.commitment IS NULL OR NOT b.is_priced THEN NULL
    WHEN b.commitment_type = 'Savings Plan' THEN b.line_item_currency_code
    WHEN b.part = 'UNUSED'
      THEN IF(b.reservation_unused_normalized_unit_quantity IS NULL, b.unit, 'Normalized Units')
    WHEN b.normalized IS NOT NULL THEN 'Normalized Units'
    WHEN b.amount IS NOT NULL THEN b.unit
  END AS CommitmentDiscountUnit,
  IF(b.is_usage, b.amount, NULL) AS ConsumedQuantity,
  IF(b.is_usage AND b.amount IS NOT NULL, b.unit, NULL) AS ConsumedUnit,
  b.contracted AS ContractedCost,
  IF(b.is_priced AND b.part = 'CHARGE', b.contracted_price, NULL) AS ContractedUnitPrice,
  b.effective AS EffectiveCost,
  b.bill_invoice_id AS InvoiceId,
  COALESCE(b.bill_invoicing_entity, b.line_item_legal_entity, 'AWS') AS InvoiceIssuerName,
  b.listed AS ListCost,
  IF(b.is_priced AND b.part = 'CHARGE', b.list_price, NULL) AS ListUnitPrice,
  CASE
    WHEN NOT b.is_priced THEN NULL
    WHEN b.category = 'Usage' AND b.commitment IS NOT NULL THEN 'Committed'
    WHEN b.pricing_purchase_option = 'Spot' OR b.pricing_term = 'Spot'
      OR STRPOS(IFNULL(b.line_item_usage_type, ''), 'SpotUsage') > 0 THEN 'Dynamic'
    ELSE 'Standard'
  END AS PricingCategory,
  b.line_item_currency_code AS PricingCurrency,
  IF(b.is_priced AND b.part = 'CHARGE', b.contracted_price, NULL) AS PricingCurrencyContractedUnitPrice,
  b.effective AS PricingCurrencyEffectiveCost,
  IF(b.is_priced AND b.part = 'CHARGE', b.list_price, NULL) AS PricingCurrencyListUnitPrice,
  IF(b.is_priced, IFNULL(b.amount, 0), NULL) AS PricingQuantity,
  IF(b.is_priced, b.unit, NULL) AS PricingUnit,
  'AWS' AS ProviderName,
  IFNULL(b.line_item_legal_entity, 'AWS') AS PublisherName,
  b.product_region_code AS RegionId,
  IF(b.product_region_code IS NULL, NULL, COALESCE(r.name, b.product_location, b.product_region_code)) AS RegionName,
  IF(b.is_of_commitment, b.commitment, b.line_item_resource_id) AS ResourceId,
  CASE
    WHEN b.is_of_commitment THEN IFNULL(REGEXP_EXTRACT(b.commitment, r'([^/:]+)$'), b.commitment)
    WHEN b.line_item_resource_id IS NOT NULL
      THEN COALESCE(
        JSON_VALUE(b.resource_tags, '$."user:Name"'), JSON_VALUE(b.resource_tags, '$.user_Name'),
        JSON_VALUE(b.resource_tags, '$.user_name'),
        REGEXP_EXTRACT(b.line_item_resource_id, r'([^/:]+)[/:]?$'), b.line_item_resource_id
      )
  END AS ResourceName,
  CASE
    WHEN b.is_of_commitment THEN b.commitment_type
    WHEN b.line_item_resource_id IS NOT NULL
      THEN COALESCE(
        REGEXP_EXTRACT(b.line_item_resource_id, r'^arn:[^:]*:[^:]*:[^:]*:[^:]*:([a-z][a-z0-9-]*)[/:]'),
        REGEXP_EXTRACT(b.line_item_resource_id, r'^arn:[^:]*:([^:]+):'), b.product_product_family, b.service
      )
  END AS ResourceType,
  IFNULL(g.category, 'Other') AS ServiceCategory,
  b.service AS ServiceName,
  IFNULL(g.subcategory, 'Other (Other)') AS ServiceSubcategory,
  b.sku AS SkuId,
  IF(b.sku IS NULL, NULL, COALESCE(b.line_item_usage_type, b.product_usagetype, b.line_item_line_item_description))
    AS SkuMeter,
  IF(
    b.sku IS NOT NULL
      AND COALESCE(b.product_instance_type, b.product_product_family, b.pricing_term, b.pricing_purchase_option)
        IS NOT NULL,
    PARSE_JSON(CONCAT('{', ARRAY_TO_STRING([
      IF(b.product_instance_type IS NULL, NULL, CONCAT('"x_InstanceType":', TO_JSON_STRING(b.product_instance_type))),
      IF(
        b.product_product_family IS NULL, NULL, CONCAT('"x_ProductFamily":', TO_JSON_STRING(b.product_product_family))
      ),
      IF(b.pricing_term IS NULL, NULL, CONCAT('"x_Term":', TO_JSON_STRING(b.pricing_term))),
      IF(
        b.pricing_purchase_option IS NULL, NULL,
        CONCAT('"x_PurchaseOption":', TO_JSON_STRING(b.pricing_purchase_option))
      )
    ], ','), '}'), wide_number_mode => 'round'),
    NULL
  ) AS SkuPriceDetails,
  IF(b.sku IS NULL, NULL, COALESCE(b.pricing_rate_code, b.pricing_rate_id, b.sku)) AS SkuPriceId,
  b.line_item_usage_account_id AS SubAccountId,
  IF(
    b.line_item_usage_account_id IS NULL, NULL, IFNULL(b.line_item_usage_account_name, b.line_item_usage_account_id)
  ) AS SubAccountName,
  IF(b.line_item_usage_account_id IS NULL, NULL, 'Account') AS SubAccountType,
  -- A quote inside of a value is escaped, so that only keys can follow a brace or comma with one.
  IFNULL(
    PARSE_JSON(
      REGEXP_REPLACE(TO_JSON_STRING(b.resource_tags), r'([{,])"user[:_]', r'\1"'), wide_number_mode => 'round'
    ),
    JSON '{}'
  ) AS Tags,
  'AWS' AS HostProviderName,
  IF(b.bill_billing_entity = 'AWS Marketplace', IFNULL(b.line_item_legal_entity, 'AWS Marketplace'), 'AWS')
    AS ServiceProviderName,
  b.usage_date AS x_ChargeDate,
  'aws' AS x_Provider,
  b.part AS x_RowKind,
  FORMAT_DATE('%Y%m', b.billing_period) AS x_InvoiceMonth,
  b.cost_category AS x_CostCategories,
  b.discount AS x_Discounts,
  b.line_item_operation AS x_Operation,
  COALESCE(b.product_servicecode, b.line_item_product_code) AS x_ServiceCode,
  b.line_item_usage_type AS x_UsageType,
  NULLIF(ARRAY_TO_STRING([
    IF(b.part = 'UNUSED', 'own row for the part of the commitment that nobody used', NULL),
    IF(
      DATE(b.line_item_usage_start_date) != b.usage_date,
      'x_ChargeDate inside the billing period, as the charge is dated outside', NULL
    ),
    IF(
      b.part = 'CHARGE' AND NOT IFNULL(b.line_item_usage_end_date > b.line_item_usage_start_date, FALSE),
      'ChargePeriodEnd a second after its start, as the row has no later one', NULL
    ),
    IF(b.line_item_unblended_cost IS NULL, 'BilledCost without cost, as the row has none', NULL),
    IF(b.unblended != b.line_item_unblended_cost, 'BilledCost and EffectiveCost to nine digits', NULL),
    IF(b.part = 'CHARGE' AND b.net IS NOT NULL, 'BilledCost from the net cost', NULL),
    IF(b.has_net AND b.is_discount, 'BilledCost from the net cost only, as net costs hold the discount', NULL),
    IF(
      b.kind = 'SavingsPlanCoveredUsage', 'BilledCost zero, as the fee of the plan is billed and its negation left out',
      NULL
    ),
    IF(b.is_usage AND b.list_cost IS NULL, 'ListCost from the cost, as the row has no public price', NULL),
    IF(
      b.is_usage AND b.kind != 'Usage', 'ContractedCost from the public price, as a commitment covers the row', NULL
    ),
    IF(NOT b.is_usage AND b.is_priced, 'ListCost and ContractedCost from the billed cost', NULL),
    IF(b.part = 'CHARGE' AND b.is_priced AND b.line_item_usage_amount IS NULL, 'PricingQuantity made up', NULL),
    IF(b.is_priced AND b.measured_in IS NULL, 'PricingUnit Units, as the row has none', NULL),
    IF(b.sku IS NOT NULL AND b.product_sku IS NULL, 'SkuId from the rate, else the usage type', NULL),
    IF(b.product_product_name IS NULL, 'ServiceName from the product code', NULL),
    IF(b.bill_payer_account_name IS NULL, 'BillingAccountName from its id', NULL),
    IF(b.line_item_legal_entity IS NULL, 'PublisherName AWS, as the row has none', NULL)
  ], '; '), '') AS x_SourceChanges,
  CAST(NULL AS STRING) AS x_CostType,
  CAST(NULL AS STRING) AS x_ServiceId,
  CAST(NULL AS JSON) AS x_Credits,
  CAST(NULL AS FLOAT64) AS x_CurrencyConversionRate,
  CAST(NULL AS TIMESTAMP) AS x_ExportTime,
  CAST(NULL AS JSON) AS x_Location,
  CAST(NULL AS JSON) AS x_Project,
  CONCAT(@provider, '/', @domain, '/', @template) AS x_SourceTemplate,
  @pipeline_logging_id AS x_PipelineLoggingId
FROM priced AS b
LEFT JOIN regions AS r ON r.region = b.product_region_code
LEFT JOIN categories AS g ON g.service = b.service
