-- One row for the staged charges of all currencies: what the checks of every template that fills focus_cost_and_usage
-- hold against zero, whatever the source.
-- Parameters: none. {focus} is the staging table that will be published. A read: it may run any number of times.
SELECT
  '' AS currency,
  COUNTIF(
    f.BilledCost IS NULL OR f.BillingAccountId IS NULL OR f.BillingCurrency IS NULL OR f.BillingPeriodStart IS NULL
    OR f.BillingPeriodEnd IS NULL OR f.ChargeCategory IS NULL OR f.ChargePeriodStart IS NULL
    OR f.ChargePeriodEnd IS NULL OR f.ContractedCost IS NULL OR f.EffectiveCost IS NULL
    OR f.InvoiceIssuerName IS NULL OR f.ListCost IS NULL OR f.ProviderName IS NULL OR f.PublisherName IS NULL
    OR f.ServiceCategory IS NULL OR f.ServiceName IS NULL OR f.ServiceProviderName IS NULL
    OR f.ServiceSubcategory IS NULL OR f.ChargeFrequency IS NULL OR f.HostProviderName IS NULL
  ) AS focus_nulls,
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
  ) AS focus_values_not_allowed,
  COUNTIF(f.ChargePeriodEnd <= f.ChargePeriodStart OR f.BillingPeriodEnd <= f.BillingPeriodStart)
    AS focus_periods_not_ordered,
  COUNTIF(
    f.ChargeCategory = 'Tax'
    AND (
      f.SkuId IS NOT NULL OR f.SkuPriceId IS NOT NULL OR f.ConsumedQuantity IS NOT NULL
      OR f.PricingQuantity IS NOT NULL OR f.ListUnitPrice IS NOT NULL OR f.ContractedUnitPrice IS NOT NULL
      OR f.PricingCategory IS NOT NULL
    )
  ) AS focus_tax_priced,
  COUNTIF(
    (f.CommitmentDiscountId IS NULL) != (f.CommitmentDiscountCategory IS NULL)
    OR (f.CommitmentDiscountId IS NULL) != (f.CommitmentDiscountType IS NULL)
    OR (f.CommitmentDiscountId IS NOT NULL AND f.ChargeCategory = 'Usage')
      != (f.CommitmentDiscountStatus IS NOT NULL)
  ) AS focus_commitments_inconsistent
FROM {focus} AS f
