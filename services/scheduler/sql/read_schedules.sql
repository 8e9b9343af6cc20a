-- Result: one row per schedule of @keys, deleted ones too.
-- Parameters: @keys ARRAY<STRING>, config ids.
-- Safe to run twice: it only reads.
SELECT
  c.config_id, c.tenant_id, c.version, c.name, c.provider, c.domain, c.template, c.cron, c.timezone,
  c.is_active, c.next_run_time, c.last_scheduled_for, c.priority, c.parameters, c.overlap_policy,
  c.catchup_policy, c.catchup_limit, c.date_offset_days, c.refresh_window_days, c.jitter_seconds, c.max_retries,
  c.fingerprint, c.created_at, c.created_by, c.updated_at, c.paused_at, c.deleted_at
FROM tenant_pipeline_configs AS c
WHERE c.config_id IN UNNEST(@keys)
