-- A part of publishing: takes out the rows of focus_cost_and_usage that the run replaces. Grain: one row per charge.
-- Parameters: @provider, @domain, @template STRING, @start_date, @end_date DATE (inclusive; they prune the partitions),
-- @take_over BOOL. {focus} is the staging table whose rows follow.
-- Only rows of this template go: another one of the same provider may read other accounts. Where it has published the
-- same account and days, their cost would count twice: the run is refused, unless @take_over says that this template
-- shall have them, from then on. Rows from before x_SourceTemplate was there are those of cost/billing. An account is
-- known by the last part of its id, as exports write the rest differently.
-- For sources that only append: a day without staged rows keeps what it has, as its rows have not come yet.
-- Running it again deletes nothing more.
ASSERT newer IS NOT NULL OR @take_over OR NOT EXISTS (
  SELECT 1
  FROM focus_cost_and_usage AS t
  WHERE t.x_Provider = @provider
    AND t.x_ChargeDate BETWEEN @start_date AND @end_date
    AND IFNULL(t.x_SourceTemplate, CONCAT(@provider, '/cost/billing'))
      != CONCAT(@provider, '/', @domain, '/', @template)
    AND REGEXP_EXTRACT(LOWER(t.BillingAccountId), r'[^/]+$') IN (
      SELECT REGEXP_EXTRACT(LOWER(f.BillingAccountId), r'[^/]+$') FROM {focus} AS f
    )
) AS 'assert:COST_COUNTED_TWICE';

DELETE FROM focus_cost_and_usage AS t
WHERE newer IS NULL
  AND t.x_Provider = @provider
  AND t.x_ChargeDate BETWEEN @start_date AND @end_date
  AND t.x_ChargeDate IN (SELECT f.x_ChargeDate FROM {focus} AS f)
  AND (
    IFNULL(t.x_SourceTemplate, CONCAT(@provider, '/cost/billing')) = CONCAT(@provider, '/', @domain, '/', @template)
    OR (
      @take_over
      AND REGEXP_EXTRACT(LOWER(t.BillingAccountId), r'[^/]+$') IN (
        SELECT REGEXP_EXTRACT(LOWER(f.BillingAccountId), r'[^/]+$') FROM {focus} AS f
      )
    )
  );
