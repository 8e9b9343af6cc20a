-- One row per finding of Security Command Center, as an observation (compliance_observation.schema.json).
-- Parameters: none. {raw} is the results as they came, a finding with its resource each; {target} is the staging table made.
-- The canonical name begins with the project, folder or organisation that the resource is nearest to, which is the account, and
-- is the same in every scan: a resource may have several findings of one category. An inactive finding has been mended.
-- Replaces its target, so it may run again.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
records AS (
  SELECT
    r.read_at AS read_at,
    r.record AS record,
    PARSE_JSON(r.record, wide_number_mode => 'round') AS j
  FROM {raw} AS r
),
named AS (
  SELECT
    r.read_at AS read_at,
    r.record AS record,
    r.j AS j,
    JSON_VALUE(r.j, '$.finding.canonicalName') AS source_uid,
    JSON_VALUE(r.j, '$.finding.category') AS category,
    JSON_VALUE(r.j, '$.finding.state') AS state,
    JSON_VALUE(r.j, '$.finding.severity') AS severity,
    COALESCE(
      NULLIF(JSON_VALUE(r.j, '$.finding.resourceName'), ''), NULLIF(JSON_VALUE(r.j, '$.resource.name'), '')
    ) AS resource_uid,
    ARRAY(
      SELECT AS STRUCT
        CONCAT(JSON_VALUE(c, '$.standard'), IFNULL(CONCAT('-', NULLIF(JSON_VALUE(c, '$.version'), '')), ''))
          AS standard,
        IFNULL(JSON_VALUE_ARRAY(c, '$.ids'), []) AS ids
      FROM UNNEST(JSON_QUERY_ARRAY(r.j, '$.finding.compliances')) AS c
      WHERE JSON_VALUE(c, '$.standard') IS NOT NULL
    ) AS compliances
  FROM records AS r
)
SELECT
  n.category AS check_uid,
  SPLIT(n.source_uid, '/')[SAFE_OFFSET(1)] AS account_uid,
  NULLIF(JSON_VALUE(n.j, '$.resource.location'), '') AS region,
  n.resource_uid AS resource_uid,
  n.source_uid AS variant,
  CASE n.state WHEN 'ACTIVE' THEN 'FAIL' WHEN 'INACTIVE' THEN 'PASS' ELSE n.state END AS status,
  n.state AS status_code,
  NULLIF(JSON_VALUE(n.j, '$.finding.description'), '') AS status_detail,
  IF(JSON_VALUE(n.j, '$.finding.mute') = 'MUTED', 'MUTED', NULL) AS suppression,
  IF(n.severity IS NULL OR n.severity = 'SEVERITY_UNSPECIFIED', 'UNKNOWN', n.severity) AS severity,
  n.category AS title,
  NULLIF(JSON_VALUE(n.j, '$.finding.description'), '') AS description,
  REGEXP_EXTRACT(n.resource_uid, r'^//([^./]+)\.') AS service,
  ARRAY(SELECT n.category) AS controls,
  ARRAY(SELECT c.standard FROM UNNEST(n.compliances) AS c) AS standards,
  ARRAY(
    SELECT CONCAT(c.standard, '/', i) FROM UNNEST(n.compliances) AS c, UNNEST(c.ids) AS i
  ) AS requirements,
  NULLIF(JSON_VALUE(n.j, '$.resource.gcpMetadata.projectDisplayName'), '') AS account_name,
  REGEXP_EXTRACT(JSON_VALUE(n.j, '$.resource.gcpMetadata.organization'), r'organizations/([0-9]+)')
    AS organization_uid,
  CAST(NULL AS STRING) AS cloud_partition,
  NULLIF(JSON_VALUE(n.j, '$.resource.displayName'), '') AS resource_name,
  NULLIF(JSON_VALUE(n.j, '$.resource.type'), '') AS resource_type,
  NULLIF(JSON_VALUE(n.j, '$.finding.nextSteps'), '') AS remediation,
  ARRAY(
    SELECT u FROM UNNEST([JSON_VALUE(n.j, '$.finding.externalUri')]) AS u WHERE IFNULL(u, '') != ''
  ) AS remediation_references,
  COALESCE(NULLIF(JSON_VALUE(n.j, '$.finding.parentDisplayName'), ''), 'Security Command Center') AS product_name,
  'Google' AS product_vendor,
  CAST(NULL AS STRING) AS product_version,
  n.source_uid AS source_uid,
  COALESCE(
    SAFE_CAST(REGEXP_REPLACE(JSON_VALUE(n.j, '$.finding.eventTime'), r'(\.[0-9]{6})[0-9]+', r'\1') AS TIMESTAMP),
    n.read_at
  ) AS observed_at,
  n.record AS raw_data
FROM named AS n
