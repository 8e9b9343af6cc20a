-- One row per charge in the columns of focus_cost_and_usage, all rows of {billing} (those of gcp_cost_billing) as
-- x_RowKind CHARGE; beside them one row per PROMOTION credit, and one per commitment fee that nothing used (UNUSED).
-- Parameters: @services, @units, @regions STRING (lookups as JSON text), @pipeline_logging_id, @provider, @domain,
-- @template STRING.
-- {target} is the staging table made. Replaces it, so it may run again.
-- BilledCost is cost with the credits of the row except PROMOTION: per invoice month and currency, its sum is the
-- invoice's. EffectiveCost moves fees of commitments to what they cover: where a fee is not offset (FEE_UTILIZATION_
-- OFFSET), usage with commitment credits on the same account, invoice month, currency and day bears it in proportion to
-- those credits, the rounding going to the largest; what no usage bears becomes an UNUSED row. Both sums are equal.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
services AS (
  SELECT
    JSON_VALUE(j, '$.service') AS service,
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
charges AS (
  SELECT
    b.*,
    REPLACE(LOWER(IFNULL(b.cost_type, 'regular')), ' ', '_') AS kind,
    IFNULL(b.cost_type, 'regular') = 'regular'
      AND STARTS_WITH(LOWER(IFNULL(b.sku_description, '')), 'commitment') AS is_fee,
    IFNULL(b.consumption_model_id, '') != ''
      AND NOT STARTS_WITH(LOWER(IFNULL(b.consumption_model_description, 'default')), 'default') AS has_model,
    IFNULL(b.cost, 0)
      + IFNULL((SELECT SUM(c.amount) FROM UNNEST(b.credits) AS c WHERE IFNULL(c.type, '') != 'PROMOTION'), 0) AS billed,
    -IFNULL((
      SELECT SUM(c.amount) FROM UNNEST(b.credits) AS c
      WHERE c.type IN ('COMMITTED_USAGE_DISCOUNT', 'COMMITTED_USAGE_DISCOUNT_DOLLAR_BASE')
    ), 0) AS covered,
    (SELECT COUNT(*) FROM UNNEST(b.credits) AS c WHERE c.type = 'FEE_UTILIZATION_OFFSET') > 0 AS is_offset,
    (
      SELECT MIN(c.id) FROM UNNEST(b.credits) AS c
      WHERE c.type IN ('COMMITTED_USAGE_DISCOUNT', 'COMMITTED_USAGE_DISCOUNT_DOLLAR_BASE')
    ) AS credit_id,
    (
      SELECT MIN(c.full_name) FROM UNNEST(b.credits) AS c
      WHERE c.type IN ('COMMITTED_USAGE_DISCOUNT', 'COMMITTED_USAGE_DISCOUNT_DOLLAR_BASE', 'FEE_UTILIZATION_OFFSET')
    ) AS credit_name,
    STARTS_WITH(LOWER(IFNULL(b.sku_description, '')), 'commitment - dollar based')
      OR (
        SELECT COUNT(*) FROM UNNEST(b.credits) AS c
        WHERE c.type IN ('COMMITTED_USAGE_DISCOUNT_DOLLAR_BASE', 'FEE_UTILIZATION_OFFSET')
      ) > 0 AS is_spend,
    IFNULL(
      b.invoice_month, FORMAT_TIMESTAMP('%Y%m', b.usage_start_time, 'America/Los_Angeles')
    ) AS month
  FROM {billing} AS b
  WHERE b.quarantine_reason IS NULL
),
pools AS (
  SELECT
    b.*,
    IF(b.kind = 'regular' AND NOT b.is_fee, b.covered, 0) AS weight,
    SUM(IF(b.is_fee AND NOT b.is_offset, b.billed, 0)) OVER (
      PARTITION BY b.billing_account_id, b.month, b.currency, b.usage_date
    ) AS fees,
    SUM(IF(b.kind = 'regular' AND NOT b.is_fee, b.covered, 0)) OVER (
      PARTITION BY b.billing_account_id, b.month, b.currency, b.usage_date
    ) AS weights,
    ROW_NUMBER() OVER (
      PARTITION BY b.billing_account_id, b.month, b.currency, b.usage_date
      ORDER BY IF(b.kind = 'regular' AND NOT b.is_fee, b.covered, 0) DESC, b.source_fingerprint
    ) AS place
  FROM charges AS b
),
parts AS (
  SELECT
    b.*,
    IF(b.weights > 0, ROUND(CAST(b.fees * b.weight / b.weights AS NUMERIC), 9), 0) AS share
  FROM pools AS b
),
shares AS (
  SELECT
    b.*,
    b.share + IF(b.place = 1 AND b.weights > 0, b.fees - SUM(b.share) OVER (
      PARTITION BY b.billing_account_id, b.month, b.currency, b.usage_date
    ), 0) AS borne
  FROM parts AS b
),
pieces AS (
  SELECT
    b.*,
    'CHARGE' AS row_kind,
    b.billed AS billed_cost,
    IF(b.is_fee, 0, b.billed + b.borne) AS effective_cost,
    CASE
      WHEN b.kind = 'tax' THEN 'Tax'
      WHEN b.kind != 'regular' THEN 'Adjustment'
      WHEN b.is_fee THEN 'Purchase'
      ELSE 'Usage'
    END AS category,
    CAST(NULL AS STRING) AS promotion
  FROM shares AS b
  UNION ALL
  SELECT
    b.*,
    'PROMOTION' AS row_kind,
    p.amount AS billed_cost,
    p.amount AS effective_cost,
    'Credit' AS category,
    IFNULL(p.full_name, p.name) AS promotion
  FROM shares AS b
  CROSS JOIN UNNEST(b.credits) AS p
  WHERE p.type = 'PROMOTION'
  UNION ALL
  SELECT
    b.*,
    'UNUSED' AS row_kind,
    CAST(0 AS NUMERIC) AS billed_cost,
    b.billed AS effective_cost,
    'Usage' AS category,
    CAST(NULL AS STRING) AS promotion
  FROM shares AS b
  WHERE b.is_fee AND b.billed != 0 AND (b.is_offset OR b.weights <= 0)
),
named AS (
  SELECT
    b.*,
    b.row_kind = 'CHARGE' AND b.category IN ('Usage', 'Purchase') AS is_priced,
    CASE
      WHEN b.row_kind = 'PROMOTION' OR b.kind != 'regular' THEN NULL
      WHEN b.is_fee THEN COALESCE(b.subscription_instance_id, b.sku_id, b.sku_description)
      WHEN b.covered != 0 THEN COALESCE(b.subscription_instance_id, b.credit_id, 'committed-use-discount')
      WHEN b.has_model THEN COALESCE(b.subscription_instance_id, b.consumption_model_id)
    END AS commitment,
    CASE
      WHEN IFNULL(b.currency_conversion_rate, 0) > 0 THEN CAST(b.currency_conversion_rate AS NUMERIC)
      WHEN b.currency = 'USD' THEN 1
    END AS rate,
    COALESCE(
      NULLIF(TRIM(REGEXP_REPLACE(b.service_description, r'[^ -~]', '')), ''), NULLIF(b.service_id, ''), 'Invoice'
    ) AS service,
    COALESCE(NULLIF(b.resource_global_name, ''), NULLIF(b.resource_name, '')) AS resource,
    NULLIF(b.location_region, '') AS region,
    REGEXP_REPLACE(
      REGEXP_REPLACE(CAST(b.price_tier_start_amount AS STRING), r'(\.[0-9]*[1-9])0+$', r'\1'), r'\.0*$', ''
    ) AS tier,
    CASE
      WHEN STARTS_WITH(IFNULL(b.transaction_type, ''), 'THIRD_PARTY') THEN COALESCE(b.seller_name, 'Google Cloud')
      ELSE 'Google Cloud'
    END AS seller
  FROM pieces AS b
)
SELECT
  NULLIF(b.location_zone, '') AS AvailabilityZone,
  b.billed_cost AS BilledCost,
  b.billing_account_id AS BillingAccountId,
  b.billing_account_id AS BillingAccountName,
  'Billing Account' AS BillingAccountType,
  b.currency AS BillingCurrency,
  TIMESTAMP(DATE_ADD(PARSE_DATE('%Y%m', b.month), INTERVAL 1 MONTH), 'America/Los_Angeles') AS BillingPeriodEnd,
  TIMESTAMP(PARSE_DATE('%Y%m', b.month), 'America/Los_Angeles') AS BillingPeriodStart,
  CAST(NULL AS STRING) AS CapacityReservationId,
  CAST(NULL AS STRING) AS CapacityReservationStatus,
  b.category AS ChargeCategory,
  IF(
    b.row_kind = 'CHARGE'
      AND b.adjustment_info_type IN ('USAGE_CORRECTION', 'PRICE_CORRECTION', 'METADATA_CORRECTION')
      AND b.month > FORMAT_TIMESTAMP('%Y%m', b.usage_start_time, 'America/Los_Angeles'),
    'Correction', NULL
  ) AS ChargeClass,
  COALESCE(b.promotion, NULLIF(b.sku_description, ''), b.adjustment_info_description) AS ChargeDescription,
  CASE b.category WHEN 'Purchase' THEN 'Recurring' WHEN 'Usage' THEN 'Usage-Based' ELSE 'One-Time' END
    AS ChargeFrequency,
  IF(
    b.usage_end_time > b.usage_start_time, b.usage_end_time, TIMESTAMP_ADD(b.usage_start_time, INTERVAL 1 HOUR)
  ) AS ChargePeriodEnd,
  b.usage_start_time AS ChargePeriodStart,
  IF(b.commitment IS NULL, NULL, IF(b.is_spend OR b.has_model, 'Spend', 'Usage')) AS CommitmentDiscountCategory,
  b.commitment AS CommitmentDiscountId,
  IF(b.commitment IS NULL, NULL, COALESCE(b.credit_name, b.consumption_model_description, b.sku_description))
    AS CommitmentDiscountName,
  CASE
    WHEN b.commitment IS NULL OR b.category NOT IN ('Usage', 'Purchase') THEN NULL
    WHEN b.is_spend OR b.has_model
      THEN CAST(IF(b.category = 'Purchase', IFNULL(b.cost, 0), b.effective_cost) AS FLOAT64)
    ELSE b.usage_amount_in_pricing_units
  END AS CommitmentDiscountQuantity,
  CASE
    WHEN b.commitment IS NULL OR b.category != 'Usage' THEN NULL
    ELSE IF(b.row_kind = 'UNUSED', 'Unused', 'Used')
  END AS CommitmentDiscountStatus,
  IF(b.commitment IS NULL, NULL, 'Committed Use Discount') AS CommitmentDiscountType,
  CASE
    WHEN b.commitment IS NULL OR b.category NOT IN ('Usage', 'Purchase') THEN NULL
    WHEN b.is_spend OR b.has_model THEN b.currency
    WHEN b.usage_amount_in_pricing_units IS NOT NULL
      THEN COALESCE(p.focus_unit, CONCAT(UPPER(SUBSTR(b.usage_pricing_unit, 1, 1)), SUBSTR(b.usage_pricing_unit, 2)))
  END AS CommitmentDiscountUnit,
  IF(b.row_kind = 'CHARGE' AND b.category = 'Usage' AND b.usage_unit IS NOT NULL, b.usage_amount, NULL)
    AS ConsumedQuantity,
  IF(
    b.row_kind = 'CHARGE' AND b.category = 'Usage' AND b.usage_amount IS NOT NULL,
    COALESCE(u.focus_unit, CONCAT(UPPER(SUBSTR(b.usage_unit, 1, 1)), SUBSTR(b.usage_unit, 2))), NULL
  ) AS ConsumedUnit,
  CASE
    WHEN b.row_kind = 'PROMOTION' THEN b.billed_cost
    WHEN b.row_kind = 'UNUSED' THEN 0
    ELSE COALESCE(b.cost_at_effective_price_default, b.cost, 0)
  END AS ContractedCost,
  IF(
    b.is_priced, COALESCE(b.price_effective_price_default, b.price_effective_price), NULL
  ) AS ContractedUnitPrice,
  b.effective_cost AS EffectiveCost,
  CAST(NULL AS STRING) AS InvoiceId,
  'Google Cloud' AS InvoiceIssuerName,
  CASE
    WHEN b.row_kind = 'PROMOTION' THEN b.billed_cost
    WHEN b.row_kind = 'UNUSED' THEN 0
    ELSE COALESCE(b.cost_at_list, b.cost, 0)
  END AS ListCost,
  IF(b.is_priced, b.price_list_price, NULL) AS ListUnitPrice,
  CASE
    WHEN b.category NOT IN ('Usage', 'Purchase') THEN NULL
    WHEN b.category = 'Usage' AND b.commitment IS NOT NULL THEN 'Committed'
    WHEN REGEXP_CONTAINS(LOWER(IFNULL(b.sku_description, '')), r'\b(spot|preemptible)\b') THEN 'Dynamic'
    ELSE 'Standard'
  END AS PricingCategory,
  'USD' AS PricingCurrency,
  IF(
    b.is_priced,
    CAST(COALESCE(b.price_effective_price_default, b.price_effective_price) / b.rate AS NUMERIC), NULL
  ) AS PricingCurrencyContractedUnitPrice,
  CAST(b.effective_cost / b.rate AS NUMERIC) AS PricingCurrencyEffectiveCost,
  IF(b.is_priced, CAST(b.price_list_price / b.rate AS NUMERIC), NULL) AS PricingCurrencyListUnitPrice,
  IF(b.is_priced AND b.usage_pricing_unit IS NOT NULL, b.usage_amount_in_pricing_units, NULL) AS PricingQuantity,
  IF(
    b.is_priced AND b.usage_amount_in_pricing_units IS NOT NULL,
    COALESCE(p.focus_unit, CONCAT(UPPER(SUBSTR(b.usage_pricing_unit, 1, 1)), SUBSTR(b.usage_pricing_unit, 2))), NULL
  ) AS PricingUnit,
  'Google Cloud' AS ProviderName,
  b.seller AS PublisherName,
  b.region AS RegionId,
  IF(b.region IS NULL, NULL, COALESCE(r.name, b.region)) AS RegionName,
  IF(b.category = 'Purchase' OR b.row_kind = 'UNUSED', b.commitment, b.resource) AS ResourceId,
  CASE
    WHEN b.category = 'Purchase' OR b.row_kind = 'UNUSED' THEN b.sku_description
    WHEN b.resource IS NOT NULL THEN COALESCE(NULLIF(b.resource_name, ''), b.resource)
  END AS ResourceName,
  CASE
    WHEN b.category = 'Purchase' OR b.row_kind = 'UNUSED' THEN 'Committed Use Discount'
    WHEN b.resource IS NOT NULL
      THEN COALESCE(REGEXP_EXTRACT(b.resource_global_name, r'([^/]+)/[^/]+$'), b.service)
  END AS ResourceType,
  COALESCE(s.category, 'Other') AS ServiceCategory,
  b.service AS ServiceName,
  COALESCE(s.subcategory, 'Other (Other)') AS ServiceSubcategory,
  IF(b.category = 'Tax', NULL, NULLIF(b.sku_id, '')) AS SkuId,
  IF(b.category = 'Tax' OR NULLIF(b.sku_id, '') IS NULL, NULL, b.sku_description) AS SkuMeter,
  IF(
    b.is_priced AND NULLIF(b.sku_id, '') IS NOT NULL
      AND (b.tier IS NOT NULL OR b.price_unit IS NOT NULL OR b.consumption_model_id IS NOT NULL),
    PARSE_JSON(CONCAT('{', ARRAY_TO_STRING([
      IF(b.tier IS NULL, NULL, CONCAT('"x_TierStartAmount":', TO_JSON_STRING(b.tier))),
      IF(b.price_unit IS NULL, NULL, CONCAT('"x_PriceUnit":', TO_JSON_STRING(b.price_unit))),
      IF(
        b.consumption_model_id IS NULL, NULL,
        CONCAT('"x_ConsumptionModelId":', TO_JSON_STRING(b.consumption_model_id))
      )
    ], ','), '}'), wide_number_mode => 'round'),
    NULL
  ) AS SkuPriceDetails,
  IF(
    b.is_priced AND NULLIF(b.sku_id, '') IS NOT NULL,
    CONCAT(b.sku_id, '/', IFNULL(b.tier, '0')), NULL
  ) AS SkuPriceId,
  b.project_id AS SubAccountId,
  IF(b.project_id IS NULL, NULL, COALESCE(b.project_name, b.project_id)) AS SubAccountName,
  IF(b.project_id IS NULL, NULL, 'Project') AS SubAccountType,
  PARSE_JSON(CONCAT('{', IFNULL((
    SELECT STRING_AGG(CONCAT(TO_JSON_STRING(t.key), ':', TO_JSON_STRING(t.value)), ',' ORDER BY t.key)
    FROM (
      SELECT a.key AS key, a.value AS value, ROW_NUMBER() OVER (PARTITION BY a.key ORDER BY a.rank, a.value) AS place
      FROM (
        SELECT l.key AS key, IFNULL(l.value, '') AS value, 1 AS rank FROM UNNEST(b.labels) AS l
        UNION ALL
        SELECT
          CONCAT(IF(g.namespace IS NULL, '', CONCAT(g.namespace, '/')), g.key) AS key,
          IFNULL(g.value, '') AS value,
          IF(IFNULL(g.inherited, FALSE), 3, 2) AS rank
        FROM UNNEST(b.tags) AS g
        UNION ALL
        SELECT CONCAT('project/', l.key) AS key, IFNULL(l.value, '') AS value, 4 AS rank
        FROM UNNEST(b.project_labels) AS l
        UNION ALL
        SELECT CONCAT('system/', l.key) AS key, IFNULL(l.value, '') AS value, 5 AS rank
        FROM UNNEST(b.system_labels) AS l
      ) AS a
      WHERE a.key IS NOT NULL
    ) AS t
    WHERE t.place = 1
  ), ''), '}'), wide_number_mode => 'round') AS Tags,
  'Google Cloud' AS HostProviderName,
  b.seller AS ServiceProviderName,
  b.usage_date AS x_ChargeDate,
  'gcp' AS x_Provider,
  b.row_kind AS x_RowKind,
  b.month AS x_InvoiceMonth,
  b.cost_type AS x_CostType,
  b.service_id AS x_ServiceId,
  PARSE_JSON(TO_JSON_STRING(b.credits), wide_number_mode => 'round') AS x_Credits,
  b.currency_conversion_rate AS x_CurrencyConversionRate,
  b.export_time AS x_ExportTime,
  PARSE_JSON(TO_JSON_STRING(STRUCT(
    b.location AS location, b.location_country AS country, b.location_region AS region, b.location_zone AS zone
  )), wide_number_mode => 'round') AS x_Location,
  PARSE_JSON(TO_JSON_STRING(STRUCT(
    b.project_number AS number, b.project_ancestry_numbers AS ancestry_numbers, b.project_ancestors AS ancestors,
    b.project_labels AS labels
  )), wide_number_mode => 'round') AS x_Project,
  ARRAY_TO_STRING([
    'BillingAccountName from its id',
    IF(b.invoice_month IS NULL, 'BillingPeriod from the charge, as the row has no invoice month', NULL),
    IF(b.cost IS NULL, 'BilledCost without cost, as the row has none', NULL),
    IF(b.row_kind = 'CHARGE' AND b.cost_at_list IS NULL, 'ListCost from cost', NULL),
    IF(b.row_kind = 'CHARGE' AND b.cost_at_effective_price_default IS NULL, 'ContractedCost from cost', NULL),
    IF(IFNULL(b.usage_end_time > b.usage_start_time, FALSE), NULL, 'ChargePeriodEnd one hour after its start'),
    IF(
      b.commitment IS NOT NULL AND b.subscription_instance_id IS NULL,
      'CommitmentDiscountId from credit, model or SKU, as the export has no subscription', NULL
    ),
    IF(
      IFNULL(b.service_description, '') != b.service, 'ServiceName in ASCII, else the service id, else Invoice', NULL
    )
  ], '; ') AS x_SourceChanges,
  CAST(NULL AS JSON) AS x_CostCategories,
  CAST(NULL AS JSON) AS x_Discounts,
  CAST(NULL AS STRING) AS x_Operation,
  CAST(NULL AS STRING) AS x_ServiceCode,
  CAST(NULL AS STRING) AS x_UsageType,
  CONCAT(@provider, '/', @domain, '/', @template) AS x_SourceTemplate,
  @pipeline_logging_id AS x_PipelineLoggingId
FROM named AS b
LEFT JOIN services AS s ON s.service = b.service
LEFT JOIN units AS u ON u.unit = b.usage_unit
LEFT JOIN units AS p ON p.unit = b.usage_pricing_unit
LEFT JOIN regions AS r ON r.region = b.region
