-- Result: up to @limit keys of one tenant, newest first.
-- Parameters: @tenant_id STRING; @api_key_id STRING, only this one, or @family_of STRING, only the lineage of that one
--   ('' = any); @before TIMESTAMP (NULL = from the newest on) and @after_id STRING, the last key already seen; @limit
--   INT64.
-- Safe to run twice: it only reads.
SELECT
  k.api_key_id, k.tenant_id, k.version, k.name, k.role, k.key_hash, k.last4, k.lineage_id, k.created_at, k.created_by,
  k.expires_at, k.lifetime_seconds, k.revoked_at, k.last_used_at
FROM tenant_api_keys AS k
WHERE k.tenant_id = @tenant_id
  AND (@api_key_id = '' OR k.api_key_id = @api_key_id)
  AND (
    @family_of = ''
    OR k.lineage_id IN (
      SELECT f.lineage_id FROM tenant_api_keys AS f WHERE f.tenant_id = @tenant_id AND f.api_key_id = @family_of
    )
  )
  AND (@before IS NULL OR k.created_at < @before OR (k.created_at = @before AND k.api_key_id > @after_id))
ORDER BY k.created_at DESC, k.api_key_id
LIMIT @limit
