-- One row per currency of the staged rows: what the quality checks of billing.yaml hold against the source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
-- The source is held against all its rows, those for quarantine included; FOCUS against the others.
-- Billed and effective cost in FOCUS are held against sums of the report's own rows, each value rounded to the nine
-- digits of FOCUS: the invoice is the net cost where the payer has one, else the unblended one; what commitments are
-- worth is their share of each row, and what nobody used of them.
WITH
billing AS (
  SELECT
    IFNULL(s.line_item_currency_code, '') AS currency,
    COUNT(*) AS row_count,
    IFNULL(SUM(s.line_item_unblended_cost), 0) AS unblended_cost,
    COUNTIF(s.quarantine_reason IS NOT NULL) AS quarantined_rows,
    COUNTIF(s.usage_date IS NULL OR s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
    COUNTIF(DATE(s.line_item_usage_start_date) != s.usage_date) AS outside_billing_period,
    COUNTIF(s.product_sku IS NULL AND s.line_item_line_item_type = 'Usage' AND s.bill_billing_entity = 'AWS')
      AS null_sku
  FROM {rows} AS s
  GROUP BY 1
),
nets AS (
  SELECT COUNTIF(s.line_item_net_unblended_cost IS NOT NULL) > 0 AS are_there
  FROM {rows} AS s
  WHERE s.quarantine_reason IS NULL
),
invoices AS (
  SELECT
    IFNULL(s.line_item_currency_code, '') AS currency,
    FORMAT_DATE('%Y%m', s.billing_period) AS invoice_month,
    COUNTIF(s.line_item_line_item_type != 'SavingsPlanNegation')
      + COUNTIF(
        s.line_item_line_item_type = 'RIFee'
        AND CAST(
          COALESCE(
            s.reservation_net_unused_amortized_upfront_fee_for_billing_period,
            s.reservation_unused_amortized_upfront_fee_for_billing_period, 0
          ) + COALESCE(s.reservation_net_unused_recurring_fee, s.reservation_unused_recurring_fee, 0) AS NUMERIC
        ) != 0
      )
      + COUNTIF(
        s.line_item_line_item_type = 'SavingsPlanRecurringFee'
        AND CAST(
          IFNULL(s.savings_plan_total_commitment_to_date, 0) - IFNULL(s.savings_plan_used_commitment, 0) AS NUMERIC
        ) != 0
      ) AS row_count,
    SUM(CAST(
      IF(
        n.are_there AND s.line_item_line_item_type IN (
          'EdpDiscount', 'BundledDiscount', 'PrivateRateDiscount', 'Discount', 'SppDiscount', 'DistributorDiscount'
        ),
        IFNULL(s.line_item_net_unblended_cost, 0),
        COALESCE(s.line_item_net_unblended_cost, s.line_item_unblended_cost, 0)
      ) AS NUMERIC
    )) AS invoiced_cost,
    SUM(CASE
      WHEN s.line_item_line_item_type IN ('SavingsPlanNegation', 'SavingsPlanUpfrontFee') THEN 0
      WHEN s.line_item_line_item_type = 'SavingsPlanCoveredUsage' THEN CAST(
        COALESCE(s.savings_plan_net_savings_plan_effective_cost, s.savings_plan_savings_plan_effective_cost, 0)
        AS NUMERIC
      )
      WHEN s.line_item_line_item_type = 'DiscountedUsage'
        THEN CAST(COALESCE(s.reservation_net_effective_cost, s.reservation_effective_cost, 0) AS NUMERIC)
      WHEN s.line_item_line_item_type = 'RIFee' THEN CAST(
        COALESCE(
          s.reservation_net_unused_amortized_upfront_fee_for_billing_period,
          s.reservation_unused_amortized_upfront_fee_for_billing_period, 0
        ) + COALESCE(s.reservation_net_unused_recurring_fee, s.reservation_unused_recurring_fee, 0) AS NUMERIC
      )
      WHEN s.line_item_line_item_type = 'SavingsPlanRecurringFee' THEN CAST(
        IFNULL(s.savings_plan_total_commitment_to_date, 0) - IFNULL(s.savings_plan_used_commitment, 0) AS NUMERIC
      )
      WHEN s.line_item_line_item_type IN ('Fee', 'Refund')
        AND COALESCE(s.savings_plan_savings_plan_a_r_n, s.reservation_reservation_a_r_n) IS NOT NULL THEN 0
      WHEN n.are_there AND s.line_item_line_item_type IN (
        'EdpDiscount', 'BundledDiscount', 'PrivateRateDiscount', 'Discount', 'SppDiscount', 'DistributorDiscount'
      ) THEN CAST(IFNULL(s.line_item_net_unblended_cost, 0) AS NUMERIC)
      ELSE CAST(COALESCE(s.line_item_net_unblended_cost, s.line_item_unblended_cost, 0) AS NUMERIC)
    END) AS effective_cost
  FROM {rows} AS s
  CROSS JOIN nets AS n
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
    SUM(ABS(IFNULL(i.invoiced_cost, 0) - IFNULL(f.billed_cost, 0))) AS focus_billed_cost_error,
    SUM(ABS(IFNULL(i.effective_cost, 0) - IFNULL(f.effective_cost, 0))) AS focus_effective_cost_error
  FROM invoices AS i
  FULL JOIN charges AS f ON f.currency = i.currency AND f.invoice_month = i.invoice_month
  GROUP BY 1
)
SELECT
  IFNULL(b.currency, t.currency) AS currency,
  b.row_count, b.unblended_cost, b.quarantined_rows, b.outside_dates, b.outside_billing_period, b.null_sku,
  t.focus_rows_unexplained, t.focus_billed_cost_error, t.focus_effective_cost_error
FROM billing AS b
FULL JOIN ties AS t ON t.currency = b.currency
