-- Result: none; one row of schema_migrations per element of @rows that is not recorded yet.
-- Parameters: @rows STRING, the JSON text of an array of objects with a name.
-- Safe to run twice: a name that is there is left out; two at once may write it twice, and readers take it once.
INSERT INTO schema_migrations (name, applied_at)
SELECT u.name, CURRENT_TIMESTAMP()
FROM (SELECT JSON_VALUE(j, '$.name') AS name FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j) AS u
WHERE u.name NOT IN (SELECT m.name FROM schema_migrations AS m)
