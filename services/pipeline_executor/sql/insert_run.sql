-- Makes the row of one attempt. Grain: one attempt of a run.
-- Parameters: @pipeline_logging_id, @tenant_id, @user_id, @status, @provider, @domain, @template, @parameters, @trigger,
-- @owner, @fingerprint, @config_id, @request_id STRING, @attempt INT64, @start_date, @end_date, @reservation_day DATE,
-- @start_time TIMESTAMP.
-- Runs once: its job id is made of the attempt, and that id is the mutex of the creation (see withdraw_run.sql). The
-- NOT EXISTS is a second belt, for the day the job id has been forgotten; it reads the table by its cluster key.
INSERT INTO x_meta_pipeline_runs (
  pipeline_logging_id, attempt, tenant_id, user_id, status, provider, domain, template, start_date, end_date,
  parameters, trigger, owner, fingerprint, config_id, request_id, reservation_day, start_time, updated_at
)
SELECT
  @pipeline_logging_id, @attempt, @tenant_id, @user_id, @status, @provider, @domain, @template, @start_date, @end_date,
  @parameters, @trigger, @owner, @fingerprint, @config_id, @request_id, @reservation_day, @start_time, @start_time
FROM (SELECT 1 AS one) AS only
WHERE NOT EXISTS (
  SELECT 1
  FROM x_meta_pipeline_runs AS r
  WHERE r.pipeline_logging_id = @pipeline_logging_id
    AND r.attempt = @attempt
);
