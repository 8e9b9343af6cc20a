-- Logged steps of one run. One result row: one step of an attempt, by attempt and place in the template.
-- Parameters: @pipeline_logging_id STRING, @attempts ARRAY<INT64>, @since TIMESTAMP (when the first of them began; it
-- prunes the partitions), @after_attempt, @after_position INT64 (NULL: the first page), @size INT64. Reads only.
SELECT
  s.attempt, s.position, s.step, s.step_type, s.status, s.tries, s.rows, s.bytes, s.start_time, s.end_time,
  s.error_reason, s.error_message, s.retryable, s.details
FROM x_meta_step_logs AS s
WHERE s.start_time >= @since
  AND s.pipeline_logging_id = @pipeline_logging_id
  AND s.attempt IN UNNEST(@attempts)
  AND (
    @after_attempt IS NULL
    OR s.attempt > @after_attempt
    OR (s.attempt = @after_attempt AND s.position > @after_position)
  )
ORDER BY s.attempt, s.position
LIMIT @size;
