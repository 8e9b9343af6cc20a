-- Result: none; affects one row per run claimed.
-- Parameters: @lease_id STRING, the claim's own id; @now, @lease_until TIMESTAMP; @asked TIMESTAMP, when the slots of
-- tenants were asked for; @slots STRING, the JSON text of an array of {tenant_id, slots}; @size INT64.
-- Tenants take turns (a tenant's turn is how many runs it has already), then the rank decides. What was started since
-- the slots were asked for, or is claimed and may start any moment, takes one of them. Of the rows that share a
-- serial_id one is claimed at a time.
-- Safe to run twice: the second time the rows are CLAIMED. Two at once conflict here, and the loser looks again.
UPDATE pipeline_execution_queue AS q
SET
  version = q.version + 1,
  state = 'CLAIMED',
  reason = NULL,
  lease_id = @lease_id,
  lease_until = @lease_until,
  started_at = NULL,
  change_id = @lease_id,
  updated_at = @now
WHERE
  q.state IN ('QUEUED', 'DEFERRED')
  AND q.run_id IN (
    SELECT p.run_id AS run_id
    FROM (
      SELECT
        r.run_id AS run_id,
        ROW_NUMBER() OVER (ORDER BY r.claimed + r.nth, r.rank_at, r.run_id) AS place
      FROM (
        SELECT
          s.run_id AS run_id,
          s.tenant_id AS tenant_id,
          s.rank_at AS rank_at,
          s.claimed AS claimed,
          s.taken AS taken,
          s.free AS free,
          ROW_NUMBER() OVER (PARTITION BY s.tenant_id, s.free ORDER BY s.rank_at, s.run_id) AS nth
        FROM (
          SELECT
            w.run_id AS run_id,
            w.tenant_id AS tenant_id,
            w.rank_at AS rank_at,
            w.claimed AS claimed,
            w.taken AS taken,
            w.ready
            AND w.serial_claimed = 0
            AND ROW_NUMBER() OVER (PARTITION BY w.serial_id, w.ready ORDER BY w.rank_at, w.run_id) = 1 AS free
          FROM (
            SELECT
              x.run_id AS run_id,
              x.tenant_id AS tenant_id,
              x.serial_id AS serial_id,
              x.rank_at AS rank_at,
              (
                (x.state = 'QUEUED' AND x.not_before <= @now) OR x.state = 'DEFERRED'
              )
              AND x.expires_at > @now
              AND x.stop IS NULL AS ready,
              COUNTIF(x.state = 'CLAIMED') OVER (PARTITION BY x.tenant_id) AS claimed,
              COUNTIF(x.state = 'CLAIMED' AND (x.started_at IS NULL OR x.started_at > @asked))
                OVER (PARTITION BY x.tenant_id) AS taken,
              COUNTIF(x.state = 'CLAIMED') OVER (PARTITION BY x.serial_id) AS serial_claimed
            FROM pipeline_execution_queue AS x
          ) AS w
        ) AS s
      ) AS r
      INNER JOIN (
        SELECT
          JSON_VALUE(j, '$.tenant_id') AS tenant_id,
          CAST(JSON_VALUE(j, '$.slots') AS INT64) AS slots
        FROM UNNEST(JSON_QUERY_ARRAY(@slots)) AS j
      ) AS l ON l.tenant_id = r.tenant_id
      WHERE r.free AND r.taken + r.nth <= l.slots
    ) AS p
    WHERE p.place <= @size
  )
