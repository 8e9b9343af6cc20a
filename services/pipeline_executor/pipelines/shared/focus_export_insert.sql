-- A part of publishing: adds the staged rows to {target}, which is <provider>_cost_focus. Grain: one row of the export.
-- Parameters: none. {rows} is the staging table. Running it again is kept from by the fence of the same script.
INSERT INTO {target} (
  usage_date, AvailabilityZone, BilledCost, BillingAccountId, BillingAccountName, BillingAccountType, BillingCurrency,
  BillingPeriodEnd, BillingPeriodStart, CapacityReservationId, CapacityReservationStatus, ChargeCategory, ChargeClass,
  ChargeDescription, ChargeFrequency, ChargePeriodEnd, ChargePeriodStart, CommitmentDiscountCategory,
  CommitmentDiscountId, CommitmentDiscountName, CommitmentDiscountQuantity, CommitmentDiscountStatus,
  CommitmentDiscountType, CommitmentDiscountUnit, ConsumedQuantity, ConsumedUnit, ContractedCost, ContractedUnitPrice,
  EffectiveCost, InvoiceId, InvoiceIssuerName, ListCost, ListUnitPrice, PricingCategory, PricingCurrency,
  PricingCurrencyContractedUnitPrice, PricingCurrencyEffectiveCost, PricingCurrencyListUnitPrice, PricingQuantity,
  PricingUnit, ProviderName, PublisherName, RegionId, RegionName, ResourceId, ResourceName, ResourceType,
  ServiceCategory, ServiceName, ServiceSubcategory, SkuId, SkuMeter, SkuPriceDetails, SkuPriceId, SubAccountId,
  SubAccountName, SubAccountType, Tags, AllocatedMethodDetails, AllocatedMethodId, AllocatedResourceId,
  AllocatedResourceName, AllocatedTags, ContractApplied, HostProviderName, ServiceProviderName,
  CommitmentProgramEligibilityDetails, InvoiceDetailId, source_extra, pipeline_logging_id
)
SELECT
  s.usage_date, s.AvailabilityZone, s.BilledCost, s.BillingAccountId, s.BillingAccountName, s.BillingAccountType,
  s.BillingCurrency, s.BillingPeriodEnd, s.BillingPeriodStart, s.CapacityReservationId, s.CapacityReservationStatus,
  s.ChargeCategory, s.ChargeClass, s.ChargeDescription, s.ChargeFrequency, s.ChargePeriodEnd, s.ChargePeriodStart,
  s.CommitmentDiscountCategory, s.CommitmentDiscountId, s.CommitmentDiscountName, s.CommitmentDiscountQuantity,
  s.CommitmentDiscountStatus, s.CommitmentDiscountType, s.CommitmentDiscountUnit, s.ConsumedQuantity, s.ConsumedUnit,
  s.ContractedCost, s.ContractedUnitPrice, s.EffectiveCost, s.InvoiceId, s.InvoiceIssuerName, s.ListCost,
  s.ListUnitPrice, s.PricingCategory, s.PricingCurrency, s.PricingCurrencyContractedUnitPrice,
  s.PricingCurrencyEffectiveCost, s.PricingCurrencyListUnitPrice, s.PricingQuantity, s.PricingUnit, s.ProviderName,
  s.PublisherName, s.RegionId, s.RegionName, s.ResourceId, s.ResourceName, s.ResourceType, s.ServiceCategory,
  s.ServiceName, s.ServiceSubcategory, s.SkuId, s.SkuMeter, s.SkuPriceDetails, s.SkuPriceId, s.SubAccountId,
  s.SubAccountName, s.SubAccountType, s.Tags, s.AllocatedMethodDetails, s.AllocatedMethodId, s.AllocatedResourceId,
  s.AllocatedResourceName, s.AllocatedTags, s.ContractApplied, s.HostProviderName, s.ServiceProviderName,
  s.CommitmentProgramEligibilityDetails, s.InvoiceDetailId, s.source_extra, s.pipeline_logging_id
FROM {rows} AS s
WHERE newer IS NULL AND s.quarantine_reason IS NULL;
