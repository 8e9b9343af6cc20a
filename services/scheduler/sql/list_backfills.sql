-- Result: one row per backfill of the tenant with how many of its runs ended well and badly, newest first, behind the
-- one given; or the one asked for.
-- Parameters: @tenant_id STRING; @backfill_id STRING, NULL for all; @before_time TIMESTAMP and @before_id STRING, NULL
-- on the first page; @size INT64.
-- Safe to run twice: it only reads.
SELECT
  b.backfill_id, b.tenant_id, b.provider, b.domain, b.template, b.parameters, b.start_date, b.end_date,
  b.total_count, b.fingerprint, b.created_at, b.created_by, b.cancelled_at,
  COUNTIF(r.state = 'COMPLETED') AS completed_count,
  COUNTIF(r.state IN ('FAILED', 'CANCELLED', 'SKIPPED', 'DEAD_LETTER')) AS failed_count
FROM scheduler_backfills AS b
LEFT JOIN scheduled_pipeline_runs AS r
  ON r.backfill_id = b.backfill_id AND r.tenant_id = b.tenant_id AND r.created_at = b.created_at
WHERE
  b.tenant_id = @tenant_id
  AND (@backfill_id IS NULL OR b.backfill_id = @backfill_id)
  AND (
    @before_time IS NULL
    OR b.created_at < @before_time
    OR (b.created_at = @before_time AND b.backfill_id < @before_id)
  )
GROUP BY
  b.backfill_id, b.tenant_id, b.provider, b.domain, b.template, b.parameters, b.start_date, b.end_date,
  b.total_count, b.fingerprint, b.created_at, b.created_by, b.cancelled_at
ORDER BY b.created_at DESC, b.backfill_id DESC
LIMIT @size
