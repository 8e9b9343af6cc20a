-- Result: none; as many rows affected as elements of @rows whose version is still the stored one.
-- Parameters: @rows STRING, the JSON text of an array of whole rows.
-- Safe to run twice: the version was raised by the first time.
UPDATE tenant_usage_quotas AS q
SET
  version = q.version + 1,
  plan = u.plan,
  state = u.state,
  daily_limit = u.daily_limit,
  monthly_limit = u.monthly_limit,
  concurrent_limit = u.concurrent_limit,
  day = u.day,
  month = u.month,
  pipelines_run_today = u.pipelines_run_today,
  pipelines_run_month = u.pipelines_run_month,
  concurrent_running = u.concurrent_running,
  grants = u.grants,
  next_expiry = u.next_expiry,
  history = u.history,
  updated_at = u.updated_at
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
WHERE q.tenant_id = u.tenant_id AND q.version = u.version
