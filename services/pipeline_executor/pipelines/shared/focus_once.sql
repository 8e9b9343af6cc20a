-- A part of publishing: sees to it that no charge stands twice in focus_cost_and_usage. Grain: one row per charge.
-- Parameters: @provider, @domain, @template STRING, @start_date, @end_date DATE (inclusive; they prune the partitions),
-- @take_over BOOL. {focus} is the staging table whose rows follow.
-- Another template of the same provider may read other accounts, so its rows stay. Where it has published the same
-- account and days, their cost would count twice: the run is refused, unless @take_over says that this template shall
-- have them from then on; then they go, and what that template has put into quarantine. Rows from before
-- x_SourceTemplate was there are those of cost/billing. An account is known by the last part of its id, as exports write
-- the rest differently. Running it again deletes nothing more.
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

IF newer IS NULL AND @take_over THEN
  DELETE FROM focus_cost_and_usage AS t
  WHERE t.x_Provider = @provider
    AND t.x_ChargeDate BETWEEN @start_date AND @end_date
    AND IFNULL(t.x_SourceTemplate, CONCAT(@provider, '/cost/billing'))
      != CONCAT(@provider, '/', @domain, '/', @template)
    AND REGEXP_EXTRACT(LOWER(t.BillingAccountId), r'[^/]+$') IN (
      SELECT REGEXP_EXTRACT(LOWER(f.BillingAccountId), r'[^/]+$') FROM {focus} AS f
    );
  DELETE FROM x_quarantine AS t
  WHERE t.provider = @provider
    AND t.usage_date BETWEEN @start_date AND @end_date
    AND t.template != CONCAT(@provider, '/', @domain, '/', @template)
    AND (
      IFNULL(t.billing_account_id, '') = ''
      OR REGEXP_EXTRACT(LOWER(t.billing_account_id), r'[^/]+$') IN (
        SELECT REGEXP_EXTRACT(LOWER(f.BillingAccountId), r'[^/]+$') FROM {focus} AS f
      )
    );
END IF;
