-- A part of publishing: replaces the run's dates in azure_cost_billing by the staged rows. Grain: one row of the export.
-- Parameters: @start_date, @end_date DATE (inclusive; they prune the partitions). {rows} is the staging table.
-- Each delivery holds its whole billing period again, so that all of the run's dates in the staged periods are replaced,
-- those without rows included; other periods keep what they have.
-- Running it again is kept from by the fence of the same script.
DELETE FROM azure_cost_billing AS t
WHERE newer IS NULL
  AND t.usage_date BETWEEN @start_date AND @end_date
  AND t.billing_period_start IN (SELECT s.billing_period_start FROM {rows} AS s);

INSERT INTO azure_cost_billing (
  usage_date, cost_view, charge_date, billing_period_start, billing_period_end, service_period_start,
  service_period_end, billing_account_id, billing_account_name, billing_profile_id, billing_profile_name,
  invoice_section_id, invoice_section_name, account_owner_id, account_name, cost_center, subscription_id,
  subscription_name, resource_group, resource_location, location, resource_id, resource_name, availability_zone,
  consumed_service, service_family, meter_id, meter_name, meter_category, meter_sub_category, meter_region,
  product_id, product_name, part_number, offer_id, plan_name, publisher_type, publisher_id, publisher_name,
  product_order_id, product_order_name, reservation_id, reservation_name, benefit_id, benefit_name, term,
  pricing_model, charge_type, frequency, unit_of_measure, quantity, effective_price, unit_price, payg_price, cost,
  billing_currency, pricing_currency, cost_in_pricing_currency, cost_in_usd, payg_cost_in_billing_currency,
  payg_cost_in_usd, exchange_rate, exchange_rate_date, invoice_id, previous_invoice_id, reseller_name,
  reseller_mpn_id, partner_name, partner_tenant_id, customer_name, customer_tenant_id, is_azure_credit_eligible,
  cost_allocation_rule_name, service_info_first, service_info_second, additional_info, tags, source_extra,
  pipeline_logging_id
)
SELECT
  s.usage_date, s.cost_view, s.charge_date, s.billing_period_start, s.billing_period_end, s.service_period_start,
  s.service_period_end, s.billing_account_id, s.billing_account_name, s.billing_profile_id,
  s.billing_profile_name, s.invoice_section_id, s.invoice_section_name, s.account_owner_id, s.account_name,
  s.cost_center, s.subscription_id, s.subscription_name, s.resource_group, s.resource_location, s.location,
  s.resource_id, s.resource_name, s.availability_zone, s.consumed_service, s.service_family, s.meter_id,
  s.meter_name, s.meter_category, s.meter_sub_category, s.meter_region, s.product_id, s.product_name,
  s.part_number, s.offer_id, s.plan_name, s.publisher_type, s.publisher_id, s.publisher_name, s.product_order_id,
  s.product_order_name, s.reservation_id, s.reservation_name, s.benefit_id, s.benefit_name, s.term,
  s.pricing_model, s.charge_type, s.frequency, s.unit_of_measure, s.quantity, s.effective_price, s.unit_price,
  s.payg_price, s.cost, s.billing_currency, s.pricing_currency, s.cost_in_pricing_currency, s.cost_in_usd,
  s.payg_cost_in_billing_currency, s.payg_cost_in_usd, s.exchange_rate, s.exchange_rate_date, s.invoice_id,
  s.previous_invoice_id, s.reseller_name, s.reseller_mpn_id, s.partner_name, s.partner_tenant_id, s.customer_name,
  s.customer_tenant_id, s.is_azure_credit_eligible, s.cost_allocation_rule_name, s.service_info_first,
  s.service_info_second, s.additional_info, s.tags, s.source_extra, s.pipeline_logging_id
FROM {rows} AS s
WHERE newer IS NULL AND s.quarantine_reason IS NULL;
