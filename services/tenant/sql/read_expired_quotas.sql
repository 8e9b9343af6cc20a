-- Result: up to @limit quota rows with a LIVE grant whose lease has run out, the longest ago first.
-- Parameters: @now TIMESTAMP; @limit INT64.
-- Safe to run twice: it only reads.
SELECT
  q.tenant_id, q.version, q.plan, q.state, q.daily_limit, q.monthly_limit, q.concurrent_limit, q.day, q.month,
  q.pipelines_run_today, q.pipelines_run_month, q.grants, q.history, q.updated_at
FROM tenant_usage_quotas AS q
WHERE q.next_expiry <= @now
ORDER BY q.next_expiry, q.tenant_id
LIMIT @limit
