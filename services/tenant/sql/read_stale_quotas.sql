-- Result: one tenant id per quota row that counts a day before @today.
-- Parameters: @today DATE.
-- Safe to run twice: it only reads.
SELECT q.tenant_id
FROM tenant_usage_quotas AS q
WHERE q.day < @today
