-- One row: what the rows of a run say of their age, how many there are and when the last one was written.
-- Parameters: @start, @end (usage time, half open) and @floor (lower bound of the partition column), each of its column's
-- type; @snapshot TIMESTAMP. {source} is the customer's table, {time} its usage time, {written} its time of export,
-- {partition} its partition column. Reads these columns only, as of @snapshot: the same answer each time.
SELECT CONCAT(CAST(COUNT(*) AS STRING), '@', IFNULL(CAST(MAX(s.{written}) AS STRING), '')) AS version
FROM {source} AS s FOR SYSTEM_TIME AS OF @snapshot
WHERE s.{time} >= @start
  AND s.{time} < @end
  AND (s.{partition} >= @floor OR s.{partition} IS NULL)
