-- One row per row of {rows} (those of <provider>_cost_focus), in the columns of focus_cost_and_usage.
-- Parameters: @provider, @domain, @template, @pipeline_logging_id STRING. {target} is the staging table made. Replaces
-- it, so it may run again.
-- Costs are the provider's own: BilledCost and EffectiveCost to nine digits, value by value. What an export leaves
-- empty or writes otherwise than FOCUS asks for is mended here, and each mending is named in x_SourceChanges:
-- Microsoft leaves ServiceName empty for purchases, ContractedCost and ListCost zero for reservations, and InvoiceId in
-- a column of its own; AWS leaves prices, PricingUnit and SKUs empty for some services; Google's first form has values
-- in lower case and the last day as BillingPeriodEnd. Exports of 1.0 lack what came later.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
charges AS (
  SELECT
    r.*,
    IF(
      @provider = 'gcp', DATE(r.BillingPeriodStart, 'America/Los_Angeles'), DATE(r.BillingPeriodStart)
    ) AS period_first_day,
    IF(@provider = 'gcp', DATE(r.BillingPeriodEnd, 'America/Los_Angeles'), DATE(r.BillingPeriodEnd)) AS period_end_day,
    COALESCE(
      r.ProviderName, r.ServiceProviderName,
      CASE @provider WHEN 'aws' THEN 'AWS' WHEN 'azure' THEN 'Microsoft' ELSE 'Google Cloud' END
    ) AS provider_name,
    CASE LOWER(r.ChargeCategory)
      WHEN 'usage' THEN 'Usage'
      WHEN 'purchase' THEN 'Purchase'
      WHEN 'tax' THEN 'Tax'
      WHEN 'credit' THEN 'Credit'
      ELSE 'Adjustment'
    END AS category,
    CAST(IFNULL(r.BilledCost, 0) AS NUMERIC) AS billed,
    COALESCE(
      r.ServiceName, JSON_VALUE(r.source_extra, '$.x_SkuMeterCategory'), JSON_VALUE(r.source_extra, '$.x_ServiceCode'),
      r.CommitmentDiscountType, JSON_VALUE(r.source_extra, '$.x_SkuDescription'), r.PublisherName, 'Unassigned'
    ) AS service,
    IF(
      r.ServiceCategory IN (
        'AI and Machine Learning', 'Analytics', 'Business Applications', 'Compute', 'Databases', 'Developer Tools',
        'Multicloud', 'Identity', 'Integration', 'Internet of Things', 'Management and Governance', 'Media',
        'Migration', 'Mobile', 'Networking', 'Security', 'Storage', 'Web', 'Other'
      ), r.ServiceCategory, NULL
    ) AS known_service_category,
    IFNULL(r.BillingPeriodEnd > r.BillingPeriodStart, FALSE) AS has_period_end
  FROM {rows} AS r
  WHERE r.quarantine_reason IS NULL
),
sorted AS (
  SELECT
    r.*,
    -- The first day after a month that has no end, or whose end is given as its last day; else NULL.
    IF(
      NOT r.has_period_end OR DATE_ADD(r.period_end_day, INTERVAL 1 DAY)
        = DATE_ADD(DATE_TRUNC(r.period_first_day, MONTH), INTERVAL 1 MONTH),
      DATE_ADD(DATE_TRUNC(r.period_first_day, MONTH), INTERVAL 1 MONTH), NULL
    ) AS mended_period_end,
    r.category IN ('Usage', 'Purchase') AS is_priced,
    COALESCE(r.known_service_category, MIN(r.known_service_category) OVER (PARTITION BY r.service), 'Other')
      AS service_category,
    CASE
      WHEN r.CommitmentDiscountId IS NULL THEN NULL
      WHEN LOWER(r.CommitmentDiscountCategory) = 'spend' THEN 'Spend'
      WHEN LOWER(r.CommitmentDiscountCategory) = 'usage' THEN 'Usage'
      WHEN STRPOS(LOWER(IFNULL(r.CommitmentDiscountType, '')), 'savings') > 0 THEN 'Spend'
      ELSE 'Usage'
    END AS commitment_category,
    CASE
      WHEN r.CommitmentDiscountId IS NULL OR r.category != 'Usage' THEN NULL
      WHEN LOWER(r.CommitmentDiscountStatus) = 'unused' THEN 'Unused'
      ELSE 'Used'
    END AS commitment_status,
    -- A quantity of nothing prices nothing. Zero stands for "no price" in exports that know no NULL.
    COALESCE(r.PricingQuantity, r.ConsumedQuantity, IF(r.category = 'Purchase', 1, 0)) AS quantity,
    NULLIF(r.ContractedUnitPrice, 0) AS contracted_price,
    NULLIF(r.ListUnitPrice, 0) AS list_price,
    CASE
      WHEN r.EffectiveCost IS NOT NULL THEN CAST(r.EffectiveCost AS NUMERIC)
      WHEN r.category = 'Purchase' AND r.CommitmentDiscountId IS NOT NULL THEN 0
      ELSE r.billed
    END AS effective,
    SAFE_CAST(
      COALESCE(
        JSON_VALUE(r.source_extra, '$.x_BillingExchangeRate'), JSON_VALUE(r.source_extra, '$.x_CurrencyConversionRate')
      ) AS FLOAT64
    ) AS exchange_rate,
    COALESCE(r.SkuId, r.SkuPriceId, JSON_VALUE(r.source_extra, '$.x_SkuMeterId'), r.SkuMeter, r.ChargeDescription)
      AS sku
  FROM charges AS r
),
costed AS (
  SELECT
    r.*,
    IF(r.known_service_category = r.service_category, r.ServiceSubcategory, NULL) AS known_service_subcategory,
    CASE
      WHEN r.commitment_status = 'Unused' OR NOT r.is_priced THEN CAST(IFNULL(r.ContractedCost, 0) AS NUMERIC)
      WHEN IFNULL(r.ContractedCost, 0) != 0 THEN CAST(r.ContractedCost AS NUMERIC)
      WHEN r.ContractedCost = 0 AND r.billed = 0 AND r.effective = 0 THEN 0
      ELSE COALESCE(
        CAST(r.contracted_price * NULLIF(r.quantity, 0) AS NUMERIC), IF(r.effective != 0, r.effective, r.billed)
      )
    END AS contracted,
    CASE
      WHEN r.PricingCurrency IS NULL OR r.PricingCurrency = r.BillingCurrency THEN 1.0
      WHEN r.exchange_rate > 0 THEN r.exchange_rate
    END AS rate
  FROM sorted AS r
),
listed AS (
  SELECT
    r.*,
    COALESCE(
      r.known_service_subcategory,
      MIN(r.known_service_subcategory) OVER (PARTITION BY r.service, r.service_category),
      CONCAT('Other (', r.service_category, ')')
    ) AS service_subcategory,
    CASE
      WHEN r.commitment_status = 'Unused' OR NOT r.is_priced THEN CAST(IFNULL(r.ListCost, 0) AS NUMERIC)
      WHEN IFNULL(r.ListCost, 0) != 0 THEN CAST(r.ListCost AS NUMERIC)
      WHEN r.ListCost = 0 AND r.contracted = 0 THEN 0
      ELSE COALESCE(CAST(r.list_price * NULLIF(r.quantity, 0) AS NUMERIC), r.contracted)
    END AS list_cost,
    COALESCE(
      r.ContractedUnitPrice, CAST(CAST(r.contracted AS FLOAT64) / NULLIF(CAST(r.quantity AS FLOAT64), 0) AS BIGNUMERIC)
    ) AS contracted_unit_price
  FROM costed AS r
),
priced AS (
  SELECT
    r.*,
    COALESCE(
      r.ListUnitPrice, CAST(CAST(r.list_cost AS FLOAT64) / NULLIF(CAST(r.quantity AS FLOAT64), 0) AS BIGNUMERIC)
    ) AS list_unit_price
  FROM listed AS r
)
SELECT
  r.AvailabilityZone AS AvailabilityZone,
  r.billed AS BilledCost,
  r.BillingAccountId AS BillingAccountId,
  IFNULL(r.BillingAccountName, r.BillingAccountId) AS BillingAccountName,
  IFNULL(r.BillingAccountType, 'Billing Account') AS BillingAccountType,
  r.BillingCurrency AS BillingCurrency,
  CASE
    WHEN r.mended_period_end IS NULL THEN r.BillingPeriodEnd
    WHEN @provider = 'gcp' THEN TIMESTAMP(r.mended_period_end, 'America/Los_Angeles')
    ELSE TIMESTAMP(r.mended_period_end)
  END AS BillingPeriodEnd,
  r.BillingPeriodStart AS BillingPeriodStart,
  r.CapacityReservationId AS CapacityReservationId,
  CASE
    WHEN r.CapacityReservationId IS NULL OR r.category != 'Usage' THEN NULL
    WHEN LOWER(r.CapacityReservationStatus) = 'unused' THEN 'Unused'
    ELSE 'Used'
  END AS CapacityReservationStatus,
  r.category AS ChargeCategory,
  IF(LOWER(r.ChargeClass) = 'correction', 'Correction', NULL) AS ChargeClass,
  COALESCE(r.ChargeDescription, JSON_VALUE(r.source_extra, '$.x_SkuDescription'), r.SkuMeter, r.service)
    AS ChargeDescription,
  CASE LOWER(REPLACE(r.ChargeFrequency, '-', ''))
    WHEN 'onetime' THEN 'One-Time'
    WHEN 'recurring' THEN 'Recurring'
    WHEN 'usagebased' THEN 'Usage-Based'
    ELSE IF(r.category = 'Usage', 'Usage-Based', 'One-Time')
  END AS ChargeFrequency,
  IF(
    r.ChargePeriodEnd > r.ChargePeriodStart, r.ChargePeriodEnd, TIMESTAMP_ADD(r.ChargePeriodStart, INTERVAL 1 HOUR)
  ) AS ChargePeriodEnd,
  r.ChargePeriodStart AS ChargePeriodStart,
  r.commitment_category AS CommitmentDiscountCategory,
  r.CommitmentDiscountId AS CommitmentDiscountId,
  IF(
    r.CommitmentDiscountId IS NULL, NULL,
    COALESCE(
      r.CommitmentDiscountName, REGEXP_EXTRACT(r.CommitmentDiscountId, r'([^/:]+)[/:]?$'), r.CommitmentDiscountId
    )
  ) AS CommitmentDiscountName,
  CASE
    WHEN r.CommitmentDiscountId IS NULL OR NOT r.is_priced THEN NULL
    WHEN r.CommitmentDiscountQuantity IS NOT NULL THEN CAST(r.CommitmentDiscountQuantity AS FLOAT64)
    WHEN r.commitment_category = 'Spend' THEN CAST(IF(r.category = 'Purchase', r.billed, r.effective) AS FLOAT64)
    ELSE CAST(r.quantity AS FLOAT64)
  END AS CommitmentDiscountQuantity,
  r.commitment_status AS CommitmentDiscountStatus,
  IF(
    r.CommitmentDiscountId IS NULL, NULL,
    IFNULL(r.CommitmentDiscountType, IF(r.commitment_category = 'Spend', 'Savings Plan', 'Reservation'))
  ) AS CommitmentDiscountType,
  CASE
    WHEN r.CommitmentDiscountId IS NULL OR NOT r.is_priced THEN NULL
    WHEN r.CommitmentDiscountUnit IS NOT NULL THEN r.CommitmentDiscountUnit
    WHEN r.commitment_category = 'Spend' THEN r.BillingCurrency
    ELSE COALESCE(r.PricingUnit, r.ConsumedUnit, 'Units')
  END AS CommitmentDiscountUnit,
  IF(r.category = 'Usage' AND IFNULL(r.commitment_status, '') != 'Unused', CAST(r.ConsumedQuantity AS FLOAT64), NULL)
    AS ConsumedQuantity,
  IF(
    r.category = 'Usage' AND IFNULL(r.commitment_status, '') != 'Unused' AND r.ConsumedQuantity IS NOT NULL,
    COALESCE(r.ConsumedUnit, r.PricingUnit, 'Units'), NULL
  ) AS ConsumedUnit,
  r.contracted AS ContractedCost,
  IF(r.is_priced, CAST(r.contracted_unit_price AS NUMERIC), NULL) AS ContractedUnitPrice,
  r.effective AS EffectiveCost,
  COALESCE(r.InvoiceId, JSON_VALUE(r.source_extra, '$.x_InvoiceId')) AS InvoiceId,
  IFNULL(r.InvoiceIssuerName, r.provider_name) AS InvoiceIssuerName,
  r.list_cost AS ListCost,
  IF(r.is_priced, CAST(r.list_unit_price AS NUMERIC), NULL) AS ListUnitPrice,
  CASE
    WHEN NOT r.is_priced THEN NULL
    WHEN r.category = 'Usage' AND r.CommitmentDiscountId IS NOT NULL THEN 'Committed'
    WHEN LOWER(r.PricingCategory) IN ('dynamic', 'spot') THEN 'Dynamic'
    WHEN LOWER(r.PricingCategory) IN ('standard', 'on-demand', 'ondemand') THEN 'Standard'
    WHEN LOWER(r.PricingCategory) LIKE 'commit%' AND r.category = 'Usage' THEN 'Committed'
    WHEN LOWER(r.PricingCategory) = 'other' THEN 'Other'
    ELSE 'Standard'
  END AS PricingCategory,
  IFNULL(r.PricingCurrency, r.BillingCurrency) AS PricingCurrency,
  IF(
    r.is_priced,
    CAST(
      COALESCE(r.PricingCurrencyContractedUnitPrice, r.contracted_unit_price / CAST(r.rate AS BIGNUMERIC)) AS NUMERIC
    ), NULL
  ) AS PricingCurrencyContractedUnitPrice,
  CAST(
    COALESCE(r.PricingCurrencyEffectiveCost, CAST(r.effective AS BIGNUMERIC) / CAST(r.rate AS BIGNUMERIC)) AS NUMERIC
  ) AS PricingCurrencyEffectiveCost,
  IF(
    r.is_priced,
    CAST(COALESCE(r.PricingCurrencyListUnitPrice, r.list_unit_price / CAST(r.rate AS BIGNUMERIC)) AS NUMERIC), NULL
  ) AS PricingCurrencyListUnitPrice,
  IF(r.is_priced, CAST(r.quantity AS FLOAT64), NULL) AS PricingQuantity,
  IF(r.is_priced, COALESCE(r.PricingUnit, r.ConsumedUnit, 'Units'), NULL) AS PricingUnit,
  r.provider_name AS ProviderName,
  COALESCE(r.PublisherName, r.ServiceProviderName, r.provider_name) AS PublisherName,
  r.RegionId AS RegionId,
  IF(r.RegionId IS NULL, NULL, IFNULL(r.RegionName, r.RegionId)) AS RegionName,
  r.ResourceId AS ResourceId,
  IF(
    r.ResourceId IS NULL, NULL,
    COALESCE(r.ResourceName, REGEXP_EXTRACT(r.ResourceId, r'([^/:]+)[/:]?$'), r.ResourceId)
  ) AS ResourceName,
  IF(
    r.ResourceId IS NULL, NULL,
    COALESCE(
      r.ResourceType, JSON_VALUE(r.source_extra, '$.x_ResourceType'),
      REGEXP_EXTRACT(r.ResourceId, r'^arn:[^:]*:[^:]*:[^:]*:[^:]*:([a-z][a-z0-9-]*)[/:]'), r.service
    )
  ) AS ResourceType,
  r.service_category AS ServiceCategory,
  r.service AS ServiceName,
  r.service_subcategory AS ServiceSubcategory,
  IF(r.is_priced, r.sku, NULL) AS SkuId,
  IF(r.is_priced AND r.sku IS NOT NULL, COALESCE(r.SkuMeter, r.ChargeDescription, r.sku), NULL) AS SkuMeter,
  IF(r.is_priced AND r.sku IS NOT NULL, r.SkuPriceDetails, NULL) AS SkuPriceDetails,
  IF(r.is_priced, IFNULL(r.SkuPriceId, r.sku), NULL) AS SkuPriceId,
  r.SubAccountId AS SubAccountId,
  IF(r.SubAccountId IS NULL, NULL, IFNULL(r.SubAccountName, r.SubAccountId)) AS SubAccountName,
  IF(
    r.SubAccountId IS NULL, NULL,
    IFNULL(
      r.SubAccountType, CASE @provider WHEN 'aws' THEN 'Account' WHEN 'azure' THEN 'Subscription' ELSE 'Project' END
    )
  ) AS SubAccountType,
  IFNULL(r.Tags, JSON '{}') AS Tags,
  IFNULL(
    r.HostProviderName, CASE @provider WHEN 'aws' THEN 'AWS' WHEN 'azure' THEN 'Microsoft' ELSE 'Google Cloud' END
  ) AS HostProviderName,
  COALESCE(r.ServiceProviderName, r.PublisherName, r.provider_name) AS ServiceProviderName,
  r.usage_date AS x_ChargeDate,
  @provider AS x_Provider,
  'CHARGE' AS x_RowKind,
  FORMAT_DATE('%Y%m', r.period_first_day) AS x_InvoiceMonth,
  JSON_VALUE(r.source_extra, '$.x_CostType') AS x_CostType,
  JSON_VALUE(r.source_extra, '$.x_ServiceId') AS x_ServiceId,
  PARSE_JSON(JSON_VALUE(r.source_extra, '$.x_Credits'), wide_number_mode => 'round') AS x_Credits,
  r.exchange_rate AS x_CurrencyConversionRate,
  SAFE_CAST(JSON_VALUE(r.source_extra, '$.x_ExportTime') AS TIMESTAMP) AS x_ExportTime,
  PARSE_JSON(JSON_VALUE(r.source_extra, '$.x_Location'), wide_number_mode => 'round') AS x_Location,
  PARSE_JSON(JSON_VALUE(r.source_extra, '$.x_Project'), wide_number_mode => 'round') AS x_Project,
  PARSE_JSON(JSON_VALUE(r.source_extra, '$.x_CostCategories'), wide_number_mode => 'round') AS x_CostCategories,
  PARSE_JSON(JSON_VALUE(r.source_extra, '$.x_Discounts'), wide_number_mode => 'round') AS x_Discounts,
  JSON_VALUE(r.source_extra, '$.x_Operation') AS x_Operation,
  JSON_VALUE(r.source_extra, '$.x_ServiceCode') AS x_ServiceCode,
  JSON_VALUE(r.source_extra, '$.x_UsageType') AS x_UsageType,
  CONCAT(@provider, '/', @domain, '/', @template) AS x_SourceTemplate,
  NULLIF(ARRAY_TO_STRING([
    IF(
      DATE(r.ChargePeriodStart) != r.usage_date,
      'x_ChargeDate inside the billing period, as the charge is dated outside', NULL
    ),
    IF(r.BilledCost IS NULL, 'BilledCost zero, as the row has none', NULL),
    IF(r.BilledCost != r.billed OR r.EffectiveCost != r.effective, 'BilledCost and EffectiveCost to nine digits', NULL),
    IF(r.EffectiveCost IS NULL, 'EffectiveCost from BilledCost', NULL),
    IF(IFNULL(r.ContractedCost, -1) != r.contracted AND r.is_priced AND IFNULL(r.ContractedCost, 0) = 0,
      'ContractedCost from its price or EffectiveCost', NULL),
    IF(IFNULL(r.ListCost, -1) != r.list_cost AND r.is_priced AND IFNULL(r.ListCost, 0) = 0,
      'ListCost from its price or ContractedCost', NULL),
    IF(r.is_priced AND r.ContractedUnitPrice IS NULL, 'ContractedUnitPrice from ContractedCost', NULL),
    IF(r.is_priced AND r.ListUnitPrice IS NULL, 'ListUnitPrice from ListCost', NULL),
    IF(IFNULL(r.ChargeCategory, '') != r.category, 'ChargeCategory as FOCUS writes it', NULL),
    IF(r.mended_period_end IS NULL, NULL, 'BillingPeriodEnd exclusive'),
    IF(IFNULL(r.ChargePeriodEnd > r.ChargePeriodStart, FALSE), NULL, 'ChargePeriodEnd an hour after its start'),
    IF(r.ServiceName IS NULL, 'ServiceName from meter, commitment, product or publisher', NULL),
    IF(r.known_service_category IS NULL, 'ServiceCategory of the service, else Other', NULL),
    IF(
      r.CommitmentDiscountId IS NOT NULL AND r.category = 'Usage' AND r.CommitmentDiscountStatus IS NULL,
      'CommitmentDiscountStatus Used', NULL
    ),
    IF(
      r.CommitmentDiscountId IS NOT NULL AND r.is_priced AND r.CommitmentDiscountQuantity IS NULL,
      'CommitmentDiscountQuantity from cost or quantity', NULL
    ),
    IF(r.is_priced AND r.PricingQuantity IS NULL, 'PricingQuantity from ConsumedQuantity', NULL),
    IF(r.is_priced AND r.PricingUnit IS NULL, 'PricingUnit from ConsumedUnit', NULL),
    IF(r.is_priced AND r.SkuId IS NULL, 'SkuId from price, meter or description', NULL),
    IF(
      NOT r.is_priced AND COALESCE(r.SkuId, r.SkuPriceId) IS NOT NULL, 'no SKU, as there is no usage or purchase', NULL
    ),
    IF(
      r.InvoiceId IS NULL AND JSON_VALUE(r.source_extra, '$.x_InvoiceId') IS NOT NULL, 'InvoiceId from x_InvoiceId',
      NULL
    ),
    IF(r.InvoiceIssuerName IS NULL, 'InvoiceIssuerName from ProviderName', NULL),
    IF(r.PublisherName IS NULL, 'PublisherName from ProviderName', NULL),
    IF(r.ServiceProviderName IS NULL, 'ServiceProviderName from PublisherName', NULL),
    IF(r.ResourceId IS NOT NULL AND r.ResourceType IS NULL, 'ResourceType from id or service', NULL)
  ], '; '), '') AS x_SourceChanges,
  @pipeline_logging_id AS x_PipelineLoggingId
FROM priced AS r
