-- One row per row of the billing export, flattened and typed; a staging table with the columns of gcp_cost_billing
-- source_fingerprint, by which rows are counted as identical, and quarantine_reason, why a row shall not be published.
-- Parameters: @pipeline_logging_id STRING, @currencies ARRAY<STRING> (ISO 4217). {raw} is the export's rows as they
-- came, {target} the table made.
-- Money is NUMERIC by a CAST of each value, never of a sum. Only regular cost must name a service and a SKU: taxes and
-- adjustments may concern the whole account. Replaces its target, so it may run again.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS SELECT
  DATE(r.usage_start_time) AS usage_date,
  r.usage_start_time AS usage_start_time,
  r.usage_end_time AS usage_end_time,
  r.billing_account_id AS billing_account_id,
  r.invoice.month AS invoice_month,
  r.invoice.publisher_type AS invoice_publisher_type,
  r.cost_type AS cost_type,
  r.service.id AS service_id,
  r.service.description AS service_description,
  r.sku.id AS sku_id,
  r.sku.description AS sku_description,
  r.project.id AS project_id,
  r.project.number AS project_number,
  r.project.name AS project_name,
  r.project.ancestry_numbers AS project_ancestry_numbers,
  r.project.ancestors AS project_ancestors,
  r.project.labels AS project_labels,
  r.location.location AS location,
  r.location.country AS location_country,
  r.location.region AS location_region,
  r.location.zone AS location_zone,
  r.resource.name AS resource_name,
  r.resource.global_name AS resource_global_name,
  CAST(r.cost AS NUMERIC) AS cost,
  IFNULL((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(r.credits) AS c), 0) AS credits_total,
  IFNULL(CAST(r.cost AS NUMERIC), 0)
    + IFNULL((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(r.credits) AS c), 0) AS net_cost,
  r.currency AS currency,
  CAST(r.currency_conversion_rate AS FLOAT64) AS currency_conversion_rate,
  CAST(r.usage.amount AS FLOAT64) AS usage_amount,
  r.usage.unit AS usage_unit,
  CAST(r.usage.amount_in_pricing_units AS FLOAT64) AS usage_amount_in_pricing_units,
  r.usage.pricing_unit AS usage_pricing_unit,
  CAST(r.price.effective_price AS NUMERIC) AS price_effective_price,
  CAST(r.price.tier_start_amount AS NUMERIC) AS price_tier_start_amount,
  r.price.unit AS price_unit,
  CAST(r.price.pricing_unit_quantity AS NUMERIC) AS price_pricing_unit_quantity,
  CAST(r.price.list_price AS NUMERIC) AS price_list_price,
  CAST(r.price.effective_price_default AS NUMERIC) AS price_effective_price_default,
  CAST(r.price.list_price_consumption_model AS NUMERIC) AS price_list_price_consumption_model,
  CAST(r.cost_at_list AS NUMERIC) AS cost_at_list,
  CAST(r.cost_at_effective_price_default AS NUMERIC) AS cost_at_effective_price_default,
  CAST(r.cost_at_list_consumption_model AS NUMERIC) AS cost_at_list_consumption_model,
  r.consumption_model.id AS consumption_model_id,
  r.consumption_model.description AS consumption_model_description,
  r.subscription.instance_id AS subscription_instance_id,
  r.transaction_type AS transaction_type,
  r.seller_name AS seller_name,
  r.adjustment_info.id AS adjustment_info_id,
  r.adjustment_info.description AS adjustment_info_description,
  r.adjustment_info.type AS adjustment_info_type,
  r.adjustment_info.mode AS adjustment_info_mode,
  r.export_time AS export_time,
  r.labels AS labels,
  r.system_labels AS system_labels,
  r.tags AS tags,
  ARRAY(
    SELECT AS STRUCT
      c.id AS id, c.full_name AS full_name, c.type AS type, c.name AS name, CAST(c.amount AS NUMERIC) AS amount
    FROM UNNEST(r.credits) AS c
  ) AS credits,
  PARSE_JSON(r.source_extra, wide_number_mode => 'round') AS source_extra,
  @pipeline_logging_id AS pipeline_logging_id,
  MD5(TO_JSON_STRING(r)) AS source_fingerprint,
  NULLIF(RTRIM(CONCAT(
    IF(IFNULL(r.billing_account_id, '') = '', 'no billing account; ', ''),
    IF(IFNULL(r.cost_type, 'regular') = 'regular' AND IFNULL(r.service.id, '') = '', 'no service; ', ''),
    IF(IFNULL(r.cost_type, 'regular') = 'regular' AND IFNULL(r.sku.id, '') = '', 'no SKU; ', ''),
    IF(NOT REGEXP_CONTAINS(r.invoice.month, r'^[0-9]{4}(0[1-9]|1[0-2])$'), 'an invoice month that is none; ', ''),
    IF(IFNULL(r.currency, '') = '', 'no currency; ', ''),
    IF(r.currency != '' AND r.currency NOT IN UNNEST(@currencies), 'a currency that is not of ISO 4217; ', '')
  ), '; '), '') AS quarantine_reason
FROM {raw} AS r
