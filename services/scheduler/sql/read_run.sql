-- Result: the run, if the tenant has it.
-- Parameters: @tenant_id, @run_id STRING.
-- Safe to run twice: it only reads.
SELECT
  r.run_id, r.config_id, r.backfill_id, r.tenant_id, r.trigger, r.provider, r.domain, r.template,
  r.scheduled_for, r.start_date, r.end_date, r.state, r.reason, r.error, r.occurrence_count, r.retry_count,
  r.max_retries, r.attempt, r.priority, r.not_before, r.fingerprint, r.created_at, r.created_by, r.updated_at,
  r.started_at, r.ended_at
FROM scheduled_pipeline_runs AS r
WHERE r.tenant_id = @tenant_id AND r.run_id = @run_id
LIMIT 1
