-- Result: one row per tenant with anything in the queue.
-- Parameters: @now TIMESTAMP.
-- Safe to run twice: it only reads.
SELECT
  q.tenant_id AS tenant_id,
  COUNTIF(q.state = 'QUEUED' AND q.not_before <= @now AND q.expires_at > @now) AS ready,
  COUNTIF(q.state = 'DEFERRED' AND q.expires_at > @now) AS deferred,
  COUNTIF(q.state = 'CLAIMED') AS claimed,
  COUNTIF(q.state IN ('QUEUED', 'DEFERRED') AND q.expires_at <= @now) AS expired,
  COUNTIF(q.state IN ('QUEUED', 'DEFERRED')) AS waiting
FROM pipeline_execution_queue AS q
GROUP BY q.tenant_id
ORDER BY q.tenant_id
