-- Quality results of one run. One result row: one check and dimension of an attempt, by attempt, check and dimension.
-- Parameters: @pipeline_logging_id STRING, @attempts ARRAY<INT64>, @since TIMESTAMP (when the first of them began; it
-- prunes the partitions), @after_attempt INT64 (NULL: the first page), @after_check, @after_dimension STRING, @size
-- INT64. Reads only. A check that was made again by a step's retry with another result is shown as it was last.
SELECT
  d.attempt, d.check_name, d.check_type, d.severity, d.status, d.dimension, d.expected, d.actual, d.message, d.checked_at
FROM (
  SELECT
    r.attempt, r.check_name, r.check_type, r.severity, r.status, IFNULL(r.dimension, '') AS dimension, r.expected,
    r.actual, r.message, r.checked_at,
    ROW_NUMBER() OVER (
      PARTITION BY r.attempt, r.check_name, IFNULL(r.dimension, '') ORDER BY r.checked_at DESC
    ) AS place
  FROM x_meta_dq_results AS r
  WHERE r.checked_at >= @since
    AND r.pipeline_logging_id = @pipeline_logging_id
    AND r.attempt IN UNNEST(@attempts)
) AS d
WHERE d.place = 1
  AND (
    @after_attempt IS NULL
    OR d.attempt > @after_attempt
    OR (d.attempt = @after_attempt AND d.check_name > @after_check)
    OR (d.attempt = @after_attempt AND d.check_name = @after_check AND d.dimension > @after_dimension)
  )
ORDER BY d.attempt, d.check_name, d.dimension
LIMIT @size;
