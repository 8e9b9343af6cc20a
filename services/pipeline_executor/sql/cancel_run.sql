-- Asks a running attempt to stop. Affected rows: 1 if it was RUNNING, else 0.
-- Parameters: @pipeline_logging_id STRING, @attempt INT64, @now TIMESTAMP. Unpartitioned.
-- Publishing needs a RUNNING row: of this statement and a publication exactly one takes place. Again it changes nothing.
UPDATE x_meta_pipeline_runs AS r
SET status = 'CANCELLING', updated_at = @now
WHERE r.pipeline_logging_id = @pipeline_logging_id
  AND r.attempt = @attempt
  AND r.status = 'RUNNING';
