-- One row per charge in the columns of focus_cost_and_usage: every row of {billing} (those of azure_cost_billing), but of
-- the actual export, where both exports were read, only what the amortized one lacks: purchases and refunds of commitments.
-- Parameters: @services, @units, @regions, @resource_types STRING (lookups as JSON text), @pipeline_logging_id,
-- @provider, @domain, @template STRING.
-- {target} is the staging table made. Replaces it, so it may run again.
-- BilledCost is what is invoiced: the cost of all but amortized usage of commitments. EffectiveCost is the amortized cost:
-- purchases of commitments have none, used and unused commitments have their share of them. Where only one of the exports
-- was read, what it cannot say is taken from what it has, and x_SourceChanges says so. Money is rounded to nine digits,
-- value by value.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
services AS (
  SELECT
    JSON_VALUE(j, '$.consumed_service') AS consumed_service,
    JSON_VALUE(j, '$.resource_type') AS resource_type,
    JSON_VALUE(j, '$.service') AS service,
    JSON_VALUE(j, '$.category') AS category,
    JSON_VALUE(j, '$.subcategory') AS subcategory
  FROM UNNEST(JSON_QUERY_ARRAY(@services)) AS j
),
categories AS (
  SELECT s.service AS service, MIN(s.category) AS category, MIN(s.subcategory) AS subcategory
  FROM services AS s
  GROUP BY 1
),
units AS (
  SELECT
    JSON_VALUE(j, '$.unit') AS unit,
    CAST(JSON_VALUE(j, '$.block') AS FLOAT64) AS block,
    JSON_VALUE(j, '$.focus_unit') AS focus_unit
  FROM UNNEST(JSON_QUERY_ARRAY(@units)) AS j
),
regions AS (
  SELECT
    JSON_VALUE(j, '$.original') AS original, JSON_VALUE(j, '$.region') AS region, JSON_VALUE(j, '$.name') AS name
  FROM UNNEST(JSON_QUERY_ARRAY(@regions)) AS j
),
resource_types AS (
  SELECT JSON_VALUE(j, '$.resource_type') AS resource_type, JSON_VALUE(j, '$.name') AS name
  FROM UNNEST(JSON_QUERY_ARRAY(@resource_types)) AS j
),
charges AS (
  SELECT
    b.*,
    COALESCE(b.benefit_id, b.reservation_id) AS benefit,
    LOWER(IFNULL(b.charge_type, 'Usage')) AS kind,
    LOWER(IFNULL(b.pricing_model, '')) AS model,
    CASE
      WHEN LOWER(IFNULL(b.pricing_model, '')) = 'savingsplan'
        OR LOWER(IFNULL(b.charge_type, '')) = 'unusedsavingsplan'
        OR STRPOS(LOWER(IFNULL(b.benefit_id, '')), '/microsoft.billingbenefits/') > 0 THEN 'Savings Plan'
      WHEN LOWER(IFNULL(b.pricing_model, '')) = 'reservation'
        OR LOWER(IFNULL(b.charge_type, '')) = 'unusedreservation'
        OR COALESCE(b.benefit_id, b.reservation_id) IS NOT NULL THEN 'Reservation'
    END AS commitment_type,
    CAST(IFNULL(b.cost, 0) AS NUMERIC) AS money,
    LOWER(b.resource_id) AS resource,
    REGEXP_EXTRACT(LOWER(b.resource_id), r'.*/providers/(.+)$') AS resource_path,
    LOWER(TRIM(b.unit_of_measure)) AS measured_in,
    IF(b.exchange_rate > 0, CAST(b.exchange_rate AS FLOAT64), 1.0) AS rate
  FROM {billing} AS b
  WHERE b.quarantine_reason IS NULL
),
chosen AS (
  SELECT
    b.*,
    CASE
      WHEN b.kind IN ('usage', 'unusedreservation', 'unusedsavingsplan') THEN 'Usage'
      WHEN b.kind = 'refund' AND b.commitment_type IS NULL AND LOWER(IFNULL(b.frequency, '')) = 'usagebased' THEN 'Usage'
      WHEN b.kind IN ('purchase', 'refund') THEN 'Purchase'
      WHEN b.kind = 'credit' THEN 'Credit'
      WHEN b.kind = 'tax' THEN 'Tax'
      ELSE 'Adjustment'
    END AS category,
    IF(
      b.commitment_type IS NULL, NULL, COALESCE(b.benefit, b.product_order_id, b.resource_id, b.commitment_type)
    ) AS commitment,
    (
      SELECT STRING_AGG(p, '/' ORDER BY place)
      FROM UNNEST(SPLIT(b.resource_path, '/')) AS p WITH OFFSET AS place
      WHERE place = 0 OR MOD(place, 2) = 1
    ) AS resource_type
  FROM charges AS b
  WHERE b.cost_views != 'BOTH'
    OR b.cost_view = 'AMORTIZED'
    OR (b.commitment_type IS NOT NULL AND b.kind IN ('purchase', 'refund'))
),
priced AS (
  SELECT
    b.*,
    b.category = 'Purchase' AND b.commitment IS NOT NULL AS is_commitment_purchase,
    b.category IN ('Usage', 'Purchase') AS is_priced,
    CASE
      WHEN b.cost_view = 'AMORTIZED' AND b.commitment IS NOT NULL THEN 0
      ELSE b.money
    END AS billed,
    CASE
      WHEN b.cost_views = 'BOTH' AND b.cost_view = 'ACTUAL' THEN 0
      ELSE b.money
    END AS effective,
    IF(
      b.category IN ('Usage', 'Purchase'),
      COALESCE(b.product_id, b.meter_id, b.part_number, b.product_order_id, b.commitment, b.product_name), NULL
    ) AS sku,
    IFNULL(u.block, 1.0) AS block,
    COALESCE(u.focus_unit, NULLIF(TRIM(b.unit_of_measure), ''), 'Units') AS unit,
    IFNULL(CAST(b.quantity AS FLOAT64), IF(b.category = 'Purchase', 1.0, NULL)) AS amount,
    -- Zero stands for "none" in both price columns. What is not invoiced may be reckoned in floating point.
    NULLIF(CAST(b.unit_price AS FLOAT64), 0) * b.rate AS contracted_price,
    NULLIF(CAST(b.payg_price AS FLOAT64), 0) * b.rate AS list_price,
    COALESCE(s.service, d.service, b.meter_category, b.product_name, b.publisher_name, 'Unassigned') AS service,
    s.service IS NULL AND d.service IS NULL AS is_service_unknown,
    NULLIF(LOWER(TRIM(b.resource_location)), '') AS place,
    IFNULL(b.publisher_name, 'Microsoft') AS publisher,
    COALESCE(
      JSON_VALUE(b.additional_info, '$.VMCapacityReservationId'),
      JSON_VALUE(b.additional_info, '$.CapacityReservationId')
    ) AS capacity_reservation,
    JSON_VALUE(b.additional_info, '$.ServiceType') AS service_type,
    JSON_VALUE(b.additional_info, '$.ImageType') AS image_type,
    JSON_VALUE(b.additional_info, '$.UsageType') AS usage_type
  FROM chosen AS b
  LEFT JOIN units AS u ON u.unit = b.measured_in
  LEFT JOIN services AS s ON s.consumed_service = LOWER(b.consumed_service) AND s.resource_type = b.resource_type
  LEFT JOIN services AS d ON d.consumed_service = LOWER(b.consumed_service) AND d.resource_type = ''
),
costed AS (
  SELECT
    b.*,
    CASE
      WHEN STARTS_WITH(b.kind, 'unused') THEN 0
      WHEN b.kind != 'usage' THEN b.money
      ELSE COALESCE(CAST(b.contracted_price * b.amount AS NUMERIC), b.money)
    END AS contracted,
    CASE
      WHEN STARTS_WITH(b.kind, 'unused') THEN 0
      WHEN b.kind != 'usage' THEN b.money
      ELSE COALESCE(
        CAST(b.payg_cost_in_billing_currency AS NUMERIC), CAST(b.list_price * b.amount AS NUMERIC),
        CAST(b.contracted_price * b.amount AS NUMERIC), b.money
      )
    END AS listed
  FROM priced AS b
)
SELECT
  b.availability_zone AS AvailabilityZone,
  b.billed AS BilledCost,
  COALESCE(b.billing_profile_id, b.billing_account_id) AS BillingAccountId,
  COALESCE(b.billing_profile_name, b.billing_account_name, b.billing_profile_id, b.billing_account_id)
    AS BillingAccountName,
  IF(
    IFNULL(b.billing_profile_id, b.billing_account_id) = IFNULL(b.billing_account_id, b.billing_profile_id),
    'Billing Account', 'Billing Profile'
  ) AS BillingAccountType,
  b.billing_currency AS BillingCurrency,
  TIMESTAMP(DATE_ADD(b.billing_period_end, INTERVAL 1 DAY)) AS BillingPeriodEnd,
  TIMESTAMP(b.billing_period_start) AS BillingPeriodStart,
  b.capacity_reservation AS CapacityReservationId,
  CASE
    WHEN b.capacity_reservation IS NULL OR b.category != 'Usage' THEN NULL
    WHEN LOWER(b.capacity_reservation) = b.resource THEN 'Unused'
    ELSE 'Used'
  END AS CapacityReservationStatus,
  b.category AS ChargeCategory,
  IF(b.kind = 'refund', 'Correction', NULL) AS ChargeClass,
  COALESCE(b.product_name, b.meter_name, b.charge_type) AS ChargeDescription,
  CASE LOWER(b.frequency)
    WHEN 'onetime' THEN 'One-Time'
    WHEN 'recurring' THEN 'Recurring'
    WHEN 'usagebased' THEN IF(b.category = 'Purchase', 'One-Time', 'Usage-Based')
    ELSE IF(b.category = 'Usage', 'Usage-Based', 'One-Time')
  END AS ChargeFrequency,
  TIMESTAMP(DATE_ADD(b.charge_date, INTERVAL 1 DAY)) AS ChargePeriodEnd,
  TIMESTAMP(b.charge_date) AS ChargePeriodStart,
  CASE b.commitment_type WHEN 'Savings Plan' THEN 'Spend' WHEN 'Reservation' THEN 'Usage' END
    AS CommitmentDiscountCategory,
  b.commitment AS CommitmentDiscountId,
  IF(b.commitment IS NULL, NULL, COALESCE(b.benefit_name, b.reservation_name, b.product_order_name, b.product_name))
    AS CommitmentDiscountName,
  CASE
    WHEN b.commitment IS NULL OR NOT b.is_priced THEN NULL
    WHEN b.commitment_type = 'Savings Plan' THEN CAST(b.money AS FLOAT64)
    ELSE b.amount
  END AS CommitmentDiscountQuantity,
  CASE
    WHEN b.commitment IS NULL OR b.category != 'Usage' THEN NULL
    WHEN STARTS_WITH(b.kind, 'unused') THEN 'Unused'
    ELSE 'Used'
  END AS CommitmentDiscountStatus,
  b.commitment_type AS CommitmentDiscountType,
  CASE
    WHEN b.commitment IS NULL OR NOT b.is_priced THEN NULL
    WHEN b.commitment_type = 'Savings Plan' THEN b.billing_currency
    WHEN b.amount IS NOT NULL THEN b.unit
  END AS CommitmentDiscountUnit,
  IF(b.kind = 'usage', b.amount, NULL) AS ConsumedQuantity,
  IF(b.kind = 'usage' AND b.amount IS NOT NULL, b.unit, NULL) AS ConsumedUnit,
  b.contracted AS ContractedCost,
  IF(b.is_priced AND b.sku IS NOT NULL, CAST(b.contracted_price * b.block AS NUMERIC), NULL) AS ContractedUnitPrice,
  b.effective AS EffectiveCost,
  b.invoice_id AS InvoiceId,
  IFNULL(b.partner_name, 'Microsoft') AS InvoiceIssuerName,
  b.listed AS ListCost,
  IF(b.is_priced AND b.sku IS NOT NULL, CAST(b.list_price * b.block AS NUMERIC), NULL) AS ListUnitPrice,
  CASE
    WHEN NOT b.is_priced THEN NULL
    WHEN b.category = 'Usage' AND b.commitment IS NOT NULL THEN 'Committed'
    WHEN b.model = 'spot' OR REGEXP_CONTAINS(LOWER(IFNULL(b.meter_name, '')), r'\bspot\b') THEN 'Dynamic'
    ELSE 'Standard'
  END AS PricingCategory,
  IFNULL(b.pricing_currency, b.billing_currency) AS PricingCurrency,
  IF(b.is_priced AND b.sku IS NOT NULL, CAST(b.contracted_price * b.block / b.rate AS NUMERIC), NULL)
    AS PricingCurrencyContractedUnitPrice,
  IF(b.rate = 1, b.effective, CAST(CAST(b.effective AS FLOAT64) / b.rate AS NUMERIC)) AS PricingCurrencyEffectiveCost,
  IF(b.is_priced AND b.sku IS NOT NULL, CAST(b.list_price * b.block / b.rate AS NUMERIC), NULL)
    AS PricingCurrencyListUnitPrice,
  IF(b.is_priced, b.amount / b.block, NULL) AS PricingQuantity,
  IF(b.is_priced AND b.amount IS NOT NULL, b.unit, NULL) AS PricingUnit,
  'Microsoft' AS ProviderName,
  b.publisher AS PublisherName,
  IF(b.place IS NULL, NULL, COALESCE(r.region, REPLACE(b.place, ' ', ''))) AS RegionId,
  IF(b.place IS NULL, NULL, COALESCE(r.name, b.resource_location)) AS RegionName,
  IF(b.is_commitment_purchase OR STARTS_WITH(b.kind, 'unused'), b.commitment, b.resource) AS ResourceId,
  CASE
    WHEN b.is_commitment_purchase OR STARTS_WITH(b.kind, 'unused')
      THEN COALESCE(b.benefit_name, b.reservation_name, b.product_name, b.commitment)
    WHEN b.resource IS NOT NULL
      THEN COALESCE(b.resource_name, REGEXP_EXTRACT(b.resource_id, r'([^/]+)/?$'), b.resource_id)
  END AS ResourceName,
  CASE
    WHEN b.is_commitment_purchase OR STARTS_WITH(b.kind, 'unused') THEN b.commitment_type
    WHEN b.resource IS NOT NULL THEN COALESCE(t.name, b.resource_type, b.service)
  END AS ResourceType,
  IFNULL(g.category, 'Other') AS ServiceCategory,
  b.service AS ServiceName,
  IFNULL(g.subcategory, 'Other (Other)') AS ServiceSubcategory,
  b.sku AS SkuId,
  IF(b.sku IS NULL, NULL, COALESCE(b.meter_name, b.product_name)) AS SkuMeter,
  IF(
    b.sku IS NOT NULL
      AND COALESCE(b.service_type, b.image_type, b.usage_type, b.term) IS NOT NULL,
    PARSE_JSON(CONCAT('{', ARRAY_TO_STRING([
      IF(b.service_type IS NULL, NULL, CONCAT('"x_ServiceType":', TO_JSON_STRING(b.service_type))),
      IF(b.image_type IS NULL, NULL, CONCAT('"x_ImageType":', TO_JSON_STRING(b.image_type))),
      IF(b.usage_type IS NULL, NULL, CONCAT('"x_UsageType":', TO_JSON_STRING(b.usage_type))),
      IF(b.term IS NULL, NULL, CONCAT('"x_Term":', TO_JSON_STRING(b.term)))
    ], ','), '}'), wide_number_mode => 'round'),
    NULL
  ) AS SkuPriceDetails,
  IF(b.sku IS NULL, NULL, COALESCE(b.part_number, b.sku)) AS SkuPriceId,
  b.subscription_id AS SubAccountId,
  IF(b.subscription_id IS NULL, NULL, IFNULL(b.subscription_name, b.subscription_id)) AS SubAccountName,
  IF(b.subscription_id IS NULL, NULL, 'Subscription') AS SubAccountType,
  IFNULL(b.tags, JSON '{}') AS Tags,
  'Microsoft' AS HostProviderName,
  b.publisher AS ServiceProviderName,
  b.usage_date AS x_ChargeDate,
  'azure' AS x_Provider,
  'CHARGE' AS x_RowKind,
  FORMAT_DATE('%Y%m', b.billing_period_start) AS x_InvoiceMonth,
  CAST(b.exchange_rate AS FLOAT64) AS x_CurrencyConversionRate,
  NULLIF(ARRAY_TO_STRING([
    IF(b.charge_date != b.usage_date, 'x_ChargeDate inside the billing period, as the charge is dated outside', NULL),
    IF(b.cost IS NULL, 'BilledCost without cost, as the row has none', NULL),
    IF(b.money != b.cost, 'BilledCost and EffectiveCost to nine digits', NULL),
    IF(b.cost_views = 'ACTUAL' AND b.commitment IS NOT NULL, 'EffectiveCost from the actual cost, not amortized', NULL),
    IF(
      b.cost_views = 'AMORTIZED' AND b.commitment IS NOT NULL,
      'BilledCost without the purchase, which the amortized export lacks', NULL
    ),
    IF(
      b.kind = 'usage' AND b.payg_cost_in_billing_currency IS NULL AND b.list_price IS NULL,
      'ListCost from the contracted cost, as the row has no list price', NULL
    ),
    IF(
      b.kind = 'usage' AND b.contracted_price IS NULL, 'ContractedCost from cost, as the row has no unit price', NULL
    ),
    IF(b.category = 'Purchase', 'ListCost and ContractedCost from cost', NULL),
    IF(
      b.category = 'Purchase' AND LOWER(b.frequency) = 'usagebased', 'ChargeFrequency One-Time, as it is a purchase', NULL
    ),
    IF(b.category = 'Purchase' AND b.quantity IS NULL, 'PricingQuantity one, as the row has none', NULL),
    IF(b.is_priced AND b.measured_in IS NULL, 'PricingUnit Units, as the row has none', NULL),
    IF(b.sku IS NOT NULL AND b.product_id IS NULL, 'SkuId from the meter, else the order', NULL),
    IF(b.is_service_unknown, 'ServiceName from the meter category, else the product', NULL),
    IF(b.commitment IS NOT NULL AND b.benefit_id IS NULL, 'CommitmentDiscountId not from BenefitId', NULL),
    IF(b.publisher_name IS NULL, 'PublisherName Microsoft, as the row has none', NULL)
  ], '; '), '') AS x_SourceChanges,
  CAST(NULL AS STRING) AS x_CostType,
  CAST(NULL AS STRING) AS x_ServiceId,
  CAST(NULL AS JSON) AS x_Credits,
  CAST(NULL AS TIMESTAMP) AS x_ExportTime,
  CAST(NULL AS JSON) AS x_Location,
  CAST(NULL AS JSON) AS x_Project,
  CAST(NULL AS JSON) AS x_CostCategories,
  CAST(NULL AS JSON) AS x_Discounts,
  CAST(NULL AS STRING) AS x_Operation,
  CAST(NULL AS STRING) AS x_ServiceCode,
  CAST(NULL AS STRING) AS x_UsageType,
  CONCAT(@provider, '/', @domain, '/', @template) AS x_SourceTemplate,
  @pipeline_logging_id AS x_PipelineLoggingId
FROM costed AS b
LEFT JOIN regions AS r ON r.original = b.place
LEFT JOIN resource_types AS t ON t.resource_type = b.resource_type
LEFT JOIN categories AS g ON g.service = b.service
