-- Result: one row per run that was written.
-- Parameters: @rows STRING, the JSON text of an array of queue rows; @change_id STRING, the batch's own id; @now
-- TIMESTAMP; @first_created and @last_created TIMESTAMP, which bound the partitions of the runs.
-- Safe to run twice: the first UPDATE compares versions, the others follow what it wrote. A run that ended is never
-- changed. All of it or nothing becomes visible.
BEGIN TRANSACTION;

UPDATE pipeline_execution_queue AS q
SET
  version = q.version + 1,
  state = u.state,
  reason = u.reason,
  error = u.error,
  stop = u.stop,
  rank_at = u.rank_at,
  retry_count = u.retry_count,
  refusals = u.refusals,
  attempt = u.attempt,
  not_before = u.not_before,
  expires_at = u.expires_at,
  lease_id = u.lease_id,
  lease_until = u.lease_until,
  started_at = u.started_at,
  enqueued_at = u.enqueued_at,
  change_id = @change_id,
  updated_at = @now
FROM (
  SELECT
    JSON_VALUE(j, '$.run_id') AS run_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    JSON_VALUE(j, '$.state') AS state,
    JSON_VALUE(j, '$.reason') AS reason,
    JSON_VALUE(j, '$.error') AS error,
    JSON_VALUE(j, '$.stop') AS stop,
    CAST(JSON_VALUE(j, '$.rank_at') AS TIMESTAMP) AS rank_at,
    CAST(JSON_VALUE(j, '$.retry_count') AS INT64) AS retry_count,
    CAST(JSON_VALUE(j, '$.refusals') AS INT64) AS refusals,
    CAST(JSON_VALUE(j, '$.attempt') AS INT64) AS attempt,
    CAST(JSON_VALUE(j, '$.not_before') AS TIMESTAMP) AS not_before,
    CAST(JSON_VALUE(j, '$.expires_at') AS TIMESTAMP) AS expires_at,
    JSON_VALUE(j, '$.lease_id') AS lease_id,
    CAST(JSON_VALUE(j, '$.lease_until') AS TIMESTAMP) AS lease_until,
    CAST(JSON_VALUE(j, '$.started_at') AS TIMESTAMP) AS started_at,
    CAST(JSON_VALUE(j, '$.enqueued_at') AS TIMESTAMP) AS enqueued_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE q.run_id = u.run_id AND q.version = u.version;

UPDATE scheduled_pipeline_runs AS r
SET
  state = q.state,
  reason = q.reason,
  error = q.error,
  retry_count = q.retry_count,
  attempt = q.attempt,
  not_before = q.not_before,
  started_at = COALESCE(q.started_at, r.started_at),
  ended_at = IF(q.state IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED'), @now, NULL),
  change_id = @change_id,
  updated_at = @now
FROM (
  SELECT
    x.run_id AS run_id, x.state AS state, x.reason AS reason, x.error AS error, x.retry_count AS retry_count,
    x.attempt AS attempt, x.not_before AS not_before, x.started_at AS started_at
  FROM pipeline_execution_queue AS x
  WHERE x.change_id = @change_id
) AS q
WHERE
  r.run_id = q.run_id
  AND r.created_at BETWEEN @first_created AND @last_created
  AND r.state NOT IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED');

DELETE FROM pipeline_execution_queue AS q
WHERE q.change_id = @change_id AND q.state IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED');

COMMIT TRANSACTION;

SELECT r.run_id AS run_id
FROM scheduled_pipeline_runs AS r
WHERE r.change_id = @change_id AND r.created_at BETWEEN @first_created AND @last_created
