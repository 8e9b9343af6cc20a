-- One row per row of a billing export that its owner lets the platform's own account read: the rows of a run, from
-- project to project inside BigQuery, in the columns of gcp_billing_export.schema.json.
-- Parameters: @start, @end (usage time, half open) and @floor (lower bound of the partition column), each of its
-- column's type; @snapshot TIMESTAMP. {source} is the customer's table, {partition} its partition column, {target} the staging
-- table made. As of @snapshot, and it replaces its target: it may run again.
-- A table has the columns of its age: by way of its JSON text, one that is not there is NULL. Numbers stay text, so
-- that they are cast once, by the same statement as those that were read by key.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS SELECT
  JSON_VALUE(t.j, '$.billing_account_id') AS billing_account_id,
  STRUCT(
    JSON_VALUE(t.j, '$.invoice.month') AS month, JSON_VALUE(t.j, '$.invoice.publisher_type') AS publisher_type
  ) AS invoice,
  JSON_VALUE(t.j, '$.cost_type') AS cost_type,
  STRUCT(JSON_VALUE(t.j, '$.service.id') AS id, JSON_VALUE(t.j, '$.service.description') AS description) AS service,
  STRUCT(JSON_VALUE(t.j, '$.sku.id') AS id, JSON_VALUE(t.j, '$.sku.description') AS description) AS sku,
  CAST(JSON_VALUE(t.j, '$.usage_start_time') AS TIMESTAMP) AS usage_start_time,
  CAST(JSON_VALUE(t.j, '$.usage_end_time') AS TIMESTAMP) AS usage_end_time,
  STRUCT(
    JSON_VALUE(t.j, '$.project.id') AS id, JSON_VALUE(t.j, '$.project.number') AS number,
    JSON_VALUE(t.j, '$.project.name') AS name, JSON_VALUE(t.j, '$.project.ancestry_numbers') AS ancestry_numbers,
    ARRAY(
      SELECT AS STRUCT
        JSON_VALUE(a, '$.resource_name') AS resource_name, JSON_VALUE(a, '$.display_name') AS display_name
      FROM UNNEST(JSON_QUERY_ARRAY(t.j, '$.project.ancestors')) AS a
    ) AS ancestors,
    ARRAY(
      SELECT AS STRUCT
        JSON_VALUE(a, '$.key') AS key, JSON_VALUE(a, '$.value') AS value
      FROM UNNEST(JSON_QUERY_ARRAY(t.j, '$.project.labels')) AS a
    ) AS labels
  ) AS project,
  ARRAY(
    SELECT AS STRUCT
      JSON_VALUE(a, '$.key') AS key, JSON_VALUE(a, '$.value') AS value
    FROM UNNEST(JSON_QUERY_ARRAY(t.j, '$.labels')) AS a
  ) AS labels,
  ARRAY(
    SELECT AS STRUCT
      JSON_VALUE(a, '$.key') AS key, JSON_VALUE(a, '$.value') AS value
    FROM UNNEST(JSON_QUERY_ARRAY(t.j, '$.system_labels')) AS a
  ) AS system_labels,
  STRUCT(
    JSON_VALUE(t.j, '$.location.location') AS location, JSON_VALUE(t.j, '$.location.country') AS country,
    JSON_VALUE(t.j, '$.location.region') AS region, JSON_VALUE(t.j, '$.location.zone') AS zone
  ) AS location,
  STRUCT(
    JSON_VALUE(t.j, '$.resource.name') AS name, JSON_VALUE(t.j, '$.resource.global_name') AS global_name
  ) AS resource,
  ARRAY(
    SELECT AS STRUCT
      JSON_VALUE(a, '$.key') AS key, JSON_VALUE(a, '$.value') AS value,
      CAST(JSON_VALUE(a, '$.inherited') AS BOOL) AS inherited, JSON_VALUE(a, '$.namespace') AS namespace
    FROM UNNEST(JSON_QUERY_ARRAY(t.j, '$.tags')) AS a
  ) AS tags,
  STRUCT(
    JSON_VALUE(t.j, '$.price.effective_price') AS effective_price,
    JSON_VALUE(t.j, '$.price.tier_start_amount') AS tier_start_amount, JSON_VALUE(t.j, '$.price.unit') AS unit,
    JSON_VALUE(t.j, '$.price.pricing_unit_quantity') AS pricing_unit_quantity,
    JSON_VALUE(t.j, '$.price.list_price') AS list_price,
    JSON_VALUE(t.j, '$.price.effective_price_default') AS effective_price_default,
    JSON_VALUE(t.j, '$.price.list_price_consumption_model') AS list_price_consumption_model
  ) AS price,
  STRUCT(JSON_VALUE(t.j, '$.subscription.instance_id') AS instance_id) AS subscription,
  STRUCT(
    JSON_VALUE(t.j, '$.consumption_model.id') AS id, JSON_VALUE(t.j, '$.consumption_model.description') AS description
  ) AS consumption_model,
  JSON_VALUE(t.j, '$.transaction_type') AS transaction_type,
  JSON_VALUE(t.j, '$.seller_name') AS seller_name,
  CAST(JSON_VALUE(t.j, '$.export_time') AS TIMESTAMP) AS export_time,
  JSON_VALUE(t.j, '$.cost') AS cost,
  JSON_VALUE(t.j, '$.currency') AS currency,
  JSON_VALUE(t.j, '$.currency_conversion_rate') AS currency_conversion_rate,
  STRUCT(
    JSON_VALUE(t.j, '$.usage.amount') AS amount, JSON_VALUE(t.j, '$.usage.unit') AS unit,
    JSON_VALUE(t.j, '$.usage.amount_in_pricing_units') AS amount_in_pricing_units,
    JSON_VALUE(t.j, '$.usage.pricing_unit') AS pricing_unit
  ) AS usage,
  ARRAY(
    SELECT AS STRUCT
      JSON_VALUE(a, '$.id') AS id, JSON_VALUE(a, '$.full_name') AS full_name, JSON_VALUE(a, '$.type') AS type,
      JSON_VALUE(a, '$.name') AS name, JSON_VALUE(a, '$.amount') AS amount
    FROM UNNEST(JSON_QUERY_ARRAY(t.j, '$.credits')) AS a
  ) AS credits,
  STRUCT(
    JSON_VALUE(t.j, '$.adjustment_info.id') AS id, JSON_VALUE(t.j, '$.adjustment_info.description') AS description,
    JSON_VALUE(t.j, '$.adjustment_info.type') AS type, JSON_VALUE(t.j, '$.adjustment_info.mode') AS mode
  ) AS adjustment_info,
  JSON_VALUE(t.j, '$.cost_at_list') AS cost_at_list,
  JSON_VALUE(t.j, '$.cost_at_effective_price_default') AS cost_at_effective_price_default,
  JSON_VALUE(t.j, '$.cost_at_list_consumption_model') AS cost_at_list_consumption_model,
  CAST(NULL AS STRING) AS source_extra
FROM (
  SELECT TO_JSON_STRING(s) AS j
  FROM {source} AS s FOR SYSTEM_TIME AS OF @snapshot
  WHERE s.usage_start_time >= @start
    AND s.usage_start_time < @end
    AND (s.{partition} >= @floor OR s.{partition} IS NULL)
) AS t
