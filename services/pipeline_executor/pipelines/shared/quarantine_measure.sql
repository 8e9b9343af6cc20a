-- One row per currency ('' for none) and reason: the staged rows that will not be published, and the first of them.
-- Parameters: none. {rows} is the staging table, {currency} and {cost} (billed) are columns of it. A read: it may run any
-- number of times.
SELECT
  IFNULL(s.{currency}, '') AS currency,
  s.quarantine_reason AS reason,
  COUNT(*) AS row_count,
  IFNULL(SUM(CAST(s.{cost} AS BIGNUMERIC)), 0) AS cost,
  MIN(s.usage_date) AS first_date
FROM {rows} AS s
WHERE s.quarantine_reason IS NOT NULL
GROUP BY 1, 2
ORDER BY 3 DESC, 1, 2
