-- Result: none; each row of @rows replaces the stored one, if its version is still the stored one's.
-- Parameters: @rows STRING, the JSON text of an array of whole rows (credential_id, tenant_id, provider and name never change).
-- Safe to run twice: the first time raises the version, so the second finds nothing to replace.
UPDATE tenant_cloud_credentials AS c
SET
  version = c.version + 1,
  kind = u.kind,
  status = u.status,
  status_reason = u.status_reason,
  display = u.display,
  source = u.source,
  secret_version = u.secret_version,
  secrets = u.secrets,
  kek_version = u.kek_version,
  destroy_at = u.destroy_at,
  expires_at = u.expires_at,
  last_validated_at = u.last_validated_at,
  updated_at = u.updated_at
FROM (
  SELECT
    JSON_VALUE(j, '$.credential_id') AS credential_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
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
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE c.credential_id = u.credential_id AND c.version = u.version
