-- Result: one row per dead letter, newest first, behind the one given.
-- Parameters: @before_time TIMESTAMP and @before_id STRING, NULL on the first page; @size INT64.
-- Safe to run twice: it only reads.
SELECT
  q.run_id, q.tenant_id, q.config_id, q.backfill_id, q.version, q.state, q.reason, q.error, q.stop, q.priority,
  q.rank_at, q.serial_id, q.retry_count, q.max_retries, q.refusals, q.attempt, q.not_before, q.expires_at,
  q.lease_id, q.lease_until, q.started_at, q.trigger, q.provider, q.domain, q.template, q.parameters,
  q.scheduled_for, q.start_date, q.end_date, q.enqueued_at, q.created_at, q.updated_at
FROM pipeline_execution_queue AS q
WHERE
  q.state = 'DEAD_LETTER'
  AND (
    @before_time IS NULL
    OR q.updated_at < @before_time
    OR (q.updated_at = @before_time AND q.run_id < @before_id)
  )
ORDER BY q.updated_at DESC, q.run_id DESC
LIMIT @size
