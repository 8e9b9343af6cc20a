-- Result: one row per tenant that is being offboarded, with what is still to do for it.
-- Parameters: @now TIMESTAMP.
-- Safe to run twice: it only reads.
SELECT
  p.tenant_id, p.version, p.company_name, p.admin_email, p.state, p.state_reason, p.onboarding_owner, p.confirmations,
  p.delete_dataset, p.created_at, p.updated_at, p.offboarded_at, p.deleted_at,
  q.state AS quota_state,
  q.next_expiry IS NOT NULL AS live_grants,
  COALESCE(k.live_keys, 0) > 0 AS live_keys
FROM tenant_profiles AS p
JOIN tenant_usage_quotas AS q ON q.tenant_id = p.tenant_id
LEFT JOIN (
  SELECT a.tenant_id, COUNT(a.api_key_id) AS live_keys
  FROM tenant_api_keys AS a
  WHERE a.revoked_at IS NULL AND (a.expires_at IS NULL OR a.expires_at > @now)
  GROUP BY a.tenant_id
) AS k ON k.tenant_id = p.tenant_id
WHERE p.state = 'OFFBOARDING'
