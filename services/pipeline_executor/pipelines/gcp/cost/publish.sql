-- Replaces the run's dates in gcp_cost_billing and this provider's in focus_cost_and_usage by the staged rows, and ends
-- the run, all or nothing. rows_published counts those of gcp_cost_billing.
-- Parameters: @pipeline_logging_id, @provider, @domain, @template STRING, @attempt INT64, @start_date, @end_date DATE
-- (inclusive; they prune the partitions), @extract_start_time, @end_time TIMESTAMP. {rows} and {focus}
-- are the staging tables, with rows of the same days.
-- The run row is the fence: only a RUNNING attempt may publish, and only once, so running this again changes nothing.
-- If a run of this pipeline over one of these dates has been published whose extraction began later, its data are the
-- newer: then this run ends COMPLETED with superseded_by set and no data are touched. A date without staged rows keeps
-- what it has: the export never takes rows back, so their absence means that they have not come yet.
DECLARE newer STRING DEFAULT NULL;

BEGIN TRANSACTION;

SET newer = (
  SELECT r.pipeline_logging_id
  FROM x_meta_pipeline_runs AS r
  WHERE r.provider = @provider
    AND r.domain = @domain
    AND r.template = @template
    AND r.status = 'COMPLETED'
    AND r.outcome = 'PUBLISHED'
    AND r.extract_started_at > @extract_start_time
    AND r.start_date <= @end_date
    AND r.end_date >= @start_date
  ORDER BY r.extract_started_at DESC
  LIMIT 1
);

UPDATE x_meta_pipeline_runs AS r
SET
  status = 'COMPLETED',
  outcome = IF(newer IS NULL, 'PUBLISHED', 'SUPERSEDED'),
  superseded_by = newer,
  rows_published = IF(newer IS NULL, (SELECT COUNT(*) FROM {rows} AS s), 0),
  extract_started_at = @extract_start_time,
  end_time = @end_time,
  updated_at = @end_time
WHERE r.pipeline_logging_id = @pipeline_logging_id
  AND r.attempt = @attempt
  AND r.status = 'RUNNING';

ASSERT @@row_count = 1 AS 'assert:RUN_FENCED';

DELETE FROM gcp_cost_billing AS t
WHERE newer IS NULL
  AND t.usage_date BETWEEN @start_date AND @end_date
  AND t.usage_date IN (SELECT s.usage_date FROM {rows} AS s);

INSERT INTO gcp_cost_billing (
  usage_date, usage_start_time, usage_end_time, billing_account_id, invoice_month, invoice_publisher_type,
  cost_type, service_id, service_description, sku_id, sku_description, project_id, project_number, project_name,
  project_ancestry_numbers, project_ancestors, project_labels, location, location_country, location_region,
  location_zone, resource_name, resource_global_name, cost, credits_total, net_cost, currency,
  currency_conversion_rate, usage_amount, usage_unit, usage_amount_in_pricing_units, usage_pricing_unit,
  price_effective_price, price_tier_start_amount, price_unit, price_pricing_unit_quantity, price_list_price,
  price_effective_price_default, price_list_price_consumption_model, cost_at_list,
  cost_at_effective_price_default, cost_at_list_consumption_model, consumption_model_id,
  consumption_model_description, subscription_instance_id, transaction_type, seller_name, adjustment_info_id,
  adjustment_info_description, adjustment_info_type, adjustment_info_mode, export_time, labels, system_labels,
  tags, credits, source_extra, pipeline_logging_id
)
SELECT
  s.usage_date, s.usage_start_time, s.usage_end_time, s.billing_account_id, s.invoice_month,
  s.invoice_publisher_type, s.cost_type, s.service_id, s.service_description, s.sku_id, s.sku_description,
  s.project_id, s.project_number, s.project_name, s.project_ancestry_numbers, s.project_ancestors,
  s.project_labels, s.location, s.location_country, s.location_region, s.location_zone, s.resource_name,
  s.resource_global_name, s.cost, s.credits_total, s.net_cost, s.currency, s.currency_conversion_rate,
  s.usage_amount, s.usage_unit, s.usage_amount_in_pricing_units, s.usage_pricing_unit, s.price_effective_price,
  s.price_tier_start_amount, s.price_unit, s.price_pricing_unit_quantity, s.price_list_price,
  s.price_effective_price_default, s.price_list_price_consumption_model, s.cost_at_list,
  s.cost_at_effective_price_default, s.cost_at_list_consumption_model, s.consumption_model_id,
  s.consumption_model_description, s.subscription_instance_id, s.transaction_type, s.seller_name,
  s.adjustment_info_id, s.adjustment_info_description, s.adjustment_info_type, s.adjustment_info_mode,
  s.export_time, s.labels, s.system_labels, s.tags, s.credits, s.source_extra, s.pipeline_logging_id
FROM {rows} AS s
WHERE newer IS NULL;

DELETE FROM focus_cost_and_usage AS t
WHERE newer IS NULL
  AND t.x_Provider = 'gcp'
  AND t.x_ChargeDate BETWEEN @start_date AND @end_date
  AND t.x_ChargeDate IN (SELECT f.x_ChargeDate FROM {focus} AS f);

INSERT INTO focus_cost_and_usage (
  AvailabilityZone, BilledCost, BillingAccountId, BillingAccountName, BillingAccountType, BillingCurrency,
  BillingPeriodEnd, BillingPeriodStart, CapacityReservationId, CapacityReservationStatus, ChargeCategory,
  ChargeClass, ChargeDescription, ChargeFrequency, ChargePeriodEnd, ChargePeriodStart, CommitmentDiscountCategory,
  CommitmentDiscountId, CommitmentDiscountName, CommitmentDiscountQuantity, CommitmentDiscountStatus,
  CommitmentDiscountType, CommitmentDiscountUnit, ConsumedQuantity, ConsumedUnit, ContractedCost,
  ContractedUnitPrice, EffectiveCost, InvoiceId, InvoiceIssuerName, ListCost, ListUnitPrice, PricingCategory,
  PricingCurrency, PricingCurrencyContractedUnitPrice, PricingCurrencyEffectiveCost, PricingCurrencyListUnitPrice,
  PricingQuantity, PricingUnit, ProviderName, PublisherName, RegionId, RegionName, ResourceId, ResourceName,
  ResourceType, ServiceCategory, ServiceName, ServiceSubcategory, SkuId, SkuMeter, SkuPriceDetails, SkuPriceId,
  SubAccountId, SubAccountName, SubAccountType, Tags, HostProviderName, ServiceProviderName, x_ChargeDate,
  x_Provider, x_RowKind, x_InvoiceMonth, x_CostType, x_ServiceId, x_Credits, x_CurrencyConversionRate,
  x_ExportTime, x_Location, x_Project, x_SourceChanges, x_PipelineLoggingId
)
SELECT
  f.AvailabilityZone, f.BilledCost, f.BillingAccountId, f.BillingAccountName, f.BillingAccountType,
  f.BillingCurrency, f.BillingPeriodEnd, f.BillingPeriodStart, f.CapacityReservationId,
  f.CapacityReservationStatus, f.ChargeCategory, f.ChargeClass, f.ChargeDescription, f.ChargeFrequency,
  f.ChargePeriodEnd, f.ChargePeriodStart, f.CommitmentDiscountCategory, f.CommitmentDiscountId,
  f.CommitmentDiscountName, f.CommitmentDiscountQuantity, f.CommitmentDiscountStatus, f.CommitmentDiscountType,
  f.CommitmentDiscountUnit, f.ConsumedQuantity, f.ConsumedUnit, f.ContractedCost, f.ContractedUnitPrice,
  f.EffectiveCost, f.InvoiceId, f.InvoiceIssuerName, f.ListCost, f.ListUnitPrice, f.PricingCategory,
  f.PricingCurrency, f.PricingCurrencyContractedUnitPrice, f.PricingCurrencyEffectiveCost,
  f.PricingCurrencyListUnitPrice, f.PricingQuantity, f.PricingUnit, f.ProviderName, f.PublisherName, f.RegionId,
  f.RegionName, f.ResourceId, f.ResourceName, f.ResourceType, f.ServiceCategory, f.ServiceName,
  f.ServiceSubcategory, f.SkuId, f.SkuMeter, f.SkuPriceDetails, f.SkuPriceId, f.SubAccountId, f.SubAccountName,
  f.SubAccountType, f.Tags, f.HostProviderName, f.ServiceProviderName, f.x_ChargeDate, f.x_Provider, f.x_RowKind,
  f.x_InvoiceMonth, f.x_CostType, f.x_ServiceId, f.x_Credits, f.x_CurrencyConversionRate, f.x_ExportTime,
  f.x_Location, f.x_Project, f.x_SourceChanges, f.x_PipelineLoggingId
FROM {focus} AS f
WHERE newer IS NULL;

COMMIT TRANSACTION;
