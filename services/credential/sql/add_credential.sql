-- Result: none; the rows of @rows are new rows of tenant_cloud_credentials.
-- Parameters: @rows STRING, the JSON text of an array of whole rows.
-- Safe to run twice: its job id is made of the credential's id, and BigQuery runs one job id once. That id is the mutex
--   of the creation: nothing else keeps two rows of one credential apart.
INSERT INTO tenant_cloud_credentials (
  credential_id, tenant_id, version, provider, name, kind, status, status_reason, display, source, secret_version,
  secrets, kek_version, destroy_at, expires_at, last_validated_at, created_at, updated_at
)
SELECT
  u.credential_id, u.tenant_id, u.version, u.provider, u.name, u.kind, u.status, u.status_reason, u.display, u.source,
  u.secret_version, u.secrets, u.kek_version, u.destroy_at, u.expires_at, u.last_validated_at, u.created_at,
  u.updated_at
FROM (
  SELECT
    JSON_VALUE(j, '$.credential_id') AS credential_id,
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.provider') AS provider,
    JSON_VALUE(j, '$.name') AS name,
    JSON_VALUE(j, '$.kind') AS kind,
    JSON_VALUE(j, '$.status') AS status,
    JSON_VALUE(j, '$.status_reason') AS status_reason,
    JSON_VALUE(j, '$.display') AS display,
    JSON_VALUE(j, '$.source') AS source,
    CAST(JSON_VALUE(j, '$.secret_version') AS INT64) AS secret_version,
    JSON_VALUE(j, '$.secrets') AS secrets,
    JSON_VALUE(j, '$.kek_version') AS kek_version,
    CAST(JSON_VALUE(j, '$.destroy_at') AS TIMESTAMP) AS destroy_at,
    CAST(JSON_VALUE(j, '$.expires_at') AS TIMESTAMP) AS expires_at,
    CAST(JSON_VALUE(j, '$.last_validated_at') AS TIMESTAMP) AS last_validated_at,
    CAST(JSON_VALUE(j, '$.created_at') AS TIMESTAMP) AS created_at,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
