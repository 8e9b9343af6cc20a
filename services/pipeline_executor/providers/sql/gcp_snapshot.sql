-- One row: the source's own clock. Everything a run reads of the source is read as of this instant.
-- Parameters: none. Reads no table, costs nothing, may run any number of times.
SELECT CURRENT_TIMESTAMP() AS snapshot
