-- Brings the findings of one scan ({rows}, one row per finding) into compliance_history as of the run's date, and ends the
-- run, all or nothing. rows_published counts the findings of the scan.
-- Parameters: @pipeline_logging_id, @provider, @domain, @template STRING, @attempt INT64, @start_date, @end_date DATE (the
-- same: the day of the scan), @extract_start_time, @end_time TIMESTAMP, @scopes STRING (JSON array of account_uid, region,
-- complete; an empty account or region means all).
-- The run row is the fence: only a RUNNING attempt may publish, and only once, so running this again changes nothing.
-- What was there before and is not in the scan has vanished, where a complete scope covers it. A finding that is as it was
-- leaves no trace but the row of its account and region in compliance_scans. A day is replaced: what an earlier run of the same
-- day brought for the covered accounts and regions is taken back first, to the last letter. History only goes forward: where a
-- later day has been published for one of them, or the same day from a later look at the source, this run ends COMPLETED with
-- superseded_by set and no data are touched.
DECLARE newer STRING DEFAULT NULL;

BEGIN TRANSACTION;

CREATE TEMP TABLE covered AS
WITH
known AS (
  SELECT s.account_uid AS account_uid, IFNULL(s.region, '') AS region, 1 AS seen FROM {rows} AS s
  UNION ALL
  SELECT h.account_uid AS account_uid, IFNULL(h.region, '') AS region, 0 AS seen
  FROM compliance_history AS h
  WHERE h.valid_to = DATE '9999-12-31' AND h.provider = @provider AND h.source = @template
),
places AS (
  SELECT k.account_uid AS account_uid, k.region AS region, SUM(k.seen) AS findings FROM known AS k GROUP BY 1, 2
),
scopes AS (
  SELECT
    JSON_VALUE(j, '$.account_uid') AS account_uid,
    JSON_VALUE(j, '$.region') AS region,
    JSON_VALUE(j, '$.complete') = 'true' AS complete
  FROM UNNEST(JSON_QUERY_ARRAY(@scopes)) AS j
)
SELECT
  p.account_uid AS account_uid,
  p.region AS region,
  MAX(p.findings) AS findings,
  LOGICAL_OR(IFNULL(c.complete, FALSE)) AS complete
FROM places AS p
LEFT JOIN scopes AS c ON c.account_uid IN ('', p.account_uid) AND c.region IN ('', p.region)
GROUP BY 1, 2
HAVING MAX(p.findings) > 0 OR LOGICAL_OR(c.account_uid IS NOT NULL);

SET newer = (
  SELECT n.pipeline_logging_id
  FROM compliance_scans AS n
  JOIN covered AS c ON c.account_uid = n.account_uid AND c.region = n.region
  WHERE n.scan_date >= @start_date
    AND n.provider = @provider
    AND n.source = @template
    AND (n.scan_date > @start_date OR n.extract_start_time > @extract_start_time)
  ORDER BY n.scan_date DESC, n.extract_start_time DESC
  LIMIT 1
);

UPDATE x_meta_pipeline_runs AS r
SET
  status = 'COMPLETED',
  outcome = IF(newer IS NULL, 'PUBLISHED', 'SUPERSEDED'),
  superseded_by = newer,
  rows_published = IF(newer IS NULL, (SELECT COUNT(*) FROM {rows} AS s), 0),
  extract_started_at = @extract_start_time,
  end_time = @end_time,
  updated_at = @end_time
WHERE r.pipeline_logging_id = @pipeline_logging_id
  AND r.attempt = @attempt
  AND r.provider = @provider
  AND r.domain = @domain
  AND r.status = 'RUNNING';

ASSERT @@row_count = 1 AS 'assert:RUN_FENCED';

DELETE FROM compliance_history AS t
WHERE newer IS NULL
  AND t.provider = @provider
  AND t.source = @template
  AND t.valid_from BETWEEN @start_date AND @end_date
  AND TO_JSON_STRING([t.account_uid, IFNULL(t.region, '')]) IN (
    SELECT TO_JSON_STRING([c.account_uid, c.region]) FROM covered AS c
  );

UPDATE compliance_history AS t
SET valid_to = DATE '9999-12-31'
WHERE newer IS NULL
  AND t.provider = @provider
  AND t.source = @template
  AND t.valid_to = @start_date
  AND TO_JSON_STRING([t.account_uid, IFNULL(t.region, '')]) IN (
    SELECT TO_JSON_STRING([c.account_uid, c.region]) FROM covered AS c
  );

-- One row per finding that is not as it was: new (no state before), another, or missing (no state now).
CREATE TEMP TABLE changes AS
WITH
scanned AS (
  SELECT
    n.account_uid AS account_uid, n.region AS region, MAX(n.scan_date) AS scan_date
  FROM compliance_scans AS n
  WHERE n.provider = @provider AND n.source = @template AND n.scan_date < @start_date
  GROUP BY 1, 2
),
before AS (
  SELECT
    h.finding_uid, h.fingerprint, h.state, h.first_seen, h.opened_at, h.closed_at, h.closed_reason, h.reopened_at,
    h.reopen_count, GREATEST(h.valid_from, IFNULL(n.scan_date, h.valid_from)) AS last_seen, c.complete
  FROM compliance_history AS h
  JOIN covered AS c ON c.account_uid = h.account_uid AND c.region = IFNULL(h.region, '')
  LEFT JOIN scanned AS n ON n.account_uid = c.account_uid AND n.region = c.region
  WHERE h.valid_to = DATE '9999-12-31' AND h.provider = @provider AND h.source = @template
),
compared AS (
  SELECT
    IFNULL(s.finding_uid, b.finding_uid) AS finding_uid,
    IFNULL(s.state, 'CLOSED') AS state,
    b.state AS previous_state,
    IFNULL(b.first_seen, @start_date) AS first_seen,
    b.last_seen,
    b.opened_at,
    b.closed_at,
    b.closed_reason,
    b.reopened_at,
    IFNULL(b.reopen_count, 0) AS reopen_count,
    b.opened_at IS NOT NULL AND b.closed_at IS NULL AS was_failing,
    IFNULL(s.state, 'CLOSED') = 'OPEN' AND b.opened_at IS NOT NULL AND b.closed_at IS NOT NULL AS is_reopened
  FROM {rows} AS s
  FULL JOIN before AS b ON b.finding_uid = s.finding_uid
  WHERE newer IS NULL
    AND (
      b.finding_uid IS NULL
      OR IF(s.finding_uid IS NULL, b.complete AND b.state != 'CLOSED', s.fingerprint != b.fingerprint)
    )
)
SELECT
  c.finding_uid AS finding_uid,
  c.state AS state,
  CASE
    WHEN c.previous_state IS NULL THEN 'NEW'
    WHEN c.state = 'CLOSED' THEN 'VANISHED'
    WHEN c.state = c.previous_state THEN 'CHANGED'
    WHEN c.is_reopened THEN 'REOPENED'
    WHEN c.state = 'MUTED' THEN 'MUTED'
    WHEN c.state = 'EXEMPT' THEN 'EXEMPTED'
    WHEN c.state = 'PASSED' AND c.was_failing THEN 'FIXED'
    WHEN c.previous_state IN ('MUTED', 'EXEMPT') THEN 'UNMUTED'
    WHEN c.state = 'OPEN' THEN 'OPENED'
    WHEN c.previous_state = 'CLOSED' THEN 'RETURNED'
    ELSE 'CHANGED'
  END AS change,
  c.previous_state AS previous_state,
  c.first_seen AS first_seen,
  IF(c.state = 'CLOSED', c.last_seen, NULL) AS last_seen,
  IF(c.state = 'OPEN' AND NOT c.was_failing, @start_date, c.opened_at) AS opened_at,
  CASE
    WHEN c.state = 'CLOSED' THEN @start_date
    WHEN c.state = 'OPEN' THEN NULL
    WHEN c.closed_reason = 'FIXED' THEN c.closed_at
    WHEN c.state = 'PASSED' AND c.opened_at IS NOT NULL THEN @start_date
  END AS closed_at,
  CASE
    WHEN c.state = 'CLOSED' THEN 'VANISHED'
    WHEN c.state = 'OPEN' THEN NULL
    WHEN c.closed_reason = 'FIXED' OR (c.state = 'PASSED' AND c.opened_at IS NOT NULL) THEN 'FIXED'
  END AS closed_reason,
  IF(c.is_reopened, @start_date, c.reopened_at) AS reopened_at,
  c.reopen_count + IF(c.is_reopened, 1, 0) AS reopen_count
FROM compared AS c;

UPDATE compliance_history AS t
SET valid_to = @start_date
WHERE t.provider = @provider
  AND t.source = @template
  AND t.valid_to = DATE '9999-12-31'
  AND t.finding_uid IN (SELECT c.finding_uid FROM changes AS c WHERE c.previous_state IS NOT NULL);

INSERT INTO compliance_history (
  finding_uid, provider, source, valid_from, valid_to, state, change, previous_state, first_seen, last_seen,
  opened_at, closed_at, closed_reason, reopened_at, reopen_count, status, status_code, status_detail, suppression,
  severity, check_uid, title, description, service, controls, standards, requirements, account_uid, account_name,
  organization_uid, cloud_partition, region, resource_uid, resource_name, resource_type, variant, remediation,
  remediation_references, product_name, product_vendor, product_version, source_uid, observed_at, raw_data,
  fingerprint, pipeline_logging_id
)
SELECT
  s.finding_uid, @provider, @template, @start_date, DATE '9999-12-31', c.state, c.change, c.previous_state,
  c.first_seen, c.last_seen, c.opened_at, c.closed_at, c.closed_reason, c.reopened_at, c.reopen_count, s.status,
  s.status_code, s.status_detail, s.suppression, s.severity, s.check_uid, s.title, s.description, s.service,
  s.controls, s.standards, s.requirements, s.account_uid, s.account_name, s.organization_uid, s.cloud_partition,
  s.region, s.resource_uid, s.resource_name, s.resource_type, s.variant, s.remediation, s.remediation_references,
  s.product_name, s.product_vendor, s.product_version, s.source_uid, s.observed_at, s.raw_data, s.fingerprint,
  @pipeline_logging_id
FROM {rows} AS s
JOIN changes AS c ON c.finding_uid = s.finding_uid;

INSERT INTO compliance_history (
  finding_uid, provider, source, valid_from, valid_to, state, change, previous_state, first_seen, last_seen,
  opened_at, closed_at, closed_reason, reopened_at, reopen_count, status, status_code, status_detail, suppression,
  severity, check_uid, title, description, service, controls, standards, requirements, account_uid, account_name,
  organization_uid, cloud_partition, region, resource_uid, resource_name, resource_type, variant, remediation,
  remediation_references, product_name, product_vendor, product_version, source_uid, observed_at, raw_data,
  fingerprint, pipeline_logging_id
)
SELECT
  h.finding_uid, @provider, @template, @start_date, DATE '9999-12-31', c.state, c.change, c.previous_state,
  c.first_seen, c.last_seen, c.opened_at, c.closed_at, c.closed_reason, c.reopened_at, c.reopen_count, h.status,
  h.status_code, h.status_detail, h.suppression, h.severity, h.check_uid, h.title, h.description, h.service,
  h.controls, h.standards, h.requirements, h.account_uid, h.account_name, h.organization_uid, h.cloud_partition,
  h.region, h.resource_uid, h.resource_name, h.resource_type, h.variant, h.remediation, h.remediation_references,
  h.product_name, h.product_vendor, h.product_version, h.source_uid, h.observed_at, h.raw_data, '',
  @pipeline_logging_id
FROM compliance_history AS h
JOIN changes AS c ON c.finding_uid = h.finding_uid
WHERE c.state = 'CLOSED'
  AND h.valid_to = @start_date
  AND h.provider = @provider
  AND h.source = @template;

DELETE FROM compliance_scans AS t
WHERE newer IS NULL
  AND t.scan_date BETWEEN @start_date AND @end_date
  AND t.provider = @provider
  AND t.source = @template
  AND TO_JSON_STRING([t.account_uid, t.region]) IN (
    SELECT TO_JSON_STRING([c.account_uid, c.region]) FROM covered AS c
  );

INSERT INTO compliance_scans (
  scan_date, provider, source, account_uid, region, is_complete, findings, extract_start_time, pipeline_logging_id
)
SELECT
  @start_date, @provider, @template, c.account_uid, c.region, c.complete, c.findings, @extract_start_time,
  @pipeline_logging_id
FROM covered AS c
WHERE newer IS NULL;

COMMIT TRANSACTION;
