-- Result: one tenant id per tenant whose profile or subscription says otherwise than its quota row.
-- Parameters: none.
-- Safe to run twice: it only reads.
SELECT q.tenant_id
FROM tenant_usage_quotas AS q
JOIN tenant_profiles AS p ON p.tenant_id = q.tenant_id
JOIN tenant_subscriptions AS s ON s.tenant_id = q.tenant_id
WHERE s.plan != q.plan
  OR s.state != IF(q.state = 'DELETED', 'ENDED', 'ACTIVE')
  OR (p.state IN ('ACTIVE', 'SUSPENDED') AND q.state IN ('ACTIVE', 'SUSPENDED') AND p.state != q.state)
