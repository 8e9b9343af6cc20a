-- One row per currency of the staged rows: what the quality checks of billing.yaml hold against the source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive), @currencies ARRAY<STRING> (ISO 4217).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
-- Only usage must name a meter: purchases, taxes and marketplace orders may have none. Billed and effective cost in FOCUS
-- are held against sums of the export's own rows, each value rounded to the nine digits of FOCUS.
WITH
billing AS (
  SELECT
    IFNULL(s.billing_currency, '') AS currency,
    COUNT(*) AS row_count,
    IFNULL(SUM(IF(s.cost_view = 'ACTUAL', s.cost, 0)), 0) AS actual_cost,
    IFNULL(SUM(IF(s.cost_view = 'AMORTIZED', s.cost, 0)), 0) AS amortized_cost,
    COUNTIF(s.usage_date IS NULL) AS null_usage_date,
    COUNTIF(s.cost IS NULL) AS null_cost,
    COUNTIF(s.billing_account_id IS NULL AND s.billing_profile_id IS NULL) AS null_billing_account_id,
    COUNTIF(s.charge_type IS NULL) AS null_charge_type,
    COUNTIF(s.billing_currency IS NULL OR s.billing_currency NOT IN UNNEST(@currencies)) AS unknown_currency,
    COUNTIF(s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
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
  GROUP BY 1, 2
),
charges AS (
  SELECT
    IFNULL(f.BillingCurrency, '') AS currency,
    f.x_InvoiceMonth AS invoice_month,
    COUNT(*) AS row_count,
    SUM(f.BilledCost) AS billed_cost,
    SUM(f.EffectiveCost) AS effective_cost,
    COUNTIF(
      f.BilledCost IS NULL OR f.BillingAccountId IS NULL OR f.BillingCurrency IS NULL OR f.BillingPeriodStart IS NULL
      OR f.BillingPeriodEnd IS NULL OR f.ChargeCategory IS NULL OR f.ChargePeriodStart IS NULL
      OR f.ChargePeriodEnd IS NULL OR f.ContractedCost IS NULL OR f.EffectiveCost IS NULL
      OR f.InvoiceIssuerName IS NULL OR f.ListCost IS NULL OR f.ProviderName IS NULL OR f.PublisherName IS NULL
      OR f.ServiceCategory IS NULL OR f.ServiceName IS NULL OR f.ServiceProviderName IS NULL
      OR f.ServiceSubcategory IS NULL OR f.ChargeFrequency IS NULL OR f.HostProviderName IS NULL
    ) AS null_values,
    COUNTIF(
      f.ChargeCategory NOT IN ('Usage', 'Purchase', 'Tax', 'Credit', 'Adjustment')
      OR f.ChargeClass != 'Correction'
      OR f.ChargeFrequency NOT IN ('One-Time', 'Recurring', 'Usage-Based')
      OR f.PricingCategory NOT IN ('Standard', 'Dynamic', 'Committed', 'Other')
      OR f.CommitmentDiscountCategory NOT IN ('Spend', 'Usage')
      OR f.CommitmentDiscountStatus NOT IN ('Used', 'Unused')
      OR f.CapacityReservationStatus NOT IN ('Used', 'Unused')
      OR f.ServiceCategory NOT IN (
        'AI and Machine Learning', 'Analytics', 'Business Applications', 'Compute', 'Databases', 'Developer Tools',
        'Multicloud', 'Identity', 'Integration', 'Internet of Things', 'Management and Governance', 'Media',
        'Migration', 'Mobile', 'Networking', 'Security', 'Storage', 'Web', 'Other'
      )
    ) AS not_allowed,
    COUNTIF(f.ChargePeriodEnd <= f.ChargePeriodStart OR f.BillingPeriodEnd <= f.BillingPeriodStart) AS not_ordered,
    COUNTIF(
      f.ChargeCategory = 'Tax'
      AND (
        f.SkuId IS NOT NULL OR f.SkuPriceId IS NOT NULL OR f.ConsumedQuantity IS NOT NULL
        OR f.PricingQuantity IS NOT NULL OR f.ListUnitPrice IS NOT NULL OR f.ContractedUnitPrice IS NOT NULL
        OR f.PricingCategory IS NOT NULL
      )
    ) AS tax_priced,
    COUNTIF(
      (f.CommitmentDiscountId IS NULL) != (f.CommitmentDiscountCategory IS NULL)
      OR (f.CommitmentDiscountId IS NULL) != (f.CommitmentDiscountType IS NULL)
      OR (f.CommitmentDiscountId IS NOT NULL AND f.ChargeCategory = 'Usage')
        != (f.CommitmentDiscountStatus IS NOT NULL)
    ) AS inconsistent
  FROM {focus} AS f
  GROUP BY 1, 2
),
ties AS (
  SELECT
    IFNULL(i.currency, f.currency) AS currency,
    SUM(ABS(IFNULL(i.row_count, 0) - IFNULL(f.row_count, 0))) AS focus_rows_unexplained,
    SUM(IF(IFNULL(i.has_actual, FALSE), ABS(IFNULL(i.actual_cost, 0) - IFNULL(f.billed_cost, 0)), 0))
      AS focus_billed_cost_error,
    SUM(ABS(IFNULL(i.effective_cost, 0) - IFNULL(f.effective_cost, 0))) AS focus_effective_cost_error,
    SUM(IFNULL(f.null_values, 0)) AS focus_nulls,
    SUM(IFNULL(f.not_allowed, 0)) AS focus_values_not_allowed,
    SUM(IFNULL(f.not_ordered, 0)) AS focus_periods_not_ordered,
    SUM(IFNULL(f.tax_priced, 0)) AS focus_tax_priced,
    SUM(IFNULL(f.inconsistent, 0)) AS focus_commitments_inconsistent
  FROM invoices AS i
  FULL JOIN charges AS f ON f.currency = i.currency AND f.invoice_month = i.invoice_month
  GROUP BY 1
)
SELECT
  IFNULL(b.currency, t.currency) AS currency,
  b.row_count, b.actual_cost, b.amortized_cost, b.null_usage_date, b.null_cost, b.null_billing_account_id,
  b.null_charge_type, b.unknown_currency, b.outside_dates, b.outside_billing_period, b.null_meter_id,
  t.focus_rows_unexplained, t.focus_billed_cost_error, t.focus_effective_cost_error, t.focus_nulls,
  t.focus_values_not_allowed, t.focus_periods_not_ordered, t.focus_tax_priced, t.focus_commitments_inconsistent
FROM billing AS b
FULL JOIN ties AS t ON t.currency = b.currency
