-- One row per currency of a provider's own FOCUS export: what the checks of focus.yaml hold against source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
-- The source is held against all its rows, those for quarantine included; FOCUS against the others.
WITH
exported AS (
  SELECT
    IFNULL(s.BillingCurrency, '') AS currency,
    COUNT(*) AS row_count,
    IFNULL(SUM(s.BilledCost), 0) AS billed_cost,
    IFNULL(SUM(s.EffectiveCost), 0) AS effective_cost,
    COUNTIF(s.quarantine_reason IS NULL) AS accepted_rows,
    IFNULL(SUM(IF(s.quarantine_reason IS NULL, CAST(s.BilledCost AS NUMERIC), 0)), 0) AS accepted_billed_cost,
    COUNTIF(s.quarantine_reason IS NOT NULL) AS quarantined_rows,
    COUNTIF(s.usage_date IS NULL OR s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
    COUNTIF(s.usage_date != DATE(s.ChargePeriodStart)) AS outside_billing_period
  FROM {rows} AS s
  GROUP BY 1
),
charges AS (
  SELECT
    IFNULL(f.BillingCurrency, '') AS currency,
    COUNT(*) AS row_count,
    SUM(f.BilledCost) AS billed_cost
  FROM {focus} AS f
  GROUP BY 1
)
SELECT
  IFNULL(e.currency, c.currency) AS currency,
  e.row_count AS row_count,
  e.billed_cost AS billed_cost,
  e.effective_cost AS effective_cost,
  e.quarantined_rows AS quarantined_rows,
  e.outside_dates AS outside_dates,
  e.outside_billing_period AS outside_billing_period,
  ABS(IFNULL(e.accepted_rows, 0) - IFNULL(c.row_count, 0)) AS focus_rows_unexplained,
  ABS(IFNULL(e.accepted_billed_cost, 0) - IFNULL(c.billed_cost, 0)) AS focus_billed_cost_error
FROM exported AS e
FULL JOIN charges AS c ON c.currency = e.currency
