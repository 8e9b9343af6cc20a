-- Result: at most @limit credentials of all tenants that upkeep has something to do for, the longest unasked first.
-- Parameters: @now TIMESTAMP; @kek_version STRING, the KMS key version that wraps now; @pending_before, @valid_before
--   TIMESTAMP, an answer older than that is asked for again (@pending_before for those changed after @valid_before);
--   @limit INT64.
-- Reads only; a full scan of a small table, a few times an hour.
SELECT
  c.credential_id, c.tenant_id, c.version, c.provider, c.name, c.kind, c.status, c.status_reason, c.display,
  c.source, c.secrets, c.last_validated_at, c.created_at, c.updated_at
FROM tenant_cloud_credentials AS c
WHERE c.kek_version IS NOT NULL
  AND (
    c.kek_version != @kek_version
    OR c.destroy_at <= @now
    OR (c.status IN ('PENDING', 'VALID') AND c.last_validated_at < @valid_before)
    OR (c.status = 'PENDING' AND c.last_validated_at < @pending_before AND c.updated_at >= @valid_before)
  )
ORDER BY c.last_validated_at, c.credential_id
LIMIT @limit
