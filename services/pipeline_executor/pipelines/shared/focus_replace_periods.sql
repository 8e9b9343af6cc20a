-- A part of publishing: takes out the rows of focus_cost_and_usage that the run replaces. Grain: one row per charge.
-- Parameters: @provider, @domain, @template STRING, @start_date, @end_date DATE (inclusive; they prune the partitions).
-- {rows} is the staging table of the export's rows, {delivery} its column of the billing period's first day. Only rows of
-- this template go (see focus_once.sql).
-- For sources that deliver a billing period whole each time: all of the run's days in the staged periods are replaced,
-- those without rows included; other periods keep what they have.
-- Running it again deletes nothing more.
DELETE FROM focus_cost_and_usage AS t
WHERE newer IS NULL
  AND t.x_Provider = @provider
  AND t.x_ChargeDate BETWEEN @start_date AND @end_date
  AND t.BillingPeriodStart IN (SELECT TIMESTAMP(s.{delivery}) FROM {rows} AS s)
  AND IFNULL(t.x_SourceTemplate, CONCAT(@provider, '/cost/billing')) = CONCAT(@provider, '/', @domain, '/', @template);
