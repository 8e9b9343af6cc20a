-- Result: one row per API key that is live or ended after @dead_since.
-- Parameters: @dead_since TIMESTAMP.
-- Safe to run twice: it only reads. Run every few seconds by every replica, so it reads few columns of one table.
SELECT k.api_key_id, k.tenant_id, k.role, k.key_hash, k.expires_at, k.revoked_at IS NOT NULL AS revoked
FROM tenant_api_keys AS k
WHERE (k.revoked_at IS NULL OR k.revoked_at > @dead_since)
  AND (k.expires_at IS NULL OR k.expires_at > @dead_since)
