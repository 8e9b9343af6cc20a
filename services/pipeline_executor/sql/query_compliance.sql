-- A page of a tenant's compliance, by day and most open first. One result row: one group at the end of one day; dimensions is
-- a JSON array with the group's value of each of @group_by, in that order, null where a finding has none (and for day).
-- Parameters: @group_by ARRAY<STRING> (provider, severity, status, standard, account, resource, day), @first_day, @last_day
-- DATE (inclusive), @provider, @severity, @standard, @account, @status, @resource STRING (empty: all), @after_day DATE (NULL:
-- the first page), @after_failed INT64, @after_dimensions STRING, @size INT64. Reads only, and of current versions and those that
-- ended after the first day.
-- A version counts from its first day to the day before its end: it adds itself on the one, takes itself back on the other, and
-- a day's figures are the sum so far.
WITH
versions AS (
  SELECT
    TO_JSON_STRING(ARRAY(
      SELECT
        CASE d
          WHEN 'provider' THEN h.provider
          WHEN 'severity' THEN h.severity
          WHEN 'status' THEN h.state
          WHEN 'standard' THEN s
          WHEN 'account' THEN h.account_uid
          WHEN 'resource' THEN h.resource_uid
        END
      FROM UNNEST(@group_by) AS d WITH OFFSET AS place
      ORDER BY place
    )) AS dimensions,
    h.state,
    GREATEST(h.valid_from, @first_day) AS first_day,
    h.valid_to AS end_day
  FROM compliance_history AS h
  LEFT JOIN UNNEST(IF('standard' IN UNNEST(@group_by), h.standards, [])) AS s
  WHERE h.valid_to > @first_day
    AND h.valid_from <= @last_day
    AND h.state != 'CLOSED'
    AND (@provider = '' OR h.provider = @provider)
    AND (@severity = '' OR h.severity = @severity)
    AND (@standard = '' OR @standard IN UNNEST(h.standards))
    AND ('standard' NOT IN UNNEST(@group_by) OR @standard = '' OR s = @standard)
    AND (@account = '' OR h.account_uid = @account)
    AND (@status = '' OR h.state = @status)
    AND (@resource = '' OR h.resource_uid = @resource)
),
steps AS (
  SELECT v.dimensions, v.state, IF(side = 1, v.first_day, v.end_day) AS day, SUM(side) AS number
  FROM versions AS v
  CROSS JOIN UNNEST([1, -1]) AS side
  WHERE side = 1 OR v.end_day <= @last_day
  GROUP BY 1, 2, 3
),
sums AS (
  SELECT
    k.dimensions,
    one_day AS day,
    SUM(IF(t.state = 'PASSED', t.number, 0)) AS passed,
    SUM(IF(t.state = 'OPEN', t.number, 0)) AS failed,
    SUM(IF(t.state = 'MUTED', t.number, 0)) AS muted,
    SUM(IF(t.state = 'EXEMPT', t.number, 0)) AS exempt,
    SUM(IF(t.state = 'UNDECIDED', t.number, 0)) AS undecided
  FROM (SELECT DISTINCT i.dimensions FROM steps AS i) AS k
  CROSS JOIN UNNEST(GENERATE_DATE_ARRAY(@first_day, @last_day)) AS one_day
  LEFT JOIN steps AS t ON t.dimensions = k.dimensions AND t.day = one_day
  GROUP BY 1, 2
),
running AS (
  SELECT
    s.dimensions,
    s.day,
    SUM(s.passed) OVER so_far AS passed,
    SUM(s.failed) OVER so_far AS failed,
    SUM(s.muted) OVER so_far AS muted,
    SUM(s.exempt) OVER so_far AS exempt,
    SUM(s.undecided) OVER so_far AS undecided
  FROM sums AS s
  WINDOW so_far AS (PARTITION BY s.dimensions ORDER BY s.day)
)
SELECT r.dimensions, r.day, r.passed, r.failed, r.muted, r.exempt, r.undecided
FROM running AS r
WHERE r.passed + r.failed + r.muted + r.exempt + r.undecided > 0
  AND (
    @after_day IS NULL
    OR r.day > @after_day
    OR (
      r.day = @after_day
      AND (r.failed < @after_failed OR (r.failed = @after_failed AND r.dimensions > @after_dimensions))
    )
  )
ORDER BY r.day, r.failed DESC, r.dimensions
LIMIT @size
