-- Result: none; one row of scheduler_job_calls per element of @rows.
-- Parameters: @rows STRING, the JSON text of an array of events.
-- Safe to run twice: readers keep the first row of a call and event.
INSERT INTO scheduler_job_calls (
  call_id, job, event, event_time, outcome, counts
)
SELECT
  u.call_id, u.job, u.event, u.event_time, u.outcome, u.counts
FROM (
  SELECT
    JSON_VALUE(j, '$.call_id') AS call_id,
    JSON_VALUE(j, '$.job') AS job,
    JSON_VALUE(j, '$.event') AS event,
    CAST(JSON_VALUE(j, '$.event_time') AS TIMESTAMP) AS event_time,
    JSON_VALUE(j, '$.outcome') AS outcome,
    JSON_VALUE(j, '$.counts') AS counts
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
