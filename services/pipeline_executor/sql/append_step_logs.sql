-- Logs the steps of one attempt. Grain: one step of an attempt.
-- Parameters: @rows, the JSON text of [{pipeline_logging_id, attempt, tenant_id, user_id, step, step_type, position,
-- status, tries, rows, bytes, start_time, end_time, error_reason, error_message, retryable, details}, …].
-- Runs once: its job id is made of the attempt.
INSERT INTO x_meta_step_logs (
  pipeline_logging_id, attempt, tenant_id, user_id, step, step_type, position, status, tries, `rows`, bytes, start_time,
  end_time, error_reason, error_message, retryable, details
)
SELECT
  JSON_VALUE(j, '$.pipeline_logging_id'),
  CAST(JSON_VALUE(j, '$.attempt') AS INT64),
  JSON_VALUE(j, '$.tenant_id'),
  JSON_VALUE(j, '$.user_id'),
  JSON_VALUE(j, '$.step'),
  JSON_VALUE(j, '$.step_type'),
  CAST(JSON_VALUE(j, '$.position') AS INT64),
  JSON_VALUE(j, '$.status'),
  CAST(JSON_VALUE(j, '$.tries') AS INT64),
  CAST(JSON_VALUE(j, '$.rows') AS INT64),
  CAST(JSON_VALUE(j, '$.bytes') AS INT64),
  CAST(JSON_VALUE(j, '$.start_time') AS TIMESTAMP),
  CAST(JSON_VALUE(j, '$.end_time') AS TIMESTAMP),
  JSON_VALUE(j, '$.error_reason'),
  JSON_VALUE(j, '$.error_message'),
  CAST(JSON_VALUE(j, '$.retryable') AS BOOL),
  JSON_VALUE(j, '$.details')
FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j;
