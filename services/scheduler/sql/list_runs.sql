-- Result: one row per run of a schedule, newest first, behind the one given.
-- Parameters: @tenant_id, @config_id STRING; @before_time TIMESTAMP and @before_id STRING, NULL on the first page;
-- @size INT64.
-- Safe to run twice: it only reads.
SELECT
  r.run_id, r.config_id, r.backfill_id, r.tenant_id, r.trigger, r.provider, r.domain, r.template,
  r.scheduled_for, r.start_date, r.end_date, r.state, r.reason, r.error, r.occurrence_count, r.retry_count,
  r.max_retries, r.attempt, r.priority, r.not_before, r.fingerprint, r.created_at, r.created_by, r.updated_at,
  r.started_at, r.ended_at
FROM scheduled_pipeline_runs AS r
WHERE
  r.tenant_id = @tenant_id
  AND r.config_id = @config_id
  AND (
    @before_time IS NULL
    OR r.scheduled_for < @before_time
    OR (r.scheduled_for = @before_time AND r.run_id < @before_id)
  )
ORDER BY r.scheduled_for DESC, r.run_id DESC
LIMIT @size
