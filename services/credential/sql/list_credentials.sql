-- Result: at most @limit of one tenant's credentials, by provider and name.
-- Parameters: @tenant_id STRING; @provider STRING, empty for all; @after_provider, @after_name STRING, where the page
--   before ended (empty at the start); @limit INT64.
-- Reads only; clustered by tenant_id.
SELECT
  c.credential_id, c.tenant_id, c.version, c.provider, c.name, c.kind, c.status, c.status_reason, c.display,
  c.source, c.secrets, c.last_validated_at, c.created_at, c.updated_at
FROM tenant_cloud_credentials AS c
WHERE c.tenant_id = @tenant_id
  AND (@provider = '' OR c.provider = @provider)
  AND (c.provider > @after_provider OR (c.provider = @after_provider AND c.name > @after_name))
ORDER BY c.provider, c.name
LIMIT @limit
