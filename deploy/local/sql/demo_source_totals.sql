-- What the customer's billing export holds for a day of usage, whichever partition its rows lie in.
-- Result: one row per currency, with its rows, cost and net cost.
-- Parameters: @day DATE. Table: {source}, the export, read whole (it is the sample).
-- Safe to run twice: it reads only.
SELECT
  s.currency AS currency,
  COUNT(*) AS row_count,
  SUM(CAST(s.cost AS NUMERIC)) AS cost,
  SUM(
    CAST(s.cost AS NUMERIC)
    + IFNULL((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(s.credits) AS c), NUMERIC '0')
  ) AS net
FROM {source} AS s
WHERE DATE(s.usage_start_time) = @day
GROUP BY currency
