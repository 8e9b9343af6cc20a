-- What the tenant's table holds for a day.
-- One row: one currency, with its rows, cost and net cost.
-- Parameters: @day DATE, the partition that is read.
-- Safe to repeat: reads only.
SELECT
  t.currency AS currency,
  COUNT(*) AS row_count,
  SUM(t.cost) AS cost,
  SUM(t.net_cost) AS net
FROM gcp_cost_billing AS t
WHERE t.usage_date = @day
GROUP BY currency
