-- Result: none; as many rows affected as keys that were not revoked before.
-- Parameters: @tenant_id STRING; @all BOOL, every key of the tenant; else @api_key_ids ARRAY<STRING>; @now TIMESTAMP.
-- Safe to run twice: a revoked key is left alone.
UPDATE tenant_api_keys AS k
SET version = k.version + 1, state = 'REVOKED', revoked_at = @now, updated_at = @now
WHERE k.tenant_id = @tenant_id
  AND (@all OR k.api_key_id IN UNNEST(@api_key_ids))
  AND k.revoked_at IS NULL
