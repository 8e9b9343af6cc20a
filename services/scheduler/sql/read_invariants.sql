-- Result: one row per thing that must not be: which invariant it violates and its id.
-- Parameters: @late TIMESTAMP, what is due since before then is overdue; @settled TIMESTAMP, what was
-- written before then has no writer any more; @stale_lease TIMESTAMP, leases that ran out before then are nobody's.
-- Safe to run twice: it only reads.
SELECT 'overdue_schedules' AS name, c.config_id AS id
FROM tenant_pipeline_configs AS c
WHERE c.is_active AND c.next_run_time <= @late
UNION ALL
SELECT 'sleeping_schedules' AS name, c.config_id AS id
FROM tenant_pipeline_configs AS c
WHERE c.is_active AND c.next_run_time IS NULL
UNION ALL
SELECT 'duplicate_schedules' AS name, c.config_id AS id
FROM tenant_pipeline_configs AS c
GROUP BY c.config_id
HAVING COUNT(*) > 1
UNION ALL
SELECT 'duplicate_runs' AS name, r.run_id AS id
FROM scheduled_pipeline_runs AS r
GROUP BY r.run_id
HAVING COUNT(*) > 1
UNION ALL
SELECT 'duplicate_queue_rows' AS name, q.run_id AS id
FROM pipeline_execution_queue AS q
GROUP BY q.run_id
HAVING COUNT(*) > 1
UNION ALL
SELECT 'stranded_runs' AS name, r.run_id AS id
FROM scheduled_pipeline_runs AS r
LEFT JOIN pipeline_execution_queue AS q ON q.run_id = r.run_id
WHERE
  r.state IN ('QUEUED', 'CLAIMED', 'DEFERRED', 'DEAD_LETTER')
  AND r.updated_at <= @settled
  AND q.run_id IS NULL
UNION ALL
SELECT 'orphaned_queue_rows' AS name, q.run_id AS id
FROM pipeline_execution_queue AS q
LEFT JOIN scheduled_pipeline_runs AS r ON r.run_id = q.run_id
WHERE
  q.updated_at <= @settled
  AND (r.run_id IS NULL OR r.state IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED'))
UNION ALL
SELECT 'expired_leases' AS name, q.run_id AS id
FROM pipeline_execution_queue AS q
WHERE q.state = 'CLAIMED' AND q.started_at IS NULL AND (q.lease_until IS NULL OR q.lease_until <= @stale_lease)
UNION ALL
SELECT 'shared_serial_ids' AS name, MIN(q.run_id) AS id
FROM pipeline_execution_queue AS q
WHERE q.state = 'CLAIMED'
GROUP BY q.serial_id
HAVING COUNT(*) > 1
UNION ALL
SELECT 'too_many_retries' AS name, q.run_id AS id
FROM pipeline_execution_queue AS q
WHERE q.retry_count > q.max_retries
UNION ALL
SELECT 'unknown_states' AS name, q.run_id AS id
FROM pipeline_execution_queue AS q
WHERE q.state NOT IN ('QUEUED', 'CLAIMED', 'DEFERRED', 'DEAD_LETTER')
UNION ALL
SELECT 'unknown_states' AS name, r.run_id AS id
FROM scheduled_pipeline_runs AS r
WHERE
  r.state NOT IN (
    'QUEUED', 'CLAIMED', 'DEFERRED', 'COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED', 'DEAD_LETTER'
  )
