-- Takes the job id under which an attempt's row would be made, so that it never is. One result row: a word.
-- Parameters: none. It is sent under the job id of insert_run.sql. If that statement has run, or runs later, under the
-- same id, BigQuery answers the second of the two with the job of the first: exactly one of them takes place.
SELECT 'withdrawn' AS outcome;
