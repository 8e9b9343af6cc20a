-- One row per assessment of a resource by Defender for Cloud, as an observation (compliance_observation.schema.json).
-- Parameters: none. {raw} is the assessments as they came, each with what is said of its kind; {target} is the staging table
-- made.
-- An assessment says when it changed, not when it was made: that is when it was read. A resource outside of Azure has no id there:
-- the assessment's own id, without its end, is the resource's.
-- Replaces its target, so it may run again.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
records AS (
  SELECT
    r.scope AS scope,
    r.read_at AS read_at,
    r.record AS record,
    PARSE_JSON(r.record, wide_number_mode => 'round') AS j
  FROM {raw} AS r
),
named AS (
  SELECT
    r.scope AS scope,
    r.read_at AS read_at,
    r.record AS record,
    r.j AS j,
    JSON_VALUE(r.j, '$.assessment.name') AS check_uid,
    JSON_VALUE(r.j, '$.assessment.id') AS source_uid,
    JSON_VALUE(r.j, '$.assessment.properties.status.code') AS status_code,
    JSON_VALUE(r.j, '$.assessment.properties.status.cause') AS cause,
    COALESCE(
      NULLIF(JSON_VALUE(r.j, '$.assessment.properties.resourceDetails.Id'), ''),
      NULLIF(JSON_VALUE(r.j, '$.assessment.properties.resourceDetails.id'), ''),
      REGEXP_EXTRACT(JSON_VALUE(r.j, '$.assessment.id'), r'(?i)^(.+)/providers/Microsoft\.Security/assessments/')
    ) AS resource_uid,
    COALESCE(
      JSON_VALUE(r.j, '$.metadata.properties.severity'),
      JSON_VALUE(r.j, '$.assessment.properties.metadata.severity')
    ) AS severity
  FROM records AS r
)
SELECT
  n.check_uid AS check_uid,
  LOWER(
    COALESCE(REGEXP_EXTRACT(n.source_uid, r'(?i)^/subscriptions/([^/]+)'), n.scope)
  ) AS account_uid,
  CAST(NULL AS STRING) AS region,
  n.resource_uid AS resource_uid,
  CAST(NULL AS STRING) AS variant,
  CASE LOWER(n.status_code)
    WHEN 'healthy' THEN 'PASS'
    WHEN 'unhealthy' THEN 'FAIL'
    WHEN 'notapplicable' THEN 'UNKNOWN'
    ELSE n.status_code
  END AS status,
  n.status_code AS status_code,
  COALESCE(NULLIF(JSON_VALUE(n.j, '$.assessment.properties.status.description'), ''), NULLIF(n.cause, ''))
    AS status_detail,
  IF(STARTS_WITH(LOWER(n.cause), 'exempt'), 'EXEMPT', NULL) AS suppression,
  IFNULL(UPPER(n.severity), 'UNKNOWN') AS severity,
  COALESCE(
    JSON_VALUE(n.j, '$.assessment.properties.displayName'), JSON_VALUE(n.j, '$.metadata.properties.displayName')
  ) AS title,
  JSON_VALUE(n.j, '$.metadata.properties.description') AS description,
  REGEXP_EXTRACT(n.resource_uid, r'(?i).*/providers/([^/]+)/') AS service,
  ARRAY(SELECT n.check_uid) AS controls,
  ARRAY(SELECT s FROM UNNEST(['']) AS s WHERE s != '') AS standards,
  ARRAY(SELECT s FROM UNNEST(['']) AS s WHERE s != '') AS requirements,
  CAST(NULL AS STRING) AS account_name,
  CAST(NULL AS STRING) AS organization_uid,
  'AzureCloud' AS cloud_partition,
  REGEXP_EXTRACT(n.resource_uid, r'([^/]+)$') AS resource_name,
  REGEXP_EXTRACT(n.resource_uid, r'(?i).*/providers/([^/]+/[^/]+)/') AS resource_type,
  JSON_VALUE(n.j, '$.metadata.properties.remediationDescription') AS remediation,
  ARRAY(
    SELECT u
    FROM UNNEST([JSON_VALUE(n.j, '$.assessment.properties.links.azurePortalUri')]) AS u
    WHERE u IS NOT NULL
  ) AS remediation_references,
  'Microsoft Defender for Cloud' AS product_name,
  'Microsoft' AS product_vendor,
  CAST(NULL AS STRING) AS product_version,
  n.source_uid AS source_uid,
  n.read_at AS observed_at,
  n.record AS raw_data
FROM named AS n
