-- A page of what changed in a tenant's compliance, the newest first. One result row: one finding on one day.
-- Parameters: @since DATE, @provider, @severity, @standard, @account, @status, @resource STRING (empty: all), @after_date DATE
-- (NULL: the first page), @after_uid STRING, @size INT64. Reads only, and no version that ended before @since.
SELECT
  h.finding_uid, h.change, h.valid_from, h.state, h.previous_state, h.provider, h.source, h.severity, h.check_uid, h.title,
  h.account_uid, h.region, h.resource_uid, h.standards, h.requirements, h.first_seen,
  h.valid_to = DATE '9999-12-31' AS is_current
FROM compliance_history AS h
WHERE h.valid_to > @since
  AND h.valid_from >= @since
  AND (@provider = '' OR h.provider = @provider)
  AND (@severity = '' OR h.severity = @severity)
  AND (@standard = '' OR @standard IN UNNEST(h.standards))
  AND (@account = '' OR h.account_uid = @account)
  AND (@status = '' OR h.state = @status)
  AND (@resource = '' OR h.resource_uid = @resource)
  AND (
    @after_date IS NULL
    OR h.valid_from < @after_date
    OR (h.valid_from = @after_date AND h.finding_uid > @after_uid)
  )
ORDER BY h.valid_from DESC, h.finding_uid
LIMIT @size
