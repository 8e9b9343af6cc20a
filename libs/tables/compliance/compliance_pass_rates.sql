-- A view: one row per standard, account, source and day of a scan: how many findings passed, were open, muted, exempt or not
-- decided at the end of that day, and passed / (passed + open). Muted and exempt ones count as neither.
-- Parameters: none. Each version of a finding adds one on its first day and takes it back on the day after its last, so that a
-- day's figures are a running sum of few rows. It only reads.
WITH
days AS (
  SELECT DISTINCT n.provider AS provider, n.source AS source, n.account_uid AS account_uid, n.scan_date AS day
  FROM {compliance_scans} AS n
),
steps AS (
  SELECT
    h.provider AS provider, h.source AS source, h.account_uid AS account_uid, s AS standard,
    IF(side = 1, h.valid_from, h.valid_to) AS day, h.state AS state, SUM(side) AS number
  FROM {compliance_history} AS h, UNNEST(h.standards) AS s, UNNEST([1, -1]) AS side
  WHERE h.state != 'CLOSED' AND (side = 1 OR h.valid_to < DATE '9999-12-31')
  GROUP BY 1, 2, 3, 4, 5, 6
),
standards AS (
  SELECT
    t.provider AS provider, t.source AS source, t.account_uid AS account_uid, t.standard AS standard,
    MIN(t.day) AS first_day
  FROM steps AS t
  GROUP BY 1, 2, 3, 4
),
sums AS (
  SELECT
    d.day AS day, d.provider AS provider, d.source AS source, d.account_uid AS account_uid, n.standard AS standard,
    SUM(IF(t.state = 'PASSED', t.number, 0)) AS passed,
    SUM(IF(t.state = 'OPEN', t.number, 0)) AS open,
    SUM(IF(t.state = 'MUTED', t.number, 0)) AS muted,
    SUM(IF(t.state = 'EXEMPT', t.number, 0)) AS exempt,
    SUM(IF(t.state = 'UNDECIDED', t.number, 0)) AS undecided
  FROM days AS d
  JOIN standards AS n
    ON n.provider = d.provider AND n.source = d.source AND n.account_uid = d.account_uid AND n.first_day <= d.day
  LEFT JOIN steps AS t
    ON t.provider = d.provider AND t.source = d.source AND t.account_uid = d.account_uid
    AND t.standard = n.standard AND t.day = d.day
  GROUP BY 1, 2, 3, 4, 5
),
running AS (
  SELECT
    s.day AS day, s.provider AS provider, s.source AS source, s.account_uid AS account_uid, s.standard AS standard,
    SUM(s.passed) OVER so_far AS passed,
    SUM(s.open) OVER so_far AS open,
    SUM(s.muted) OVER so_far AS muted,
    SUM(s.exempt) OVER so_far AS exempt,
    SUM(s.undecided) OVER so_far AS undecided
  FROM sums AS s
  WINDOW so_far AS (PARTITION BY s.provider, s.source, s.account_uid, s.standard ORDER BY s.day)
)
SELECT
  r.day AS day, r.provider AS provider, r.source AS source, r.account_uid AS account_uid, r.standard AS standard,
  r.passed AS passed, r.open AS open, r.muted AS muted, r.exempt AS exempt, r.undecided AS undecided,
  ROUND(SAFE_DIVIDE(CAST(r.passed AS NUMERIC), CAST(r.passed + r.open AS NUMERIC)), 4) AS pass_rate
FROM running AS r
