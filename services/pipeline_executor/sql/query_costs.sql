-- A page of a tenant's costs, the largest first. One result row: one group in one currency; dimensions is a JSON array
-- with the group's value of each of @group_by, in that order, null where the charge has none.
-- Parameters: @group_by ARRAY<STRING> (provider, service, account, region, charge_category, currency, day, month,
-- tag:<key>), @metric STRING (billed or effective), @first_date, @start_date, @end_date DATE (inclusive; what lies before @start_date is the
-- window before, and its days count as those @shift_days and @shift_months later), @shift_days, @shift_months INT64,
-- @currency, @provider, @service, @account, @region, @charge_category, @tag_key STRING (empty: all), @tag_value STRING
-- (of @tag_key), @after_cost NUMERIC (NULL: the first page), @after_dimensions, @after_currency STRING, @size INT64. Reads only, and of those dates only.
SELECT c.dimensions, c.currency, c.cost, c.previous_cost
FROM (
  SELECT
    TO_JSON_STRING(ARRAY(
      SELECT
        CASE
          WHEN d = 'provider' THEN t.x_Provider
          WHEN d = 'service' THEN t.ServiceName
          WHEN d = 'account' THEN t.SubAccountId
          WHEN d = 'region' THEN t.RegionId
          WHEN d = 'charge_category' THEN t.ChargeCategory
          WHEN d = 'currency' THEN t.BillingCurrency
          WHEN d = 'day' THEN FORMAT_DATE('%Y-%m-%d', t.counted_date)
          WHEN d = 'month' THEN FORMAT_DATE('%Y-%m', t.counted_date)
          WHEN STARTS_WITH(d, 'tag:') THEN JSON_VALUE(t.Tags[SUBSTR(d, 5)])
        END
      FROM UNNEST(@group_by) AS d WITH OFFSET AS place
      ORDER BY place
    )) AS dimensions,
    t.BillingCurrency AS currency,
    SUM(IF(t.is_before, 0, t.cost)) AS cost,
    SUM(IF(t.is_before, t.cost, 0)) AS previous_cost
  FROM (
    SELECT
      f.x_Provider, f.ServiceName, f.SubAccountId, f.RegionId, f.ChargeCategory, f.BillingCurrency, f.Tags,
      IF(@metric = 'effective', f.EffectiveCost, f.BilledCost) AS cost,
      f.x_ChargeDate < @start_date AS is_before,
      IF(
        f.x_ChargeDate < @start_date,
        DATE_ADD(DATE_ADD(f.x_ChargeDate, INTERVAL @shift_days DAY), INTERVAL @shift_months MONTH), f.x_ChargeDate
      ) AS counted_date
    FROM focus_cost_and_usage AS f
    WHERE f.x_ChargeDate BETWEEN @first_date AND @end_date
      AND (@currency = '' OR f.BillingCurrency = @currency)
      AND (@provider = '' OR f.x_Provider = @provider)
      AND (@service = '' OR f.ServiceName = @service)
      AND (@account = '' OR f.SubAccountId = @account)
      AND (@region = '' OR f.RegionId = @region)
      AND (@charge_category = '' OR f.ChargeCategory = @charge_category)
      AND (@tag_key = '' OR JSON_VALUE(f.Tags[@tag_key]) = @tag_value)
  ) AS t
  GROUP BY 1, 2
) AS c
WHERE @after_cost IS NULL
  OR c.cost < @after_cost
  OR (
    c.cost = @after_cost
    AND (c.dimensions > @after_dimensions OR (c.dimensions = @after_dimensions AND c.currency > @after_currency))
  )
ORDER BY c.cost DESC, c.dimensions, c.currency
LIMIT @size
