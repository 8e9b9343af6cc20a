-- One row per currency of the staged rows: what the quality checks of billing.yaml hold against the source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
-- The source is held against all its rows, those for quarantine included; FOCUS against the others.
-- Only usage must name a meter: purchases, taxes and marketplace orders may have none. Billed and effective cost in FOCUS
-- are held against sums of the export's own rows, each value rounded to the nine digits of FOCUS.
WITH
billing AS (
  SELECT
    IFNULL(s.billing_currency, '') AS currency,
    COUNT(*) AS row_count,
    IFNULL(SUM(IF(s.cost_view = 'ACTUAL', s.cost, 0)), 0) AS actual_cost,
    IFNULL(SUM(IF(s.cost_view = 'AMORTIZED', s.cost, 0)), 0) AS amortized_cost,
    COUNTIF(s.quarantine_reason IS NOT NULL) AS quarantined_rows,
    COUNTIF(s.usage_date IS NULL OR s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
    COUNTIF(s.charge_date != s.usage_date) AS outside_billing_period,
    COUNTIF(s.meter_id IS NULL AND LOWER(s.charge_type) = 'usage' AND LOWER(IFNULL(s.publisher_type, '')) = 'azure')
      AS null_meter_id
  FROM {rows} AS s
  GROUP BY 1
),
invoices AS (
  SELECT
    IFNULL(s.billing_currency, '') AS currency,
    FORMAT_DATE('%Y%m', s.billing_period_start) AS invoice_month,
    COUNTIF(
      s.cost_views != 'BOTH' OR s.cost_view = 'AMORTIZED'
      OR (
        LOWER(IFNULL(s.charge_type, '')) IN ('purchase', 'refund')
        AND (
          LOWER(IFNULL(s.pricing_model, '')) IN ('reservation', 'savingsplan')
          OR s.benefit_id IS NOT NULL OR s.reservation_id IS NOT NULL
        )
      )
    ) AS row_count,
    SUM(IF(s.cost_view = 'ACTUAL', CAST(IFNULL(s.cost, 0) AS NUMERIC), 0)) AS actual_cost,
    SUM(
      IF(s.cost_views = 'ACTUAL' OR s.cost_view = 'AMORTIZED', CAST(IFNULL(s.cost, 0) AS NUMERIC), 0)
    ) AS effective_cost,
    COUNTIF(s.cost_view = 'ACTUAL') > 0 AS has_actual
  FROM {rows} AS s
  WHERE s.quarantine_reason IS NULL
  GROUP BY 1, 2
),
charges AS (
  SELECT
    IFNULL(f.BillingCurrency, '') AS currency,
    f.x_InvoiceMonth AS invoice_month,
    COUNT(*) AS row_count,
    SUM(f.BilledCost) AS billed_cost,
    SUM(f.EffectiveCost) AS effective_cost
  FROM {focus} AS f
  GROUP BY 1, 2
),
ties AS (
  SELECT
    IFNULL(i.currency, f.currency) AS currency,
    SUM(ABS(IFNULL(i.row_count, 0) - IFNULL(f.row_count, 0))) AS focus_rows_unexplained,
    SUM(IF(IFNULL(i.has_actual, FALSE), ABS(IFNULL(i.actual_cost, 0) - IFNULL(f.billed_cost, 0)), 0))
      AS focus_billed_cost_error,
    SUM(ABS(IFNULL(i.effective_cost, 0) - IFNULL(f.effective_cost, 0))) AS focus_effective_cost_error
  FROM invoices AS i
  FULL JOIN charges AS f ON f.currency = i.currency AND f.invoice_month = i.invoice_month
  GROUP BY 1
)
SELECT
  IFNULL(b.currency, t.currency) AS currency,
  b.row_count, b.actual_cost, b.amortized_cost, b.quarantined_rows, b.outside_dates,
  b.outside_billing_period, b.null_meter_id,
  t.focus_rows_unexplained, t.focus_billed_cost_error, t.focus_effective_cost_error
FROM billing AS b
FULL JOIN ties AS t ON t.currency = b.currency
