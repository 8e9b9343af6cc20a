-- Result: none; the profiles of @keys that differ from the quota row in being suspended or not then say the same.
-- Parameters: @keys ARRAY<STRING>, tenant ids; @now TIMESTAMP.
-- Safe to run twice: the second time nothing differs.
UPDATE tenant_profiles AS p
SET version = p.version + 1, state = q.state, updated_at = @now
FROM tenant_usage_quotas AS q
WHERE p.tenant_id = q.tenant_id
  AND q.tenant_id IN UNNEST(@keys)
  AND p.state IN ('ACTIVE', 'SUSPENDED')
  AND q.state IN ('ACTIVE', 'SUSPENDED')
  AND p.state != q.state
