-- Result: up to @limit audit records of one tenant, newest first, one per record_id.
-- Parameters: @tenant_id STRING; @action STRING ('' = any); @before TIMESTAMP (NULL = from the newest on) and @after_id
--   STRING, the last record already seen; @limit INT64.
-- Safe to run twice: it only reads. Clustered by tenant; pages older than @before skip the days after it.
SELECT
  a.record_id, a.time, a.tenant_id, a.actor_key_id, a.user_id, a.role, a.peer, a.action, a.object_type, a.object_id,
  a.outcome, a.reason, a.request_id, a.source_ip, a.details
FROM audit_log AS a
WHERE a.tenant_id = @tenant_id
  AND (@action = '' OR a.action = @action)
  AND (@before IS NULL OR a.time < @before OR (a.time = @before AND a.record_id > @after_id))
QUALIFY ROW_NUMBER() OVER (PARTITION BY a.record_id ORDER BY a.time) = 1
ORDER BY a.time DESC, a.record_id
LIMIT @limit
