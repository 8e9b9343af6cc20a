-- What the tenant's table of aws holds for November 2025.
-- Result: one row per currency, with its rows and cost.
-- Parameters: none. The dates prune the partitions.
-- Safe to run twice: it reads only.
SELECT
  t.line_item_currency_code AS currency,
  COUNT(*) AS row_count,
  SUM(t.line_item_unblended_cost) AS cost
FROM aws_cost_billing AS t
WHERE t.usage_date BETWEEN '2025-11-01' AND '2025-11-30'
GROUP BY currency
