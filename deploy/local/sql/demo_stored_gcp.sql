-- What the tenant's table holds for a day.
-- Result: one row per currency, with its rows, cost and net cost.
-- Parameters: @day DATE, the partition that is read.
-- Safe to run twice: it reads only.
SELECT
  t.currency AS currency,
  COUNT(*) AS row_count,
  SUM(t.cost) AS cost,
  SUM(t.net_cost) AS net
FROM gcp_cost_billing AS t
WHERE t.usage_date = @day
GROUP BY currency
