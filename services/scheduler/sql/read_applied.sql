-- Result: one row per run that a batch wrote.
-- Parameters: @change_id STRING, the batch's id; @first_created and @last_created TIMESTAMP, which bound the
-- partitions.
-- Safe to run twice: it only reads.
SELECT r.run_id AS run_id
FROM scheduled_pipeline_runs AS r
WHERE r.change_id = @change_id AND r.created_at BETWEEN @first_created AND @last_created
