-- Result: up to @limit tenants, by id, each with what is in force for it.
-- Parameters: @tenant_id STRING, only this one ('' = all); @after STRING, ids above it; @state STRING and @plan STRING
--   ('' = any); @limit INT64.
-- Safe to run twice: it only reads.
SELECT
  t.tenant_id, t.version, t.company_name, t.admin_email, t.state, t.state_reason, t.onboarding_owner, t.confirmations,
  t.delete_dataset, t.created_at, t.updated_at, t.offboarded_at, t.deleted_at,
  t.quota_state, t.plan, t.daily_limit, t.monthly_limit, t.concurrent_limit
FROM (
  SELECT
    p.tenant_id, p.version, p.company_name, p.admin_email, p.state, p.state_reason, p.onboarding_owner,
    p.confirmations, p.delete_dataset, p.created_at, GREATEST(p.updated_at, s.updated_at) AS updated_at,
    p.offboarded_at, p.deleted_at,
    q.state AS quota_state, q.plan, q.daily_limit, q.monthly_limit, q.concurrent_limit,
    IF(p.state IN ('OFFBOARDING', 'DELETED'), p.state, q.state) AS leading_state
  FROM tenant_profiles AS p
  JOIN tenant_usage_quotas AS q ON q.tenant_id = p.tenant_id
  JOIN tenant_subscriptions AS s ON s.tenant_id = p.tenant_id
  WHERE (@tenant_id = '' OR p.tenant_id = @tenant_id) AND p.tenant_id > @after
) AS t
WHERE (@state = '' OR t.leading_state = @state) AND (@plan = '' OR t.plan = @plan)
ORDER BY t.tenant_id
LIMIT @limit
