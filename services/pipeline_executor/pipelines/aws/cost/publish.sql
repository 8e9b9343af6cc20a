-- Replaces the run's dates in aws_cost_billing and this provider's in focus_cost_and_usage by the staged rows, and ends
-- the run, all or nothing. rows_published counts those of aws_cost_billing.
-- Parameters: @pipeline_logging_id, @provider, @domain, @template STRING, @attempt INT64, @start_date, @end_date DATE
-- (inclusive; they prune the partitions), @extract_start_time, @end_time TIMESTAMP. {rows} and {focus}
-- are the staging tables, with rows of the same days.
-- The run row is the fence: only a RUNNING attempt may publish, and only once, so running this again changes nothing.
-- If a run of this pipeline over one of these dates has been published whose extraction began later, its data are the
-- newer: then this run ends COMPLETED with superseded_by set and no data are touched. Each delivery holds its whole
-- billing period again, so that all of the run's dates in the staged periods are replaced, those without rows included;
-- other periods keep what they have.
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

DELETE FROM aws_cost_billing AS t
WHERE newer IS NULL
  AND t.usage_date BETWEEN @start_date AND @end_date
  AND t.billing_period IN (SELECT s.billing_period FROM {rows} AS s);

INSERT INTO aws_cost_billing (
  usage_date, billing_period, bill_bill_type, bill_billing_entity, bill_billing_period_start_date,
  bill_billing_period_end_date, bill_invoice_id, bill_invoicing_entity, bill_payer_account_id,
  bill_payer_account_name, identity_line_item_id, identity_time_interval, line_item_line_item_type,
  line_item_usage_account_id, line_item_usage_account_name, line_item_usage_start_date, line_item_usage_end_date,
  line_item_product_code, line_item_usage_type, line_item_operation, line_item_availability_zone,
  line_item_resource_id, line_item_usage_amount, line_item_normalization_factor, line_item_normalized_usage_amount,
  line_item_currency_code, line_item_unblended_rate, line_item_unblended_cost, line_item_net_unblended_rate,
  line_item_net_unblended_cost, line_item_blended_rate, line_item_blended_cost, line_item_line_item_description,
  line_item_tax_type, line_item_legal_entity, line_item_iam_principal, line_item_user_identifier, pricing_currency,
  pricing_lease_contract_length, pricing_offering_class, pricing_public_on_demand_cost, pricing_public_on_demand_rate,
  pricing_purchase_option, pricing_rate_code, pricing_rate_id, pricing_term, pricing_unit, product_product_name,
  product_comment, product_fee_code, product_fee_description, product_from_location, product_from_location_type,
  product_from_region_code, product_instance_family, product_instance_type, product_instancesku, product_location,
  product_location_type, product_operation, product_pricing_unit, product_product_family, product_region_code,
  product_servicecode, product_sku, product_to_location, product_to_location_type, product_to_region_code,
  product_usagetype, reservation_amortized_upfront_cost_for_usage,
  reservation_amortized_upfront_fee_for_billing_period, reservation_availability_zone, reservation_effective_cost,
  reservation_end_time, reservation_modification_status, reservation_net_amortized_upfront_cost_for_usage,
  reservation_net_amortized_upfront_fee_for_billing_period, reservation_net_effective_cost,
  reservation_net_recurring_fee_for_usage, reservation_net_unused_amortized_upfront_fee_for_billing_period,
  reservation_net_unused_recurring_fee, reservation_net_upfront_value, reservation_normalized_units_per_reservation,
  reservation_number_of_reservations, reservation_recurring_fee_for_usage, reservation_reservation_a_r_n,
  reservation_start_time, reservation_subscription_id, reservation_total_reserved_normalized_units,
  reservation_total_reserved_units, reservation_units_per_reservation,
  reservation_unused_amortized_upfront_fee_for_billing_period, reservation_unused_normalized_unit_quantity,
  reservation_unused_quantity, reservation_unused_recurring_fee, reservation_upfront_value,
  savings_plan_amortized_upfront_commitment_for_billing_period, savings_plan_end_time,
  savings_plan_instance_type_family, savings_plan_net_amortized_upfront_commitment_for_billing_period,
  savings_plan_net_recurring_commitment_for_billing_period, savings_plan_net_savings_plan_effective_cost,
  savings_plan_offering_type, savings_plan_payment_option, savings_plan_purchase_term,
  savings_plan_recurring_commitment_for_billing_period, savings_plan_region, savings_plan_savings_plan_a_r_n,
  savings_plan_savings_plan_effective_cost, savings_plan_savings_plan_rate, savings_plan_start_time,
  savings_plan_total_commitment_to_date, savings_plan_used_commitment, discount_bundled_discount,
  discount_total_discount, split_line_item_actual_usage, split_line_item_net_split_cost,
  split_line_item_net_unused_cost, split_line_item_parent_resource_id, split_line_item_public_on_demand_split_cost,
  split_line_item_public_on_demand_unused_cost, split_line_item_reserved_usage, split_line_item_split_cost,
  split_line_item_split_usage, split_line_item_split_usage_ratio, split_line_item_unused_cost, product, resource_tags,
  cost_category, discount, source_extra, pipeline_logging_id
)
SELECT
  s.usage_date, s.billing_period, s.bill_bill_type, s.bill_billing_entity, s.bill_billing_period_start_date,
  s.bill_billing_period_end_date, s.bill_invoice_id, s.bill_invoicing_entity, s.bill_payer_account_id,
  s.bill_payer_account_name, s.identity_line_item_id, s.identity_time_interval, s.line_item_line_item_type,
  s.line_item_usage_account_id, s.line_item_usage_account_name, s.line_item_usage_start_date,
  s.line_item_usage_end_date, s.line_item_product_code, s.line_item_usage_type, s.line_item_operation,
  s.line_item_availability_zone, s.line_item_resource_id, s.line_item_usage_amount, s.line_item_normalization_factor,
  s.line_item_normalized_usage_amount, s.line_item_currency_code, s.line_item_unblended_rate,
  s.line_item_unblended_cost, s.line_item_net_unblended_rate, s.line_item_net_unblended_cost,
  s.line_item_blended_rate, s.line_item_blended_cost, s.line_item_line_item_description, s.line_item_tax_type,
  s.line_item_legal_entity, s.line_item_iam_principal, s.line_item_user_identifier, s.pricing_currency,
  s.pricing_lease_contract_length, s.pricing_offering_class, s.pricing_public_on_demand_cost,
  s.pricing_public_on_demand_rate, s.pricing_purchase_option, s.pricing_rate_code, s.pricing_rate_id, s.pricing_term,
  s.pricing_unit, s.product_product_name, s.product_comment, s.product_fee_code, s.product_fee_description,
  s.product_from_location, s.product_from_location_type, s.product_from_region_code, s.product_instance_family,
  s.product_instance_type, s.product_instancesku, s.product_location, s.product_location_type, s.product_operation,
  s.product_pricing_unit, s.product_product_family, s.product_region_code, s.product_servicecode, s.product_sku,
  s.product_to_location, s.product_to_location_type, s.product_to_region_code, s.product_usagetype,
  s.reservation_amortized_upfront_cost_for_usage, s.reservation_amortized_upfront_fee_for_billing_period,
  s.reservation_availability_zone, s.reservation_effective_cost, s.reservation_end_time,
  s.reservation_modification_status, s.reservation_net_amortized_upfront_cost_for_usage,
  s.reservation_net_amortized_upfront_fee_for_billing_period, s.reservation_net_effective_cost,
  s.reservation_net_recurring_fee_for_usage, s.reservation_net_unused_amortized_upfront_fee_for_billing_period,
  s.reservation_net_unused_recurring_fee, s.reservation_net_upfront_value,
  s.reservation_normalized_units_per_reservation, s.reservation_number_of_reservations,
  s.reservation_recurring_fee_for_usage, s.reservation_reservation_a_r_n, s.reservation_start_time,
  s.reservation_subscription_id, s.reservation_total_reserved_normalized_units, s.reservation_total_reserved_units,
  s.reservation_units_per_reservation, s.reservation_unused_amortized_upfront_fee_for_billing_period,
  s.reservation_unused_normalized_unit_quantity, s.reservation_unused_quantity, s.reservation_unused_recurring_fee,
  s.reservation_upfront_value, s.savings_plan_amortized_upfront_commitment_for_billing_period,
  s.savings_plan_end_time, s.savings_plan_instance_type_family,
  s.savings_plan_net_amortized_upfront_commitment_for_billing_period,
  s.savings_plan_net_recurring_commitment_for_billing_period, s.savings_plan_net_savings_plan_effective_cost,
  s.savings_plan_offering_type, s.savings_plan_payment_option, s.savings_plan_purchase_term,
  s.savings_plan_recurring_commitment_for_billing_period, s.savings_plan_region, s.savings_plan_savings_plan_a_r_n,
  s.savings_plan_savings_plan_effective_cost, s.savings_plan_savings_plan_rate, s.savings_plan_start_time,
  s.savings_plan_total_commitment_to_date, s.savings_plan_used_commitment, s.discount_bundled_discount,
  s.discount_total_discount, s.split_line_item_actual_usage, s.split_line_item_net_split_cost,
  s.split_line_item_net_unused_cost, s.split_line_item_parent_resource_id,
  s.split_line_item_public_on_demand_split_cost, s.split_line_item_public_on_demand_unused_cost,
  s.split_line_item_reserved_usage, s.split_line_item_split_cost, s.split_line_item_split_usage,
  s.split_line_item_split_usage_ratio, s.split_line_item_unused_cost, s.product, s.resource_tags, s.cost_category,
  s.discount, s.source_extra, s.pipeline_logging_id
FROM {rows} AS s
WHERE newer IS NULL;

DELETE FROM focus_cost_and_usage AS t
WHERE newer IS NULL
  AND t.x_Provider = 'aws'
  AND t.x_ChargeDate BETWEEN @start_date AND @end_date
  AND t.BillingPeriodStart IN (SELECT TIMESTAMP(s.billing_period) FROM {rows} AS s);

INSERT INTO focus_cost_and_usage (
  AvailabilityZone, BilledCost, BillingAccountId, BillingAccountName, BillingAccountType, BillingCurrency,
  BillingPeriodEnd, BillingPeriodStart, CapacityReservationId, CapacityReservationStatus, ChargeCategory, ChargeClass,
  ChargeDescription, ChargeFrequency, ChargePeriodEnd, ChargePeriodStart, CommitmentDiscountCategory,
  CommitmentDiscountId, CommitmentDiscountName, CommitmentDiscountQuantity, CommitmentDiscountStatus,
  CommitmentDiscountType, CommitmentDiscountUnit, ConsumedQuantity, ConsumedUnit, ContractedCost, ContractedUnitPrice,
  EffectiveCost, InvoiceId, InvoiceIssuerName, ListCost, ListUnitPrice, PricingCategory, PricingCurrency,
  PricingCurrencyContractedUnitPrice, PricingCurrencyEffectiveCost, PricingCurrencyListUnitPrice, PricingQuantity,
  PricingUnit, ProviderName, PublisherName, RegionId, RegionName, ResourceId, ResourceName, ResourceType,
  ServiceCategory, ServiceName, ServiceSubcategory, SkuId, SkuMeter, SkuPriceDetails, SkuPriceId, SubAccountId,
  SubAccountName, SubAccountType, Tags, HostProviderName, ServiceProviderName, x_ChargeDate, x_Provider, x_RowKind,
  x_InvoiceMonth, x_CostCategories, x_Discounts, x_Operation, x_ServiceCode, x_UsageType, x_SourceChanges,
  x_PipelineLoggingId
)
SELECT
  f.AvailabilityZone, f.BilledCost, f.BillingAccountId, f.BillingAccountName, f.BillingAccountType, f.BillingCurrency,
  f.BillingPeriodEnd, f.BillingPeriodStart, f.CapacityReservationId, f.CapacityReservationStatus, f.ChargeCategory,
  f.ChargeClass, f.ChargeDescription, f.ChargeFrequency, f.ChargePeriodEnd, f.ChargePeriodStart,
  f.CommitmentDiscountCategory, f.CommitmentDiscountId, f.CommitmentDiscountName, f.CommitmentDiscountQuantity,
  f.CommitmentDiscountStatus, f.CommitmentDiscountType, f.CommitmentDiscountUnit, f.ConsumedQuantity, f.ConsumedUnit,
  f.ContractedCost, f.ContractedUnitPrice, f.EffectiveCost, f.InvoiceId, f.InvoiceIssuerName, f.ListCost,
  f.ListUnitPrice, f.PricingCategory, f.PricingCurrency, f.PricingCurrencyContractedUnitPrice,
  f.PricingCurrencyEffectiveCost, f.PricingCurrencyListUnitPrice, f.PricingQuantity, f.PricingUnit, f.ProviderName,
  f.PublisherName, f.RegionId, f.RegionName, f.ResourceId, f.ResourceName, f.ResourceType, f.ServiceCategory,
  f.ServiceName, f.ServiceSubcategory, f.SkuId, f.SkuMeter, f.SkuPriceDetails, f.SkuPriceId, f.SubAccountId,
  f.SubAccountName, f.SubAccountType, f.Tags, f.HostProviderName, f.ServiceProviderName, f.x_ChargeDate, f.x_Provider,
  f.x_RowKind, f.x_InvoiceMonth, f.x_CostCategories, f.x_Discounts, f.x_Operation, f.x_ServiceCode, f.x_UsageType,
  f.x_SourceChanges, f.x_PipelineLoggingId
FROM {focus} AS f
WHERE newer IS NULL;

COMMIT TRANSACTION;
