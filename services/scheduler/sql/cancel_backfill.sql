-- Result: none; affects the backfill unless it was cancelled before.
-- Parameters: @tenant_id, @backfill_id STRING; @now TIMESTAMP.
-- Safe to run twice: the first time stays.
UPDATE scheduler_backfills AS b
SET cancelled_at = @now
WHERE b.tenant_id = @tenant_id AND b.backfill_id = @backfill_id AND b.cancelled_at IS NULL
