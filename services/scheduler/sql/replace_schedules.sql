-- Result: none; affects one row per schedule that is still at the version it was read with.
-- Parameters: @rows STRING, the JSON text of an array of schedules.
-- Safe to run twice: the second time no version matches.
UPDATE tenant_pipeline_configs AS c
SET
  version = c.version + 1,
  name = u.name,
  cron = u.cron,
  timezone = u.timezone,
  is_active = u.is_active,
  next_run_time = u.next_run_time,
  last_scheduled_for = u.last_scheduled_for,
  priority = u.priority,
  parameters = u.parameters,
  overlap_policy = u.overlap_policy,
  catchup_policy = u.catchup_policy,
  catchup_limit = u.catchup_limit,
  date_offset_days = u.date_offset_days,
  refresh_window_days = u.refresh_window_days,
  jitter_seconds = u.jitter_seconds,
  max_retries = u.max_retries,
  updated_at = u.updated_at,
  paused_at = u.paused_at,
  deleted_at = u.deleted_at
FROM (
  SELECT
    JSON_VALUE(j, '$.config_id') AS config_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.name') AS name,
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
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at,
    CAST(JSON_VALUE(j, '$.paused_at') AS TIMESTAMP) AS paused_at,
    CAST(JSON_VALUE(j, '$.deleted_at') AS TIMESTAMP) AS deleted_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE c.config_id = u.config_id AND c.version = u.version
