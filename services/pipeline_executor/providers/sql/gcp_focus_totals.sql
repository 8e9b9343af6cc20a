-- One row per currency of Google's FOCUS export: what the rows of the run add up to, found without reading them.
-- Parameters: @start, @end (start of the charge, half open) and @floor (lower bound of the partition column, so that only
-- the partitions that can hold these days are scanned), each of its column's type; @snapshot TIMESTAMP.
-- {source} is the customer's table, {partition} its partition column. A read as of @snapshot: the same answer each time.
SELECT
  IFNULL(CAST(t.BillingCurrency AS STRING), '') AS currency,
  COUNT(*) AS row_count,
  IFNULL(SUM(ROUND(CAST(t.BilledCost AS BIGNUMERIC), 17)), 0) AS billed_cost,
  IFNULL(SUM(ROUND(CAST(t.EffectiveCost AS BIGNUMERIC), 17)), 0) AS effective_cost
FROM {source} AS t FOR SYSTEM_TIME AS OF @snapshot
WHERE t.ChargePeriodStart >= @start
  AND t.ChargePeriodStart < @end
  AND (t.{partition} >= @floor OR t.{partition} IS NULL)
GROUP BY 1
