-- Result: none; a row of tenant_usage_quotas per element of @rows whose tenant has none.
-- Parameters: @rows STRING, the JSON text of an array of whole rows.
-- Safe to run twice: its job id is the onboarding's, which BigQuery runs once, and a tenant's row is never doubled.
INSERT INTO tenant_usage_quotas (
  tenant_id, version, plan, state, daily_limit, monthly_limit, concurrent_limit, day, month,
  pipelines_run_today, pipelines_run_month, concurrent_running, grants, next_expiry, history, updated_at
)
SELECT
  u.tenant_id, u.version, u.plan, u.state, u.daily_limit, u.monthly_limit, u.concurrent_limit, u.day, u.month,
  u.pipelines_run_today, u.pipelines_run_month, u.concurrent_running, u.grants, u.next_expiry, u.history, u.updated_at
FROM (
  SELECT
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.plan') AS plan,
    JSON_VALUE(j, '$.state') AS state,
    CAST(JSON_VALUE(j, '$.daily_limit') AS INT64) AS daily_limit,
    CAST(JSON_VALUE(j, '$.monthly_limit') AS INT64) AS monthly_limit,
    CAST(JSON_VALUE(j, '$.concurrent_limit') AS INT64) AS concurrent_limit,
    CAST(JSON_VALUE(j, '$.day') AS DATE) AS day,
    JSON_VALUE(j, '$.month') AS month,
    CAST(JSON_VALUE(j, '$.pipelines_run_today') AS INT64) AS pipelines_run_today,
    CAST(JSON_VALUE(j, '$.pipelines_run_month') AS INT64) AS pipelines_run_month,
    CAST(JSON_VALUE(j, '$.concurrent_running') AS INT64) AS concurrent_running,
    JSON_VALUE(j, '$.grants') AS grants,
    CAST(JSON_VALUE(j, '$.next_expiry') AS TIMESTAMP) AS next_expiry,
    JSON_VALUE(j, '$.history') AS history,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE u.tenant_id NOT IN (SELECT q.tenant_id FROM tenant_usage_quotas AS q)
