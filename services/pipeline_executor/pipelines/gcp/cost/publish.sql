-- A part of publishing: replaces the run's dates in gcp_cost_billing by the staged rows. Grain: one row of the export.
-- Parameters: @start_date, @end_date DATE (inclusive; they prune the partitions). {rows} is the staging table.
-- A date without staged rows keeps what it has: the export never takes rows back, so their absence means that they have
-- not come yet.
-- Running it again is kept from by the fence of the same script.
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
WHERE newer IS NULL AND s.quarantine_reason IS NULL;
