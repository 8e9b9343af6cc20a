-- A part of publishing: keeps the staged rows that are not published, each with the reason. Grain: one row of the export.
-- Parameters: @pipeline_logging_id, @provider, @domain, @template STRING, @attempt INT64, @start_date, @end_date DATE
-- (inclusive; they prune the partitions). {rows} is the staging table; {delivery} its column whose values the source
-- delivers whole (a day, a billing period), {account}, {currency} and {cost} (billed) are columns, too.
-- What an earlier run has kept of the same days or periods goes, so that a corrected source leaves nothing behind.
-- Running it again is kept from by the fence of the same script.
DELETE FROM x_quarantine AS t
WHERE newer IS NULL
  AND t.template = CONCAT(@provider, '/', @domain, '/', @template)
  AND t.usage_date BETWEEN @start_date AND @end_date
  AND (t.delivery IS NULL OR t.delivery IN (SELECT CAST(s.{delivery} AS STRING) FROM {rows} AS s));

IF newer IS NULL AND EXISTS (SELECT 1 FROM {rows} AS s WHERE s.quarantine_reason IS NOT NULL) THEN
  INSERT INTO x_quarantine (
    usage_date, provider, template, delivery, billing_account_id, currency, cost, reason, source_row,
    pipeline_logging_id
  )
  SELECT
    s.usage_date, @provider, CONCAT(@provider, '/', @domain, '/', @template), CAST(s.{delivery} AS STRING),
    s.{account}, s.{currency}, CAST(s.{cost} AS BIGNUMERIC), s.quarantine_reason, TO_JSON_STRING(s),
    s.pipeline_logging_id
  FROM {rows} AS s
  WHERE s.quarantine_reason IS NOT NULL;

  UPDATE x_meta_pipeline_runs AS r
  SET rows_published = (SELECT COUNT(*) FROM {rows} AS s WHERE s.quarantine_reason IS NULL)
  WHERE r.pipeline_logging_id = @pipeline_logging_id
    AND r.attempt = @attempt;
END IF;
