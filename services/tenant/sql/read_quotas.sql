-- Result: one row per tenant of @keys that has a quota row.
-- Parameters: @keys ARRAY<STRING>, tenant ids.
-- Safe to run twice: it only reads.
SELECT
  q.tenant_id, q.version, q.plan, q.state, q.daily_limit, q.monthly_limit, q.concurrent_limit, q.day, q.month,
  q.pipelines_run_today, q.pipelines_run_month, q.grants, q.history, q.updated_at
FROM tenant_usage_quotas AS q
WHERE q.tenant_id IN UNNEST(@keys)
