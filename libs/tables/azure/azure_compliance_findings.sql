-- A view: one row per compliance finding of azure as it is now; the rows of compliance_findings, which describes the columns.
-- Parameters: none. It only reads.
SELECT f.*
FROM {compliance_findings} AS f
WHERE f.cloud_provider = 'azure'
