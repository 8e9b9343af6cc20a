-- Result: one row per queue row in the order in which rows are claimed, with its place, behind the place given.
-- Parameters: @state STRING, empty for all; @after INT64, 0 on the first page; @size INT64.
-- Safe to run twice: it only reads.
SELECT
  q.run_id, q.tenant_id, q.config_id, q.backfill_id, q.version, q.state, q.reason, q.error, q.stop, q.priority,
  q.rank_at, q.serial_id, q.retry_count, q.max_retries, q.refusals, q.attempt, q.not_before, q.expires_at,
  q.lease_id, q.lease_until, q.started_at, q.trigger, q.provider, q.domain, q.template, q.parameters,
  q.scheduled_for, q.start_date, q.end_date, q.enqueued_at, q.created_at, q.updated_at,
  q.place AS place
FROM (
  SELECT
    s.run_id AS run_id, s.tenant_id AS tenant_id, s.config_id AS config_id, s.backfill_id AS backfill_id,
    s.version AS version, s.state AS state, s.reason AS reason, s.error AS error, s.stop AS stop,
    s.priority AS priority, s.rank_at AS rank_at, s.serial_id AS serial_id, s.retry_count AS retry_count,
    s.max_retries AS max_retries, s.refusals AS refusals, s.attempt AS attempt, s.not_before AS not_before,
    s.expires_at AS expires_at, s.lease_id AS lease_id, s.lease_until AS lease_until,
    s.started_at AS started_at, s.trigger AS trigger, s.provider AS provider, s.domain AS domain,
    s.template AS template, s.parameters AS parameters, s.scheduled_for AS scheduled_for,
    s.start_date AS start_date, s.end_date AS end_date, s.enqueued_at AS enqueued_at,
    s.created_at AS created_at, s.updated_at AS updated_at,
    ROW_NUMBER() OVER (ORDER BY s.claimed DESC, s.turn, s.rank_at, s.run_id) AS place
  FROM (
    SELECT
      x.run_id AS run_id, x.tenant_id AS tenant_id, x.config_id AS config_id, x.backfill_id AS backfill_id,
      x.version AS version, x.state AS state, x.reason AS reason, x.error AS error, x.stop AS stop,
      x.priority AS priority, x.rank_at AS rank_at, x.serial_id AS serial_id, x.retry_count AS retry_count,
      x.max_retries AS max_retries, x.refusals AS refusals, x.attempt AS attempt, x.not_before AS not_before,
      x.expires_at AS expires_at, x.lease_id AS lease_id, x.lease_until AS lease_until,
      x.started_at AS started_at, x.trigger AS trigger, x.provider AS provider, x.domain AS domain,
      x.template AS template, x.parameters AS parameters, x.scheduled_for AS scheduled_for,
      x.start_date AS start_date, x.end_date AS end_date, x.enqueued_at AS enqueued_at,
      x.created_at AS created_at, x.updated_at AS updated_at,
      x.state = 'CLAIMED' AS claimed,
      ROW_NUMBER() OVER (PARTITION BY x.tenant_id ORDER BY x.state = 'CLAIMED' DESC, x.rank_at, x.run_id) AS turn
    FROM pipeline_execution_queue AS x
    WHERE x.state != 'DEAD_LETTER'
  ) AS s
) AS q
WHERE q.place > @after AND (@state = '' OR q.state = @state)
ORDER BY q.place
LIMIT @size
