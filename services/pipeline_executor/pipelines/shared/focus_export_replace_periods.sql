-- A part of publishing: takes the run's dates out of {target}, <provider>_cost_focus. Grain: one row of the export.
-- Parameters: @start_date, @end_date DATE (inclusive; they prune the partitions). {rows} is the staging table.
-- For sources that deliver a billing period whole each time: all of the run's dates in the staged periods are replaced,
-- those without rows included; other periods keep what they have.
-- Running it again is kept from by the fence of the same script.
DELETE FROM {target} AS t
WHERE newer IS NULL
  AND t.usage_date BETWEEN @start_date AND @end_date
  AND t.BillingPeriodStart IN (SELECT s.BillingPeriodStart FROM {rows} AS s);
