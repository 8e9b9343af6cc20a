-- Result: none; a row of tenant_api_keys per element of @rows.
-- Parameters: @rows STRING, the JSON text of an array of whole rows.
-- Safe to run twice: its job id is the key's own, which BigQuery runs once.
INSERT INTO tenant_api_keys (
  api_key_id, tenant_id, version, name, role, key_hash, last4, lineage_id, state, created_at, created_by, expires_at,
  lifetime_seconds, updated_at
)
SELECT
  u.api_key_id, u.tenant_id, 1, u.name, u.role, u.key_hash, u.last4, u.lineage_id, 'ACTIVE', u.created_at,
  u.created_by, u.expires_at, u.lifetime_seconds, u.created_at
FROM (
  SELECT
    JSON_VALUE(j, '$.api_key_id') AS api_key_id,
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    JSON_VALUE(j, '$.name') AS name,
    JSON_VALUE(j, '$.role') AS role,
    JSON_VALUE(j, '$.key_hash') AS key_hash,
    JSON_VALUE(j, '$.last4') AS last4,
    JSON_VALUE(j, '$.lineage_id') AS lineage_id,
    CAST(JSON_VALUE(j, '$.created_at') AS TIMESTAMP) AS created_at,
    JSON_VALUE(j, '$.created_by') AS created_by,
    CAST(JSON_VALUE(j, '$.expires_at') AS TIMESTAMP) AS expires_at,
    CAST(JSON_VALUE(j, '$.lifetime_seconds') AS INT64) AS lifetime_seconds
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
