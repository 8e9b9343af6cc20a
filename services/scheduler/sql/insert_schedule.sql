-- Result: none; one row of tenant_pipeline_configs.
-- Parameters: @rows STRING, the JSON text of an array of one schedule.
-- Safe to run twice: its job id is made of the config_id, and BigQuery runs a job id once. Under the next id, after a
-- try whose end was not understood, it adds nothing that is there.
INSERT INTO tenant_pipeline_configs (
  config_id, tenant_id, version, name, provider, domain, template, cron, timezone, is_active, next_run_time,
  last_scheduled_for, priority, parameters, overlap_policy, catchup_policy, catchup_limit, date_offset_days,
  refresh_window_days, jitter_seconds, max_retries, fingerprint, created_at, created_by, updated_at, paused_at,
  deleted_at
)
SELECT
  u.config_id, u.tenant_id, u.version, u.name, u.provider, u.domain, u.template, u.cron, u.timezone,
  u.is_active, u.next_run_time, u.last_scheduled_for, u.priority, u.parameters, u.overlap_policy,
  u.catchup_policy, u.catchup_limit, u.date_offset_days, u.refresh_window_days, u.jitter_seconds, u.max_retries,
  u.fingerprint, u.created_at, u.created_by, u.updated_at, u.paused_at, u.deleted_at
FROM (
  SELECT
    JSON_VALUE(j, '$.config_id') AS config_id,
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.name') AS name,
    JSON_VALUE(j, '$.provider') AS provider,
    JSON_VALUE(j, '$.domain') AS domain,
    JSON_VALUE(j, '$.template') AS template,
    JSON_VALUE(j, '$.cron') AS cron,
    JSON_VALUE(j, '$.timezone') AS timezone,
    CAST(JSON_VALUE(j, '$.is_active') AS BOOL) AS is_active,
    CAST(JSON_VALUE(j, '$.next_run_time') AS TIMESTAMP) AS next_run_time,
    CAST(JSON_VALUE(j, '$.last_scheduled_for') AS TIMESTAMP) AS last_scheduled_for,
    CAST(JSON_VALUE(j, '$.priority') AS INT64) AS priority,
    JSON_VALUE(j, '$.parameters') AS parameters,
    JSON_VALUE(j, '$.overlap_policy') AS overlap_policy,
    JSON_VALUE(j, '$.catchup_policy') AS catchup_policy,
    CAST(JSON_VALUE(j, '$.catchup_limit') AS INT64) AS catchup_limit,
    CAST(JSON_VALUE(j, '$.date_offset_days') AS INT64) AS date_offset_days,
    CAST(JSON_VALUE(j, '$.refresh_window_days') AS INT64) AS refresh_window_days,
    CAST(JSON_VALUE(j, '$.jitter_seconds') AS INT64) AS jitter_seconds,
    CAST(JSON_VALUE(j, '$.max_retries') AS INT64) AS max_retries,
    JSON_VALUE(j, '$.fingerprint') AS fingerprint,
    CAST(JSON_VALUE(j, '$.created_at') AS TIMESTAMP) AS created_at,
    JSON_VALUE(j, '$.created_by') AS created_by,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at,
    CAST(JSON_VALUE(j, '$.paused_at') AS TIMESTAMP) AS paused_at,
    CAST(JSON_VALUE(j, '$.deleted_at') AS TIMESTAMP) AS deleted_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE NOT EXISTS (SELECT 1 FROM tenant_pipeline_configs AS c WHERE c.config_id = u.config_id)
