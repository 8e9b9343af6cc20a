-- What sums of costs lack: rows in quarantine. One result row: one provider and currency ('' for none).
-- Parameters: @first_date, @end_date DATE (inclusive; they prune the partitions), @provider STRING (empty: all).
-- Reads only.
SELECT
  q.provider AS provider,
  IFNULL(q.currency, '') AS currency,
  COUNT(*) AS row_count,
  IFNULL(SUM(q.cost), 0) AS cost
FROM x_quarantine AS q
WHERE q.usage_date BETWEEN @first_date AND @end_date
  AND (@provider = '' OR q.provider = @provider)
GROUP BY 1, 2
ORDER BY 1, 2
