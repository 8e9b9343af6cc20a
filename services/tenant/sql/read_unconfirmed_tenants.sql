-- Result: one row per tenant that is being offboarded: its id and who has confirmed.
-- Parameters: none.
-- Safe to run twice: it only reads.
SELECT p.tenant_id, p.confirmations
FROM tenant_profiles AS p
WHERE p.state = 'OFFBOARDING'
ORDER BY p.tenant_id
