-- Result: one row per job: its last call.
-- Parameters: @since TIMESTAMP, which bounds the partitions.
-- Safe to run twice: it only reads.
SELECT
  c.job AS job,
  c.start_time AS start_time,
  c.end_time AS end_time,
  c.outcome AS outcome
FROM (
  SELECT
    j.job AS job,
    j.call_id AS call_id,
    MIN(IF(j.event = 'BEGIN', j.event_time, NULL)) AS start_time,
    MIN(IF(j.event = 'END', j.event_time, NULL)) AS end_time,
    MIN(IF(j.event = 'END', j.outcome, NULL)) AS outcome,
    ROW_NUMBER() OVER (PARTITION BY j.job ORDER BY MIN(j.event_time) DESC, j.call_id) AS nth
  FROM scheduler_job_calls AS j
  WHERE j.event_time >= @since
  GROUP BY j.job, j.call_id
) AS c
WHERE c.nth = 1
ORDER BY c.job
