-- Result: one row per queue row that matches every parameter that is given, by run_id.
-- Parameters: @states, @run_ids, @config_ids, @backfill_ids, @tenant_ids ARRAY<STRING>, not given if empty; @lease_id
-- STRING, not given if empty; @ready_at and @expired_at TIMESTAMP, not given if NULL; @size INT64.
-- Safe to run twice: it only reads.
SELECT
  q.run_id, q.tenant_id, q.config_id, q.backfill_id, q.version, q.state, q.reason, q.error, q.stop, q.priority,
  q.rank_at, q.serial_id, q.retry_count, q.max_retries, q.refusals, q.attempt, q.not_before, q.expires_at,
  q.lease_id, q.lease_until, q.started_at, q.trigger, q.provider, q.domain, q.template, q.parameters,
  q.scheduled_for, q.start_date, q.end_date, q.enqueued_at, q.created_at, q.updated_at
FROM pipeline_execution_queue AS q
WHERE
  (ARRAY_LENGTH(@states) = 0 OR q.state IN UNNEST(@states))
  AND (ARRAY_LENGTH(@run_ids) = 0 OR q.run_id IN UNNEST(@run_ids))
  AND (ARRAY_LENGTH(@config_ids) = 0 OR q.config_id IN UNNEST(@config_ids))
  AND (ARRAY_LENGTH(@backfill_ids) = 0 OR q.backfill_id IN UNNEST(@backfill_ids))
  AND (ARRAY_LENGTH(@tenant_ids) = 0 OR q.tenant_id IN UNNEST(@tenant_ids))
  AND (@lease_id = '' OR q.lease_id = @lease_id)
  AND (@ready_at IS NULL OR q.not_before <= @ready_at)
  AND (@expired_at IS NULL OR q.expires_at <= @expired_at)
ORDER BY q.run_id
LIMIT @size
