-- Result: none; a row of tenant_profiles per element of @rows whose tenant has none.
-- Parameters: @rows STRING, the JSON text of an array of whole rows.
-- Safe to run twice: its job id is the onboarding's, which BigQuery runs once, and a tenant's row is never doubled.
INSERT INTO tenant_profiles (
  tenant_id, version, company_name, admin_email, state, state_reason, onboarding_owner, confirmations, delete_dataset,
  created_at, updated_at
)
SELECT
  u.tenant_id, u.version, u.company_name, u.admin_email, u.state, u.state_reason, u.onboarding_owner, u.confirmations,
  u.delete_dataset, u.created_at, u.updated_at
FROM (
  SELECT
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.company_name') AS company_name,
    JSON_VALUE(j, '$.admin_email') AS admin_email,
    JSON_VALUE(j, '$.state') AS state,
    JSON_VALUE(j, '$.state_reason') AS state_reason,
    JSON_VALUE(j, '$.onboarding_owner') AS onboarding_owner,
    JSON_VALUE(j, '$.confirmations') AS confirmations,
    CAST(JSON_VALUE(j, '$.delete_dataset') AS BOOL) AS delete_dataset,
    CAST(JSON_VALUE(j, '$.created_at') AS TIMESTAMP) AS created_at,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE u.tenant_id NOT IN (SELECT p.tenant_id FROM tenant_profiles AS p)
