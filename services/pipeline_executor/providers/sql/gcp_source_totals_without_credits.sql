-- One row per currency of an export that has no credits column: like gcp_source_totals.sql, with credits of zero.
-- Parameters: @start, @end (usage time, half open), @floor (lower bound of the partition column), @snapshot TIMESTAMP.
-- {source} is the customer's table, {partition} its partition column; all its columns count where rows are compared.
-- A read as of @snapshot: the same answer each time.
SELECT
  IFNULL(CAST(t.currency AS STRING), '') AS currency,
  COUNT(*) AS row_count,
  IFNULL(SUM(CAST(t.cost AS NUMERIC)), 0) AS cost,
  CAST(0 AS NUMERIC) AS credits,
  COUNT(DISTINCT MD5(TO_JSON_STRING(t))) AS distinct_rows
FROM (
  SELECT s.*
  FROM {source} AS s FOR SYSTEM_TIME AS OF @snapshot
  WHERE s.usage_start_time >= @start
    AND s.usage_start_time < @end
    AND (s.{partition} >= @floor OR s.{partition} IS NULL)
) AS t
GROUP BY 1
