-- A page of runs, the newest first. One result row: one run, seen through its newest attempt.
-- Parameters: @status, @provider, @domain, @template, @after_id STRING (NULL: all), @after_time TIMESTAMP (NULL: the
-- first page), @size INT64. Unpartitioned: reads the tenant's runs. The status is compared after the newest attempt has
-- been found, so that a run is not listed by an attempt it has left behind. Reads only.
SELECT
  n.pipeline_logging_id, n.attempt, n.tenant_id, n.user_id, n.status, n.outcome, n.provider, n.domain, n.template,
  n.start_date, n.end_date, n.parameters, n.trigger, n.owner, n.fingerprint, n.config_id, n.request_id,
  n.reservation_day, n.start_time, n.end_time, n.rows_published, n.superseded_by, n.error_reason, n.error_message,
  n.retryable
FROM (
  SELECT
    r.pipeline_logging_id, r.attempt, r.tenant_id, r.user_id, r.status, r.outcome, r.provider, r.domain, r.template,
    r.start_date, r.end_date, r.parameters, r.trigger, r.owner, r.fingerprint, r.config_id, r.request_id,
    r.reservation_day, r.start_time, r.end_time, r.rows_published, r.superseded_by, r.error_reason, r.error_message,
    r.retryable,
    ROW_NUMBER() OVER (PARTITION BY r.pipeline_logging_id ORDER BY r.attempt DESC) AS place
  FROM x_meta_pipeline_runs AS r
  WHERE (@provider IS NULL OR r.provider = @provider)
    AND (@domain IS NULL OR r.domain = @domain)
    AND (@template IS NULL OR r.template = @template)
) AS n
WHERE n.place = 1
  AND (@status IS NULL OR n.status = @status)
  AND (
    @after_time IS NULL
    OR n.start_time < @after_time
    OR (n.start_time = @after_time AND n.pipeline_logging_id < @after_id)
  )
ORDER BY n.start_time DESC, n.pipeline_logging_id DESC
LIMIT @size;
