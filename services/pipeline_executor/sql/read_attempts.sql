-- All attempts of some runs. One result row: one attempt.
-- Parameters: @run_ids ARRAY<STRING>. Unpartitioned; read by its cluster key. Reads only.
SELECT
  r.pipeline_logging_id, r.attempt, r.tenant_id, r.user_id, r.status, r.outcome, r.provider, r.domain, r.template,
  r.start_date, r.end_date, r.parameters, r.trigger, r.owner, r.fingerprint, r.config_id, r.request_id,
  r.reservation_day, r.start_time, r.end_time, r.rows_published, r.superseded_by, r.error_reason, r.error_message,
  r.retryable
FROM x_meta_pipeline_runs AS r
WHERE r.pipeline_logging_id IN UNNEST(@run_ids)
ORDER BY r.pipeline_logging_id, r.attempt;
