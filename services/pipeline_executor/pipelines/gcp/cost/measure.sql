-- One row per currency of the staged rows: what the quality checks of billing.yaml hold against the source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive), @currencies ARRAY<STRING> (ISO 4217).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
-- Only regular usage must name a service and a SKU: taxes and adjustments may concern the whole account.
WITH
billing AS (
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
),
invoices AS (
  SELECT
    IFNULL(s.currency, '') AS currency,
    IFNULL(s.invoice_month, FORMAT_TIMESTAMP('%Y%m', s.usage_start_time, 'America/Los_Angeles')) AS invoice_month,
    SUM(s.net_cost) AS net_cost,
    COUNT(*) + SUM((SELECT COUNT(*) FROM UNNEST(s.credits) AS c WHERE c.type = 'PROMOTION')) AS row_count
  FROM {rows} AS s
  GROUP BY 1, 2
),
charges AS (
  SELECT
    IFNULL(f.BillingCurrency, '') AS currency,
    f.x_InvoiceMonth AS invoice_month,
    SUM(f.BilledCost) AS billed_cost,
    SUM(f.EffectiveCost) AS effective_cost,
    COUNTIF(f.x_RowKind IN ('CHARGE', 'PROMOTION')) AS row_count,
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
      OR (f.ChargeCategory = 'Purchase' AND f.EffectiveCost != 0)
    ) AS inconsistent
  FROM {focus} AS f
  GROUP BY 1, 2
),
ties AS (
  SELECT
    IFNULL(i.currency, f.currency) AS currency,
    SUM(ABS(IFNULL(i.row_count, 0) - IFNULL(f.row_count, 0))) AS focus_rows_unexplained,
    SUM(ABS(IFNULL(i.net_cost, 0) - IFNULL(f.billed_cost, 0))) AS focus_billed_cost_error,
    SUM(ABS(IFNULL(i.net_cost, 0) - IFNULL(f.effective_cost, 0))) AS focus_effective_cost_error,
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
  b.row_count, b.cost, b.credits, b.distinct_rows, b.net_cost_error, b.null_usage_date, b.null_billing_account_id,
  b.null_service_id, b.null_sku_id, b.unknown_currency, b.outside_dates, b.ends_before_start,
  t.focus_rows_unexplained, t.focus_billed_cost_error, t.focus_effective_cost_error, t.focus_nulls,
  t.focus_values_not_allowed, t.focus_periods_not_ordered, t.focus_tax_priced, t.focus_commitments_inconsistent
FROM billing AS b
FULL JOIN ties AS t ON t.currency = b.currency
