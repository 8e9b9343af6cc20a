-- Logs the results of an attempt's quality checks. Grain: one check and dimension of an attempt.
-- Parameters: @rows, the JSON text of [{pipeline_logging_id, attempt, tenant_id, user_id, check_name, check_type,
-- severity, status, dimension, expected, actual, message, checked_at}, …].
-- Runs once: its job id is made of the attempt and of the results.
INSERT INTO x_meta_dq_results (
  pipeline_logging_id, attempt, tenant_id, user_id, check_name, check_type, severity, status, dimension, expected,
  actual, message, checked_at
)
SELECT
  JSON_VALUE(j, '$.pipeline_logging_id'),
  CAST(JSON_VALUE(j, '$.attempt') AS INT64),
  JSON_VALUE(j, '$.tenant_id'),
  JSON_VALUE(j, '$.user_id'),
  JSON_VALUE(j, '$.check_name'),
  JSON_VALUE(j, '$.check_type'),
  JSON_VALUE(j, '$.severity'),
  JSON_VALUE(j, '$.status'),
  JSON_VALUE(j, '$.dimension'),
  JSON_VALUE(j, '$.expected'),
  JSON_VALUE(j, '$.actual'),
  JSON_VALUE(j, '$.message'),
  CAST(JSON_VALUE(j, '$.checked_at') AS TIMESTAMP)
FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j;
