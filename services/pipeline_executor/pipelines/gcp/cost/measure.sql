-- One row per currency of the staged rows: what the quality checks of billing.yaml hold against the source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive), @currencies ARRAY<STRING> (ISO 4217).
-- {rows} is the staging table that will be published. A read: it may run any number of times.
-- Only regular usage must name a service and a SKU: taxes and adjustments may concern the whole account.
SELECT
  IFNULL(s.currency, '') AS currency,
  COUNT(*) AS row_count,
  IFNULL(SUM(s.cost), 0) AS cost,
  IFNULL(SUM(s.credits_total), 0) AS credits,
  COUNT(DISTINCT s.source_fingerprint) AS distinct_rows,
  IFNULL(SUM(s.net_cost), 0) - IFNULL(SUM(s.cost), 0) - IFNULL(SUM(s.credits_total), 0) AS net_cost_error,
  COUNTIF(s.usage_date IS NULL) AS null_usage_date,
  COUNTIF(s.billing_account_id IS NULL) AS null_billing_account_id,
  COUNTIF(s.service_id IS NULL AND IFNULL(s.cost_type, 'regular') = 'regular') AS null_service_id,
  COUNTIF(s.sku_id IS NULL AND IFNULL(s.cost_type, 'regular') = 'regular') AS null_sku_id,
  COUNTIF(s.currency IS NULL OR s.currency NOT IN UNNEST(@currencies)) AS unknown_currency,
  COUNTIF(s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
  COUNTIF(s.usage_end_time < s.usage_start_time) AS ends_before_start
FROM {rows} AS s
GROUP BY 1
