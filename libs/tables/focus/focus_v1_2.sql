-- A view: the rows of focus_cost_and_usage in the columns of FOCUS 1.2; one row as there. What 1.3 added is left out.
-- Parameters: none. Columns of our own (x_) come last; x_ChargeDate prunes the partitions. It only reads.
SELECT
  t.AvailabilityZone, t.BilledCost, t.BillingAccountId, t.BillingAccountName, t.BillingAccountType,
  t.BillingCurrency, t.BillingPeriodEnd, t.BillingPeriodStart, t.CapacityReservationId,
  t.CapacityReservationStatus, t.ChargeCategory, t.ChargeClass, t.ChargeDescription, t.ChargeFrequency,
  t.ChargePeriodEnd, t.ChargePeriodStart, t.CommitmentDiscountCategory, t.CommitmentDiscountId,
  t.CommitmentDiscountName, t.CommitmentDiscountQuantity, t.CommitmentDiscountStatus, t.CommitmentDiscountType,
  t.CommitmentDiscountUnit, t.ConsumedQuantity, t.ConsumedUnit, t.ContractedCost, t.ContractedUnitPrice,
  t.EffectiveCost, t.InvoiceId, t.InvoiceIssuerName, t.ListCost, t.ListUnitPrice, t.PricingCategory,
  t.PricingCurrency, t.PricingCurrencyContractedUnitPrice, t.PricingCurrencyEffectiveCost,
  t.PricingCurrencyListUnitPrice, t.PricingQuantity, t.PricingUnit, t.ProviderName, t.PublisherName, t.RegionId,
  t.RegionName, t.ResourceId, t.ResourceName, t.ResourceType, t.ServiceCategory, t.ServiceName,
  t.ServiceSubcategory, t.SkuId, t.SkuMeter, t.SkuPriceDetails, t.SkuPriceId, t.SubAccountId, t.SubAccountName,
  t.SubAccountType, t.Tags, t.x_ChargeDate, t.x_Provider, t.x_RowKind, t.x_InvoiceMonth, t.x_CostType,
  t.x_ServiceId, t.x_Credits, t.x_CurrencyConversionRate, t.x_ExportTime, t.x_Location, t.x_Project,
  t.x_CostCategories, t.x_Discounts, t.x_Operation, t.x_ServiceCode, t.x_UsageType, t.x_SourceTemplate, t.x_SourceChanges,
  t.x_PipelineLoggingId
FROM {focus_cost_and_usage} AS t
