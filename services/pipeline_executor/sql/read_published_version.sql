-- The newest publication of exactly these days by this pipeline. One result row: a run, and the version of its source.
-- Parameters: @provider, @domain, @template STRING, @start_date, @end_date DATE (inclusive). Unpartitioned; only reads.
SELECT r.pipeline_logging_id, r.source_version
FROM x_meta_pipeline_runs AS r
WHERE r.provider = @provider
  AND r.domain = @domain
  AND r.template = @template
  AND r.start_date = @start_date
  AND r.end_date = @end_date
  AND r.status = 'COMPLETED'
  AND r.outcome = 'PUBLISHED'
ORDER BY r.extract_started_at DESC
LIMIT 1;
