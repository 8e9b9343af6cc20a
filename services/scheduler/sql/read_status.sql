-- Result: one row per figure: its kind, a name within the kind, a number and the time since when.
-- Parameters: @now, @day_ago TIMESTAMP.
-- Safe to run twice: it only reads.
SELECT 'DUE' AS kind, '' AS name, COUNT(*) AS number, MIN(c.next_run_time) AS since
FROM tenant_pipeline_configs AS c
WHERE c.is_active AND c.next_run_time <= @now
UNION ALL
SELECT 'STATE' AS kind, q.state AS name, COUNT(*) AS number, MIN(q.enqueued_at) AS since
FROM pipeline_execution_queue AS q
GROUP BY q.state
UNION ALL
SELECT 'READY' AS kind, '' AS name, COUNT(*) AS number, MIN(GREATEST(q.not_before, q.enqueued_at)) AS since
FROM pipeline_execution_queue AS q
WHERE q.state = 'QUEUED' AND q.not_before <= @now
UNION ALL
SELECT 'FAILED' AS kind, '' AS name, COUNT(*) AS number, MAX(q.updated_at) AS since
FROM pipeline_execution_queue AS q
WHERE q.state = 'DEAD_LETTER' AND q.updated_at >= @day_ago
