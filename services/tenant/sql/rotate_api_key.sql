-- Result: none; two rows affected, the old key and its successor, or none if the old one is not as it was read.
-- Parameters: @tenant_id STRING, @api_key_id STRING, @version INT64: the old key; @old_expires_at TIMESTAMP, its end;
--   @new_id STRING, @key_hash STRING, @last4 STRING, @created_by STRING, @now TIMESTAMP, @expires_at TIMESTAMP (NULL =
--   never), @lifetime_seconds INT64: the successor; the rest it has of the old one.
-- Safe to run twice: the first time raised the version, so the source is empty. One statement, because a key that ended
--   without a successor, and a successor without that end, are both wrong.
MERGE tenant_api_keys AS t
USING (
  SELECT
    IF(r = 'old', k.api_key_id, @new_id) AS api_key_id,
    k.tenant_id AS tenant_id,
    k.name AS name,
    k.role AS role,
    k.lineage_id AS lineage_id
  FROM tenant_api_keys AS k
  CROSS JOIN UNNEST(['old', 'new']) AS r
  WHERE k.tenant_id = @tenant_id AND k.api_key_id = @api_key_id AND k.version = @version AND k.revoked_at IS NULL
) AS s
ON t.api_key_id = s.api_key_id AND t.tenant_id = s.tenant_id
WHEN MATCHED THEN UPDATE SET
  version = t.version + 1,
  expires_at = @old_expires_at,
  updated_at = @now
WHEN NOT MATCHED THEN INSERT (
  api_key_id, tenant_id, version, name, role, key_hash, last4, lineage_id, state, created_at, created_by, expires_at,
  lifetime_seconds, updated_at
) VALUES (
  s.api_key_id, s.tenant_id, 1, s.name, s.role, @key_hash, @last4, s.lineage_id, 'ACTIVE', @now, @created_by,
  @expires_at, @lifetime_seconds, @now
)
