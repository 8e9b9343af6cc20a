-- Result: one row per schedule of the tenant that is not deleted, by creation, behind the one given.
-- Parameters: @tenant_id STRING; @after_time TIMESTAMP and @after_id STRING, NULL on the first page; @size INT64.
-- Safe to run twice: it only reads.
SELECT
  c.config_id, c.tenant_id, c.version, c.name, c.provider, c.domain, c.template, c.cron, c.timezone,
  c.is_active, c.next_run_time, c.last_scheduled_for, c.priority, c.parameters, c.overlap_policy,
  c.catchup_policy, c.catchup_limit, c.date_offset_days, c.refresh_window_days, c.jitter_seconds, c.max_retries,
  c.fingerprint, c.created_at, c.created_by, c.updated_at, c.paused_at, c.deleted_at
FROM tenant_pipeline_configs AS c
WHERE
  c.tenant_id = @tenant_id
  AND c.deleted_at IS NULL
  AND (
    @after_time IS NULL
    OR c.created_at > @after_time
    OR (c.created_at = @after_time AND c.config_id > @after_id)
  )
ORDER BY c.created_at, c.config_id
LIMIT @size
