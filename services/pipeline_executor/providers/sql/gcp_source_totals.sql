-- One row per currency of the export: what the rows of the run add up to, found without reading them.
-- Parameters: @start, @end (usage time, half open) and @floor (lower bound of the partition column, so that only
-- the partitions that can hold these days are scanned), each of its column's type; @snapshot TIMESTAMP.
-- {source} is the customer's table, {partition} its partition column. A read as of @snapshot: the same answer each time.
-- Rows are compared whole by their JSON text, as no export row has an id; the star is for that, since nobody here
-- knows all columns of the customer's table.
SELECT
  IFNULL(CAST(t.currency AS STRING), '') AS currency,
  COUNT(*) AS row_count,
  IFNULL(SUM(CAST(t.cost AS NUMERIC)), 0) AS cost,
  IFNULL(SUM((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(t.credits) AS c)), 0) AS credits,
  COUNT(DISTINCT MD5(TO_JSON_STRING(t))) AS distinct_rows
FROM (
  SELECT s.*
  FROM {source} AS s FOR SYSTEM_TIME AS OF @snapshot
  WHERE s.usage_start_time >= @start
    AND s.usage_start_time < @end
    AND (s.{partition} >= @floor OR s.{partition} IS NULL)
) AS t
GROUP BY 1
