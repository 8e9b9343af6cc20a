-- Result: one row of tenant_cloud_credentials per id of @keys that exists.
-- Parameters: @keys ARRAY<STRING>, credential ids.
-- Reads only. The table is small and unpartitioned.
SELECT
  c.credential_id, c.tenant_id, c.version, c.provider, c.name, c.kind, c.status, c.status_reason, c.display,
  c.source, c.secrets, c.last_validated_at, c.created_at, c.updated_at
FROM tenant_cloud_credentials AS c
WHERE c.credential_id IN UNNEST(@keys)
