-- One row per currency of a provider's own FOCUS export: what the checks of focus.yaml hold against source or zero.
-- Parameters: @start_date, @end_date DATE (the run's days, inclusive), @currencies ARRAY<STRING> (ISO 4217).
-- {rows} and {focus} are the staging tables that will be published. A read: it may run any number of times.
WITH
exported AS (
  SELECT
    IFNULL(s.BillingCurrency, '') AS currency,
    COUNT(*) AS row_count,
    IFNULL(SUM(s.BilledCost), 0) AS billed_cost,
    IFNULL(SUM(s.EffectiveCost), 0) AS effective_cost,
    IFNULL(SUM(CAST(s.BilledCost AS NUMERIC)), 0) AS rounded_billed_cost,
    COUNTIF(s.usage_date IS NULL) AS null_usage_date,
    COUNTIF(s.BilledCost IS NULL) AS null_billed_cost,
    COUNTIF(s.BillingAccountId IS NULL) AS null_billing_account_id,
    COUNTIF(s.BillingPeriodStart IS NULL OR s.ChargePeriodStart IS NULL) AS null_periods,
    COUNTIF(s.ChargeCategory IS NULL) AS null_charge_category,
    COUNTIF(s.BillingCurrency IS NULL OR s.BillingCurrency NOT IN UNNEST(@currencies)) AS unknown_currency,
    COUNTIF(s.usage_date NOT BETWEEN @start_date AND @end_date) AS outside_dates,
    COUNTIF(s.usage_date != DATE(s.ChargePeriodStart)) AS outside_billing_period
  FROM {rows} AS s
  GROUP BY 1
),
charges AS (
  SELECT
    IFNULL(f.BillingCurrency, '') AS currency,
    COUNT(*) AS row_count,
    SUM(f.BilledCost) AS billed_cost,
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
  GROUP BY 1
)
SELECT
  IFNULL(e.currency, c.currency) AS currency,
  e.row_count AS row_count,
  e.billed_cost AS billed_cost,
  e.effective_cost AS effective_cost,
  e.null_usage_date AS null_usage_date,
  e.null_billed_cost AS null_billed_cost,
  e.null_billing_account_id AS null_billing_account_id,
  e.null_periods AS null_periods,
  e.null_charge_category AS null_charge_category,
  e.unknown_currency AS unknown_currency,
  e.outside_dates AS outside_dates,
  e.outside_billing_period AS outside_billing_period,
  ABS(IFNULL(e.row_count, 0) - IFNULL(c.row_count, 0)) AS focus_rows_unexplained,
  ABS(IFNULL(e.rounded_billed_cost, 0) - IFNULL(c.billed_cost, 0)) AS focus_billed_cost_error,
  c.null_values AS focus_nulls,
  c.not_allowed AS focus_values_not_allowed,
  c.not_ordered AS focus_periods_not_ordered,
  c.tax_priced AS focus_tax_priced,
  c.inconsistent AS focus_commitments_inconsistent
FROM exported AS e
FULL JOIN charges AS c ON c.currency = e.currency
