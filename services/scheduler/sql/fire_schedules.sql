-- Result: one row per schedule this batch advanced.
-- Parameters: @batch STRING, the JSON text of {schedules, runs, items}; @change_id STRING, the batch's own id.
-- Safe to run twice: the first UPDATE compares versions, only runs of schedules that it advanced are inserted, and none
-- if it advanced nothing, as when the same change comes again. All of it or nothing becomes visible.
BEGIN TRANSACTION;

UPDATE tenant_pipeline_configs AS c
SET
  version = c.version + 1,
  is_active = u.is_active,
  next_run_time = u.next_run_time,
  last_scheduled_for = u.last_scheduled_for,
  paused_at = u.paused_at,
  updated_at = u.updated_at,
  change_id = @change_id
FROM (
  SELECT
    JSON_VALUE(j, '$.config_id') AS config_id,
    CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
    CAST(JSON_VALUE(j, '$.is_active') AS BOOL) AS is_active,
    CAST(JSON_VALUE(j, '$.next_run_time') AS TIMESTAMP) AS next_run_time,
    CAST(JSON_VALUE(j, '$.last_scheduled_for') AS TIMESTAMP) AS last_scheduled_for,
    CAST(JSON_VALUE(j, '$.paused_at') AS TIMESTAMP) AS paused_at,
    CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
  FROM UNNEST(JSON_QUERY_ARRAY(@batch, '$.schedules')) AS j
) AS u
WHERE c.config_id = u.config_id AND c.version = u.version;

IF @@row_count > 0 THEN
  INSERT INTO scheduled_pipeline_runs (
    run_id, config_id, backfill_id, tenant_id, trigger, provider, domain, template, scheduled_for, start_date,
    end_date, state, reason, error, occurrence_count, retry_count, max_retries, attempt, priority, not_before,
    change_id, fingerprint, created_at, created_by, updated_at, started_at, ended_at
  )
  SELECT
    u.run_id, u.config_id, u.backfill_id, u.tenant_id, u.trigger, u.provider, u.domain, u.template,
    u.scheduled_for, u.start_date, u.end_date, u.state, u.reason, u.error, u.occurrence_count, u.retry_count,
    u.max_retries, u.attempt, u.priority, u.not_before, @change_id, u.fingerprint, u.created_at, u.created_by,
    u.updated_at, u.started_at, u.ended_at
  FROM (
    SELECT
      JSON_VALUE(j, '$.run_id') AS run_id,
      JSON_VALUE(j, '$.config_id') AS config_id,
      JSON_VALUE(j, '$.backfill_id') AS backfill_id,
      JSON_VALUE(j, '$.tenant_id') AS tenant_id,
      JSON_VALUE(j, '$.trigger') AS trigger,
      JSON_VALUE(j, '$.provider') AS provider,
      JSON_VALUE(j, '$.domain') AS domain,
      JSON_VALUE(j, '$.template') AS template,
      CAST(JSON_VALUE(j, '$.scheduled_for') AS TIMESTAMP) AS scheduled_for,
      CAST(JSON_VALUE(j, '$.start_date') AS DATE) AS start_date,
      CAST(JSON_VALUE(j, '$.end_date') AS DATE) AS end_date,
      JSON_VALUE(j, '$.state') AS state,
      JSON_VALUE(j, '$.reason') AS reason,
      JSON_VALUE(j, '$.error') AS error,
      CAST(JSON_VALUE(j, '$.occurrence_count') AS INT64) AS occurrence_count,
      CAST(JSON_VALUE(j, '$.retry_count') AS INT64) AS retry_count,
      CAST(JSON_VALUE(j, '$.max_retries') AS INT64) AS max_retries,
      CAST(JSON_VALUE(j, '$.attempt') AS INT64) AS attempt,
      CAST(JSON_VALUE(j, '$.priority') AS INT64) AS priority,
      CAST(JSON_VALUE(j, '$.not_before') AS TIMESTAMP) AS not_before,
      JSON_VALUE(j, '$.fingerprint') AS fingerprint,
      CAST(JSON_VALUE(j, '$.created_at') AS TIMESTAMP) AS created_at,
      JSON_VALUE(j, '$.created_by') AS created_by,
      CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at,
      CAST(JSON_VALUE(j, '$.started_at') AS TIMESTAMP) AS started_at,
      CAST(JSON_VALUE(j, '$.ended_at') AS TIMESTAMP) AS ended_at
    FROM UNNEST(JSON_QUERY_ARRAY(@batch, '$.runs')) AS j
  ) AS u
  INNER JOIN tenant_pipeline_configs AS c ON c.config_id = u.config_id
  WHERE c.change_id = @change_id;

  INSERT INTO pipeline_execution_queue (
    run_id, tenant_id, config_id, backfill_id, version, state, reason, error, stop, priority, rank_at, serial_id,
    retry_count, max_retries, refusals, attempt, not_before, expires_at, lease_id, lease_until, started_at,
    trigger, provider, domain, template, parameters, scheduled_for, start_date, end_date, change_id, enqueued_at,
    created_at, updated_at
  )
  SELECT
    u.run_id, u.tenant_id, u.config_id, u.backfill_id, u.version, u.state, u.reason, u.error, u.stop, u.priority,
    u.rank_at, u.serial_id, u.retry_count, u.max_retries, u.refusals, u.attempt, u.not_before, u.expires_at,
    u.lease_id, u.lease_until, u.started_at, u.trigger, u.provider, u.domain, u.template, u.parameters,
    u.scheduled_for, u.start_date, u.end_date, @change_id, u.enqueued_at, u.created_at, u.updated_at
  FROM (
    SELECT
      JSON_VALUE(j, '$.run_id') AS run_id,
      JSON_VALUE(j, '$.tenant_id') AS tenant_id,
      JSON_VALUE(j, '$.config_id') AS config_id,
      JSON_VALUE(j, '$.backfill_id') AS backfill_id,
      CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
      JSON_VALUE(j, '$.state') AS state,
      JSON_VALUE(j, '$.reason') AS reason,
      JSON_VALUE(j, '$.error') AS error,
      JSON_VALUE(j, '$.stop') AS stop,
      CAST(JSON_VALUE(j, '$.priority') AS INT64) AS priority,
      CAST(JSON_VALUE(j, '$.rank_at') AS TIMESTAMP) AS rank_at,
      JSON_VALUE(j, '$.serial_id') AS serial_id,
      CAST(JSON_VALUE(j, '$.retry_count') AS INT64) AS retry_count,
      CAST(JSON_VALUE(j, '$.max_retries') AS INT64) AS max_retries,
      CAST(JSON_VALUE(j, '$.refusals') AS INT64) AS refusals,
      CAST(JSON_VALUE(j, '$.attempt') AS INT64) AS attempt,
      CAST(JSON_VALUE(j, '$.not_before') AS TIMESTAMP) AS not_before,
      CAST(JSON_VALUE(j, '$.expires_at') AS TIMESTAMP) AS expires_at,
      JSON_VALUE(j, '$.lease_id') AS lease_id,
      CAST(JSON_VALUE(j, '$.lease_until') AS TIMESTAMP) AS lease_until,
      CAST(JSON_VALUE(j, '$.started_at') AS TIMESTAMP) AS started_at,
      JSON_VALUE(j, '$.trigger') AS trigger,
      JSON_VALUE(j, '$.provider') AS provider,
      JSON_VALUE(j, '$.domain') AS domain,
      JSON_VALUE(j, '$.template') AS template,
      JSON_VALUE(j, '$.parameters') AS parameters,
      CAST(JSON_VALUE(j, '$.scheduled_for') AS TIMESTAMP) AS scheduled_for,
      CAST(JSON_VALUE(j, '$.start_date') AS DATE) AS start_date,
      CAST(JSON_VALUE(j, '$.end_date') AS DATE) AS end_date,
      CAST(JSON_VALUE(j, '$.enqueued_at') AS TIMESTAMP) AS enqueued_at,
      CAST(JSON_VALUE(j, '$.created_at') AS TIMESTAMP) AS created_at,
      CAST(JSON_VALUE(j, '$.updated_at') AS TIMESTAMP) AS updated_at
    FROM UNNEST(JSON_QUERY_ARRAY(@batch, '$.items')) AS j
  ) AS u
  INNER JOIN tenant_pipeline_configs AS c ON c.config_id = u.config_id
  WHERE c.change_id = @change_id;
END IF;

COMMIT TRANSACTION;

SELECT c.config_id AS config_id
FROM tenant_pipeline_configs AS c
WHERE c.change_id = @change_id
