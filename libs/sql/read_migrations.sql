-- Result: one row per applied migration.
-- Parameters: none.
-- Safe to run twice: it only reads.
SELECT DISTINCT m.name AS name
FROM schema_migrations AS m
