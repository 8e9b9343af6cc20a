-- What each service cost on a day, dearest first in each currency.
-- Result: one row per currency and service, with cost, credits and net cost.
-- Parameters: @day DATE, the partition that is read.
-- Safe to run twice: it reads only.
SELECT
  t.currency AS currency,
  IFNULL(t.service_description, '(none)') AS service,
  SUM(t.cost) AS cost,
  SUM(t.credits_total) AS credits,
  SUM(t.net_cost) AS net
FROM gcp_cost_billing AS t
WHERE t.usage_date = @day
GROUP BY currency, service
ORDER BY currency, net DESC
