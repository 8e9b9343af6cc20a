-- A part of publishing: takes out the rows of focus_cost_and_usage that the run replaces. Grain: one row per charge.
-- Parameters: @provider, @domain, @template STRING, @start_date, @end_date DATE (inclusive; they prune the partitions).
-- {rows} is the staging table of the export's rows. Only rows of this template go (see focus_once.sql).
-- For sources that only append: a day without staged rows keeps what it has, as its rows have not come yet.
-- Running it again deletes nothing more.
DELETE FROM focus_cost_and_usage AS t
WHERE newer IS NULL
  AND t.x_Provider = @provider
  AND t.x_ChargeDate BETWEEN @start_date AND @end_date
  AND t.x_ChargeDate IN (SELECT s.usage_date FROM {rows} AS s)
  AND IFNULL(t.x_SourceTemplate, CONCAT(@provider, '/cost/billing')) = CONCAT(@provider, '/', @domain, '/', @template);
