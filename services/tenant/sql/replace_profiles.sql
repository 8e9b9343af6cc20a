-- Result: none; as many rows affected as elements of @rows whose version is still the stored one.
-- Parameters: @rows STRING, the JSON text of an array of whole rows.
-- Safe to run twice: the version was raised by the first time.
UPDATE tenant_profiles AS p
SET
  version = p.version + 1,
  company_name = u.company_name,
  admin_email = u.admin_email,
  state = u.state,
  state_reason = u.state_reason,
  confirmations = u.confirmations,
  delete_dataset = u.delete_dataset,
  updated_at = u.updated_at,
  offboarded_at = u.offboarded_at,
  deleted_at = u.deleted_at
FROM (
  SELECT
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.company_name') AS company_name,
    JSON_VALUE(j, '$.admin_email') AS admin_email,
    JSON_VALUE(j, '$.state') AS state,
    JSON_VALUE(j, '$.state_reason') AS state_reason,
    JSON_VALUE(j, '$.confirmations') AS confirmations,
    CAST(JSON_VALUE(j, '$.delete_dataset') AS BOOL) AS delete_dataset,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at,
    CAST(JSON_VALUE(j, '$.offboarded_at') AS TIMESTAMP) AS offboarded_at,
    CAST(JSON_VALUE(j, '$.deleted_at') AS TIMESTAMP) AS deleted_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE p.tenant_id = u.tenant_id AND p.version = u.version
