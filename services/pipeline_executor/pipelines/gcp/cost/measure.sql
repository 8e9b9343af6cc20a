-- One row per currency of the staged rows: what the quality checks of billing.yaml hold against the source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
-- The source is held against all its rows, those for quarantine included; FOCUS against the others.
WITH
billing AS (
  SELECT
    IFNULL(s.currency, '') AS currency,
    COUNT(*) AS row_count,
    IFNULL(SUM(s.cost), 0) AS cost,
    IFNULL(SUM(s.credits_total), 0) AS credits,
    COUNT(DISTINCT s.source_fingerprint) AS distinct_rows,
    IFNULL(SUM(s.net_cost), 0) - IFNULL(SUM(s.cost), 0) - IFNULL(SUM(s.credits_total), 0) AS net_cost_error,
    COUNTIF(s.quarantine_reason IS NOT NULL) AS quarantined_rows,
    COUNTIF(s.usage_date IS NULL OR s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
    COUNTIF(s.usage_end_time < s.usage_start_time) AS ends_before_start
  FROM {rows} AS s
  GROUP BY 1
),
invoices AS (
  SELECT
    IFNULL(s.currency, '') AS currency,
    IFNULL(s.invoice_month, FORMAT_TIMESTAMP('%Y%m', s.usage_start_time, 'America/Los_Angeles')) AS invoice_month,
    SUM(s.net_cost) AS net_cost,
    COUNT(*) + SUM((SELECT COUNT(*) FROM UNNEST(s.credits) AS c WHERE c.type = 'PROMOTION')) AS row_count
  FROM {rows} AS s
  WHERE s.quarantine_reason IS NULL
  GROUP BY 1, 2
),
charges AS (
  SELECT
    IFNULL(f.BillingCurrency, '') AS currency,
    f.x_InvoiceMonth AS invoice_month,
    SUM(f.BilledCost) AS billed_cost,
    SUM(f.EffectiveCost) AS effective_cost,
    COUNTIF(f.x_RowKind IN ('CHARGE', 'PROMOTION')) AS row_count,
    COUNTIF(f.ChargeCategory = 'Purchase' AND f.EffectiveCost != 0) AS effective_purchases
  FROM {focus} AS f
  GROUP BY 1, 2
),
ties AS (
  SELECT
    IFNULL(i.currency, f.currency) AS currency,
    SUM(ABS(IFNULL(i.row_count, 0) - IFNULL(f.row_count, 0))) AS focus_rows_unexplained,
    SUM(ABS(IFNULL(i.net_cost, 0) - IFNULL(f.billed_cost, 0))) AS focus_billed_cost_error,
    SUM(ABS(IFNULL(i.net_cost, 0) - IFNULL(f.effective_cost, 0))) AS focus_effective_cost_error,
    SUM(IFNULL(f.effective_purchases, 0)) AS focus_effective_purchases
  FROM invoices AS i
  FULL JOIN charges AS f ON f.currency = i.currency AND f.invoice_month = i.invoice_month
  GROUP BY 1
)
SELECT
  IFNULL(b.currency, t.currency) AS currency,
  b.row_count, b.cost, b.credits, b.distinct_rows, b.net_cost_error, b.quarantined_rows,
  b.outside_dates, b.ends_before_start,
  t.focus_rows_unexplained, t.focus_billed_cost_error, t.focus_effective_cost_error, t.focus_effective_purchases
FROM billing AS b
FULL JOIN ties AS t ON t.currency = b.currency
