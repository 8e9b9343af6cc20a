-- Result: none; the keys of @rows that were used later than they say then say so.
-- Parameters: @rows STRING, the JSON text of an array of {api_key_id, last_used_at}.
-- Safe to run twice: the time only goes forward. The version stays, because nothing is decided on this column.
UPDATE tenant_api_keys AS k
SET last_used_at = u.last_used_at
FROM (
  SELECT
    JSON_VALUE(j, '$.api_key_id') AS api_key_id,
    CAST(JSON_VALUE(j, '$.last_used_at') AS TIMESTAMP) AS last_used_at
  FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j
) AS u
WHERE k.api_key_id = u.api_key_id AND (k.last_used_at IS NULL OR k.last_used_at < u.last_used_at)
