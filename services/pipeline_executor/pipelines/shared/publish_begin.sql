-- Begins every publication: one transaction, and the fence. No result row; parts of the same script follow.
-- Parameters: @pipeline_logging_id, @provider, @domain, @template, @source_version STRING, @attempt INT64, @start_date,
-- @end_date DATE (inclusive), @extract_start_time, @end_time TIMESTAMP. {rows} is the staging table that rows_published counts.
-- The run row is the fence: only a RUNNING attempt may publish, and only once, so running this again changes nothing.
-- If a run of this pipeline over one of these dates has been published whose extraction began later, its data are the
-- newer: then this run ends COMPLETED with superseded_by set, and the parts that follow touch nothing (newer is set).
DECLARE newer STRING DEFAULT NULL;

BEGIN TRANSACTION;

SET newer = (
  SELECT r.pipeline_logging_id
  FROM x_meta_pipeline_runs AS r
  WHERE r.provider = @provider
    AND r.domain = @domain
    AND r.template = @template
    AND r.status = 'COMPLETED'
    AND r.outcome = 'PUBLISHED'
    AND r.extract_started_at > @extract_start_time
    AND r.start_date <= @end_date
    AND r.end_date >= @start_date
  ORDER BY r.extract_started_at DESC
  LIMIT 1
);

UPDATE x_meta_pipeline_runs AS r
SET
  status = 'COMPLETED',
  outcome = IF(newer IS NULL, 'PUBLISHED', 'SUPERSEDED'),
  superseded_by = newer,
  rows_published = IF(newer IS NULL, (SELECT COUNT(*) FROM {rows} AS s), 0),
  extract_started_at = @extract_start_time,
  source_version = @source_version,
  end_time = @end_time,
  updated_at = @end_time
WHERE r.pipeline_logging_id = @pipeline_logging_id
  AND r.attempt = @attempt
  AND r.status = 'RUNNING';

ASSERT @@row_count = 1 AS 'assert:RUN_FENCED';
