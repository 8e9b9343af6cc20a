-- PARSE_JSON in DuckDB's words, as the emulator has it, but that a text is looked at once: a macro puts its argument in
-- wherever it is named, and the emulator's own names it five times, a subquery that makes the text with it.
-- Result: one JSON value of one text. Parameters: s VARCHAR; mode VARCHAR, what becomes of numbers that no double holds.
-- Safe to run twice: it replaces itself.
CREATE OR REPLACE MACRO bq.main.parse_json(s) AS bq.main._parse_json_exact(s),
(s, mode) AS CASE lower(mode)
  WHEN 'exact' THEN bq.main._parse_json_exact(s)
  WHEN 'round' THEN list_transform(
    [json(s)],
    lambda j: CASE
      WHEN json_type(j) IN ('DOUBLE', 'UBIGINT', 'HUGEINT') THEN to_json(CAST(j AS DOUBLE))
      ELSE j
    END
  )[1]
  ELSE _raise('Invalid wide_number_mode: ' || mode)
END
