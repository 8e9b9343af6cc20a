-- Result: none; the subscriptions of @keys that say otherwise than the quota row then say the same.
-- Parameters: @keys ARRAY<STRING>, tenant ids; @now TIMESTAMP.
-- Safe to run twice: the second time nothing differs.
UPDATE tenant_subscriptions AS s
SET
  version = s.version + 1,
  plan = q.plan,
  daily_limit = q.daily_limit,
  monthly_limit = q.monthly_limit,
  concurrent_limit = q.concurrent_limit,
  state = IF(q.state = 'DELETED', 'ENDED', 'ACTIVE'),
  started_at = IF(s.plan = q.plan, s.started_at, @now),
  ended_at = IF(q.state = 'DELETED', @now, NULL),
  updated_at = @now
FROM tenant_usage_quotas AS q
WHERE s.tenant_id = q.tenant_id
  AND q.tenant_id IN UNNEST(@keys)
  AND (
    s.plan != q.plan OR s.daily_limit != q.daily_limit OR s.monthly_limit != q.monthly_limit
    OR s.concurrent_limit != q.concurrent_limit OR s.state != IF(q.state = 'DELETED', 'ENDED', 'ACTIVE')
  )
