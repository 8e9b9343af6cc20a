-- A part of publishing: adds the staged charges to focus_cost_and_usage. Grain: one row per charge.
-- Parameters: none. {focus} is the staging table. Running it again is kept from by the fence of the same script.
INSERT INTO focus_cost_and_usage (
  AvailabilityZone, BilledCost, BillingAccountId, BillingAccountName, BillingAccountType, BillingCurrency,
  BillingPeriodEnd, BillingPeriodStart, CapacityReservationId, CapacityReservationStatus, ChargeCategory, ChargeClass,
  ChargeDescription, ChargeFrequency, ChargePeriodEnd, ChargePeriodStart, CommitmentDiscountCategory,
  CommitmentDiscountId, CommitmentDiscountName, CommitmentDiscountQuantity, CommitmentDiscountStatus,
  CommitmentDiscountType, CommitmentDiscountUnit, ConsumedQuantity, ConsumedUnit, ContractedCost, ContractedUnitPrice,
  EffectiveCost, InvoiceId, InvoiceIssuerName, ListCost, ListUnitPrice, PricingCategory, PricingCurrency,
  PricingCurrencyContractedUnitPrice, PricingCurrencyEffectiveCost, PricingCurrencyListUnitPrice, PricingQuantity,
  PricingUnit, ProviderName, PublisherName, RegionId, RegionName, ResourceId, ResourceName, ResourceType,
  ServiceCategory, ServiceName, ServiceSubcategory, SkuId, SkuMeter, SkuPriceDetails, SkuPriceId, SubAccountId,
  SubAccountName, SubAccountType, Tags, HostProviderName, ServiceProviderName, x_ChargeDate, x_Provider, x_RowKind,
  x_InvoiceMonth, x_CostType, x_ServiceId, x_Credits, x_CurrencyConversionRate, x_ExportTime, x_Location, x_Project,
  x_CostCategories, x_Discounts, x_Operation, x_ServiceCode, x_UsageType, x_SourceTemplate, x_SourceChanges,
  x_PipelineLoggingId
)
SELECT
  f.AvailabilityZone, f.BilledCost, f.BillingAccountId, f.BillingAccountName, f.BillingAccountType, f.BillingCurrency,
  f.BillingPeriodEnd, f.BillingPeriodStart, f.CapacityReservationId, f.CapacityReservationStatus, f.ChargeCategory,
  f.ChargeClass, f.ChargeDescription, f.ChargeFrequency, f.ChargePeriodEnd, f.ChargePeriodStart,
  f.CommitmentDiscountCategory, f.CommitmentDiscountId, f.CommitmentDiscountName, f.CommitmentDiscountQuantity,
  f.CommitmentDiscountStatus, f.CommitmentDiscountType, f.CommitmentDiscountUnit, f.ConsumedQuantity, f.ConsumedUnit,
  f.ContractedCost, f.ContractedUnitPrice, f.EffectiveCost, f.InvoiceId, f.InvoiceIssuerName, f.ListCost,
  f.ListUnitPrice, f.PricingCategory, f.PricingCurrency, f.PricingCurrencyContractedUnitPrice,
  f.PricingCurrencyEffectiveCost, f.PricingCurrencyListUnitPrice, f.PricingQuantity, f.PricingUnit, f.ProviderName,
  f.PublisherName, f.RegionId, f.RegionName, f.ResourceId, f.ResourceName, f.ResourceType, f.ServiceCategory,
  f.ServiceName, f.ServiceSubcategory, f.SkuId, f.SkuMeter, f.SkuPriceDetails, f.SkuPriceId, f.SubAccountId,
  f.SubAccountName, f.SubAccountType, f.Tags, f.HostProviderName, f.ServiceProviderName, f.x_ChargeDate, f.x_Provider,
  f.x_RowKind, f.x_InvoiceMonth, f.x_CostType, f.x_ServiceId, f.x_Credits, f.x_CurrencyConversionRate, f.x_ExportTime,
  f.x_Location, f.x_Project, f.x_CostCategories, f.x_Discounts, f.x_Operation, f.x_ServiceCode, f.x_UsageType,
  f.x_SourceTemplate, f.x_SourceChanges, f.x_PipelineLoggingId
FROM {focus} AS f
WHERE newer IS NULL;
