-- Result: one row: how many rows were deleted.
-- Parameters: @before TIMESTAMP; what ended before then is deleted, what has not ended never is. A dead letter that
-- nobody asked for in all that time has ended.
-- Safe to run twice: the second time nothing is left.
DECLARE deleted INT64 DEFAULT 0;

DELETE FROM pipeline_execution_queue AS q
WHERE q.state = 'DEAD_LETTER' AND q.updated_at < @before;

SET deleted = deleted + @@row_count;

DELETE FROM scheduled_pipeline_runs AS r
WHERE
  r.created_at < @before
  AND r.updated_at < @before
  AND r.state IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED', 'DEAD_LETTER')
  AND r.run_id NOT IN (SELECT q.run_id FROM pipeline_execution_queue AS q);

SET deleted = deleted + @@row_count;

DELETE FROM scheduler_backfills AS b
WHERE
  b.created_at < @before
  AND b.backfill_id NOT IN (
    SELECT r.backfill_id FROM scheduled_pipeline_runs AS r WHERE r.backfill_id IS NOT NULL
  );

SET deleted = deleted + @@row_count;

DELETE FROM scheduler_job_calls AS j
WHERE j.event_time < @before;

SET deleted = deleted + @@row_count;

DELETE FROM tenant_pipeline_configs AS c
WHERE c.deleted_at < @before;

SET deleted = deleted + @@row_count;

SELECT deleted AS deleted
