-- One row per status, in the source's own word: what the quality checks of the compliance templates hold against the source or
-- zero. What is measured of all findings together stands in one of the rows.
-- Parameters: @provider, @template STRING, @start_date DATE (the day of the scan), @scopes STRING (JSON array of account_uid,
-- region, complete), @accept_drop BOOL. {observations} has a row per record of the source, {rows} one per finding. A read: it may
-- run any number of times.
-- A drop is unexplained where findings are gone of an account that the scan says it has seen whole: more than a fifth of those
-- that were there (at least 10) is a lot, more than half is too many: a scan that saw less than there is looks just so. An
-- account with findings that is in no scope of this scan is counted as absent.
WITH
observed AS (
  SELECT
    IFNULL(o.status_code, '') AS status_code,
    COUNT(*) AS row_count,
    COUNTIF(IFNULL(o.check_uid, '') = '') AS without_check,
    COUNTIF(IFNULL(o.account_uid, '') = '') AS without_account,
    COUNTIF(IFNULL(o.resource_uid, '') = '') AS without_resource,
    COUNTIF(IFNULL(o.status, '') NOT IN ('PASS', 'FAIL', 'WARNING', 'UNKNOWN')) AS unknown_status,
    COUNTIF(
      IFNULL(o.severity, '') NOT IN ('UNKNOWN', 'INFORMATIONAL', 'LOW', 'MEDIUM', 'HIGH', 'CRITICAL', 'FATAL')
    ) AS unknown_severity,
    COUNTIF(o.suppression NOT IN ('MUTED', 'EXEMPT')) AS unknown_suppression,
    COUNTIF(o.observed_at IS NULL OR o.raw_data IS NULL OR IFNULL(o.product_name, '') = '') AS incomplete
  FROM {observations} AS o
  GROUP BY 1
),
-- Findings of one check share their lists: each of these is looked at once.
listed AS (
  SELECT
    COUNTIF((
      SELECT COUNT(*)
      FROM UNNEST(JSON_VALUE_ARRAY(k.lists, '$.requirements')) AS q
      WHERE (SELECT COUNTIF(STARTS_WITH(q, CONCAT(v, '/'))) FROM UNNEST(JSON_VALUE_ARRAY(k.lists, '$.standards')) AS v) = 0
    ) > 0) AS requirements_without_standard
  FROM (
    SELECT DISTINCT
      TO_JSON_STRING(STRUCT(s.standards AS standards, s.requirements AS requirements)) AS lists
    FROM {rows} AS s
  ) AS k
),
scopes AS (
  SELECT
    JSON_VALUE(j, '$.account_uid') AS account_uid,
    JSON_VALUE(j, '$.region') AS region,
    JSON_VALUE(j, '$.complete') = 'true' AS complete
  FROM UNNEST(JSON_QUERY_ARRAY(@scopes)) AS j
),
known AS (
  SELECT h.account_uid AS account_uid, IFNULL(h.region, '') AS region, h.finding_uid AS finding_uid
  FROM compliance_history AS h
  WHERE h.provider = @provider
    AND h.source = @template
    AND h.state != 'CLOSED'
    AND h.valid_from < @start_date
    AND h.valid_to >= @start_date
),
places AS (
  SELECT
    k.account_uid AS account_uid, k.region AS region,
    LOGICAL_OR(c.account_uid IS NOT NULL) AS is_covered, LOGICAL_OR(IFNULL(c.complete, FALSE)) AS is_complete
  FROM (SELECT DISTINCT n.account_uid AS account_uid, n.region AS region FROM known AS n) AS k
  LEFT JOIN scopes AS c ON c.account_uid IN ('', k.account_uid) AND c.region IN ('', k.region)
  GROUP BY 1, 2
),
accounts AS (
  SELECT
    k.account_uid AS account_uid,
    LOGICAL_OR(p.is_covered) AS is_covered,
    COUNTIF(p.is_complete) AS expected,
    COUNTIF(p.is_complete AND s.finding_uid IS NULL) AS missing
  FROM known AS k
  JOIN places AS p ON p.account_uid = k.account_uid AND p.region = k.region
  LEFT JOIN {rows} AS s ON s.finding_uid = k.finding_uid
  GROUP BY 1
),
drops AS (
  SELECT
    IFNULL(SUM(IF(a.missing >= 10 AND a.missing * 5 > a.expected, a.missing, 0)), 0) AS vanished_many,
    IFNULL(SUM(IF(NOT @accept_drop AND a.missing >= 10 AND a.missing * 2 > a.expected, a.missing, 0)), 0)
      AS vanished_most,
    COUNTIF(NOT a.is_covered) AS absent_accounts
  FROM accounts AS a
)
SELECT
  o.status_code, o.row_count, o.without_check, o.without_account, o.without_resource, o.unknown_status,
  o.unknown_severity, o.unknown_suppression, o.incomplete,
  IF(f.status_code IS NULL, 0, l.requirements_without_standard) AS requirements_without_standard,
  IF(f.status_code IS NULL, 0, f.row_count - (SELECT COUNT(*) FROM {rows} AS s)) AS duplicates,
  IF(f.status_code IS NULL, 0, d.vanished_many) AS vanished_many,
  IF(f.status_code IS NULL, 0, d.vanished_most) AS vanished_most,
  IF(f.status_code IS NULL, 0, d.absent_accounts) AS absent_accounts
FROM observed AS o
CROSS JOIN drops AS d
CROSS JOIN listed AS l
LEFT JOIN (SELECT MIN(a.status_code) AS status_code, SUM(a.row_count) AS row_count FROM observed AS a) AS f
  ON f.status_code = o.status_code
