-- Result: one row per schedule that is due, the longest due first, with the number of its runs that wait and that are
-- claimed.
-- Parameters: @now TIMESTAMP; @config_id STRING, NULL for all; @size INT64.
-- Safe to run twice: it only reads.
SELECT
  c.config_id, c.tenant_id, c.version, c.name, c.provider, c.domain, c.template, c.cron, c.timezone,
  c.is_active, c.next_run_time, c.last_scheduled_for, c.priority, c.parameters, c.overlap_policy,
  c.catchup_policy, c.catchup_limit, c.date_offset_days, c.refresh_window_days, c.jitter_seconds, c.max_retries,
  c.fingerprint, c.created_at, c.created_by, c.updated_at, c.paused_at, c.deleted_at,
  COALESCE(q.waiting, 0) AS waiting,
  COALESCE(q.claimed, 0) AS claimed
FROM tenant_pipeline_configs AS c
LEFT JOIN (
  SELECT
    x.config_id AS config_id,
    COUNTIF(x.state IN ('QUEUED', 'DEFERRED')) AS waiting,
    COUNTIF(x.state = 'CLAIMED') AS claimed
  FROM pipeline_execution_queue AS x
  WHERE x.config_id IS NOT NULL
  GROUP BY x.config_id
) AS q ON q.config_id = c.config_id
WHERE c.is_active AND c.next_run_time <= @now AND (@config_id IS NULL OR c.config_id = @config_id)
ORDER BY c.next_run_time, c.config_id
LIMIT @size
