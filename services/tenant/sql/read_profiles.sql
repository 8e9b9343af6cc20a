-- Result: one row per tenant of @keys that has a profile.
-- Parameters: @keys ARRAY<STRING>, tenant ids.
-- Safe to run twice: it only reads.
SELECT
  p.tenant_id, p.version, p.company_name, p.admin_email, p.state, p.state_reason, p.onboarding_owner, p.confirmations,
  p.delete_dataset, p.created_at, p.updated_at, p.offboarded_at, p.deleted_at
FROM tenant_profiles AS p
WHERE p.tenant_id IN UNNEST(@keys)
