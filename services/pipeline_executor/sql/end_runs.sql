-- Ends attempts that have not ended; those that have stay as they are. Affected rows: attempts ended by this statement.
-- Parameters: @rows, the JSON text of [{pipeline_logging_id, attempt, status, if_cancelling, outcome, error_reason,
-- error_message, retryable, end_time}, …], each attempt once. Unpartitioned.
-- The status is the fence: the same statement again finds nothing to end, and a publication that comes later finds no
-- RUNNING row. An attempt that was asked to stop (CANCELLING) ends as if_cancelling; if that is CANCELLED, without an
-- error.
UPDATE x_meta_pipeline_runs AS r
SET
  status = IF(r.status = 'CANCELLING', u.if_cancelling, u.status),
  outcome = IF(r.status = 'CANCELLING', NULL, u.outcome),
  error_reason = IF(r.status = 'CANCELLING' AND u.if_cancelling = 'CANCELLED', NULL, u.error_reason),
  error_message = IF(r.status = 'CANCELLING' AND u.if_cancelling = 'CANCELLED', NULL, u.error_message),
  retryable = IF(r.status = 'CANCELLING' AND u.if_cancelling = 'CANCELLED', NULL, u.retryable),
  end_time = u.end_time,
  updated_at = u.end_time
FROM (
  SELECT
    JSON_VALUE(j, '$.pipeline_logging_id') AS pipeline_logging_id,
    CAST(JSON_VALUE(j, '$.attempt') AS INT64) AS attempt,
    JSON_VALUE(j, '$.status') AS status,
    JSON_VALUE(j, '$.if_cancelling') AS if_cancelling,
    JSON_VALUE(j, '$.outcome') AS outcome,
    JSON_VALUE(j, '$.error_reason') AS error_reason,
    JSON_VALUE(j, '$.error_message') AS error_message,
    CAST(JSON_VALUE(j, '$.retryable') AS BOOL) AS retryable,
    CAST(JSON_VALUE(j, '$.end_time') AS TIMESTAMP) AS end_time
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE r.pipeline_logging_id = u.pipeline_logging_id
  AND r.attempt = u.attempt
  AND r.status IN ('RUNNING', 'CANCELLING');
