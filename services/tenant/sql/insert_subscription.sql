-- Result: none; a row of tenant_subscriptions per element of @rows whose tenant has none.
-- Parameters: @rows STRING, the JSON text of an array of quota rows.
-- Safe to run twice: its job id is the onboarding's, which BigQuery runs once, and a tenant's row is never doubled.
INSERT INTO tenant_subscriptions (
  tenant_id, version, plan, state, daily_limit, monthly_limit, concurrent_limit, started_at, created_at, updated_at
)
SELECT
  u.tenant_id, 1, u.plan, 'ACTIVE', u.daily_limit, u.monthly_limit, u.concurrent_limit,
  u.updated_at, u.updated_at, u.updated_at
FROM (
  SELECT
    JSON_VALUE(j, '$.tenant_id') AS tenant_id,
    JSON_VALUE(j, '$.plan') AS plan,
    CAST(JSON_VALUE(j, '$.daily_limit') AS INT64) AS daily_limit,
    CAST(JSON_VALUE(j, '$.monthly_limit') AS INT64) AS monthly_limit,
    CAST(JSON_VALUE(j, '$.concurrent_limit') AS INT64) AS concurrent_limit,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE u.tenant_id NOT IN (SELECT s.tenant_id FROM tenant_subscriptions AS s)
