-- Result: none; one row of audit_log per element of @rows.
-- Parameters: @rows STRING, the JSON text of an array of records.
-- Safe to run twice: a batch is one job id, which BigQuery runs once; readers keep one row per record_id.
INSERT INTO audit_log (
  record_id, time, tenant_id, actor_key_id, user_id, role, peer, action,
  object_type, object_id, outcome, reason, request_id, source_ip, details
)
SELECT
  u.record_id, u.time, u.tenant_id, u.actor_key_id, u.user_id, u.role, u.peer, u.action,
  u.object_type, u.object_id, u.outcome, u.reason, u.request_id, u.source_ip, u.details
FROM (
  SELECT
    JSON_VALUE(j, '$.record_id') AS record_id,
    CAST(JSON_VALUE(j, '$.time') AS TIMESTAMP) AS time,
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    JSON_VALUE(j, '$.actor_key_id') AS actor_key_id,
    JSON_VALUE(j, '$.user_id') AS user_id,
    JSON_VALUE(j, '$.role') AS role,
    JSON_VALUE(j, '$.peer') AS peer,
    JSON_VALUE(j, '$.action') AS action,
    JSON_VALUE(j, '$.object_type') AS object_type,
    JSON_VALUE(j, '$.object_id') AS object_id,
    JSON_VALUE(j, '$.outcome') AS outcome,
    JSON_VALUE(j, '$.reason') AS reason,
    JSON_VALUE(j, '$.request_id') AS request_id,
    JSON_VALUE(j, '$.source_ip') AS source_ip,
    JSON_VALUE(j, '$.details') AS details
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
