-- One row per record of a Prowler output, as an observation (compliance_observation.schema.json).
-- Parameters: none. {raw} is the records as they came: objects of the OCSF form (class 2004, Detection Finding) or rows of the
-- CSV form, under the names of its columns; {target} is the staging table made.
-- Prowler's time is in seconds where OCSF wants milliseconds, and its CSV has the scanner's own time without a zone, which is
-- taken as UTC. A requirement that holds a comma is one in the OCSF form and several in the CSV form.
-- Replaces its target, so it may run again.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
records AS (
  SELECT
    r.record AS record,
    PARSE_JSON(r.record, wide_number_mode => 'round') AS j
  FROM {raw} AS r
),
named AS (
  SELECT
    r.record AS record,
    r.j AS j,
    COALESCE(JSON_VALUE(r.j, '$.metadata.event_code'), JSON_VALUE(r.j, '$.CHECK_ID')) AS check_uid,
    UPPER(COALESCE(JSON_VALUE(r.j, '$.status_code'), JSON_VALUE(r.j, '$.STATUS'))) AS status_code,
    UPPER(COALESCE(JSON_VALUE(r.j, '$.severity'), JSON_VALUE(r.j, '$.SEVERITY'))) AS severity,
    IFNULL(
      TO_JSON_STRING(JSON_QUERY(r.j, '$.unmapped.compliance')), IFNULL(JSON_VALUE(r.j, '$.COMPLIANCE'), '')
    ) AS frameworks,
    SAFE_CAST(JSON_VALUE(r.j, '$.time') AS INT64) AS epoch
  FROM records AS r
),
-- Findings of one check share their frameworks: each of these texts is taken apart once.
mapped AS (
  SELECT
    m.frameworks AS frameworks,
    m.requirements AS requirements,
    ARRAY(SELECT DISTINCT SUBSTR(q, 1, STRPOS(q, '/') - 1) FROM UNNEST(m.requirements) AS q) AS standards
  FROM (
    SELECT
      k.frameworks AS frameworks,
      IF(
        STARTS_WITH(k.frameworks, '{'),
        ARRAY(
          SELECT CONCAT(f, '/', v)
          FROM UNNEST(REGEXP_EXTRACT_ALL(k.frameworks, r'"([^"]+)":\[')) AS f,
            UNNEST(JSON_VALUE_ARRAY(PARSE_JSON(IF(STARTS_WITH(k.frameworks, '{'), k.frameworks, '{}'))[f])) AS v
        ),
        ARRAY(
          SELECT CONCAT(SPLIT(f, ': ')[OFFSET(0)], '/', v)
          FROM UNNEST(SPLIT(k.frameworks, ' | ')) AS f, UNNEST(SPLIT(SUBSTR(f, STRPOS(f, ': ') + 2), ', ')) AS v
          WHERE STRPOS(f, ': ') > 0
        )
      ) AS requirements
    FROM (SELECT DISTINCT i.frameworks AS frameworks FROM named AS i) AS k
  ) AS m
),
matched AS (
  SELECT
    r.*,
    k.requirements,
    k.standards
  FROM named AS r
  JOIN mapped AS k ON k.frameworks = r.frameworks
)
SELECT
  r.check_uid AS check_uid,
  COALESCE(JSON_VALUE(r.j, '$.cloud.account.uid'), JSON_VALUE(r.j, '$.ACCOUNT_UID')) AS account_uid,
  NULLIF(
    COALESCE(
      JSON_VALUE(r.j, '$.cloud.region'), JSON_VALUE(r.j, '$.resources[0].region'), JSON_VALUE(r.j, '$.REGION')
    ),
    ''
  ) AS region,
  COALESCE(
    NULLIF(JSON_VALUE(r.j, '$.resources[0].uid'), ''), NULLIF(JSON_VALUE(r.j, '$.resources[0].name'), ''),
    NULLIF(JSON_VALUE(r.j, '$.RESOURCE_UID'), ''), NULLIF(JSON_VALUE(r.j, '$.RESOURCE_NAME'), '')
  ) AS resource_uid,
  CAST(NULL AS STRING) AS variant,
  CASE r.status_code WHEN 'MANUAL' THEN 'UNKNOWN' WHEN 'INFO' THEN 'UNKNOWN' ELSE r.status_code END AS status,
  r.status_code AS status_code,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.status_detail'), JSON_VALUE(r.j, '$.STATUS_EXTENDED')), '') AS status_detail,
  IF(
    JSON_VALUE(r.j, '$.status') = 'Suppressed' OR JSON_VALUE(r.j, '$.status_id') = '3'
    OR LOWER(JSON_VALUE(r.j, '$.MUTED')) = 'true',
    'MUTED', NULL
  ) AS suppression,
  r.severity AS severity,
  COALESCE(JSON_VALUE(r.j, '$.finding_info.title'), JSON_VALUE(r.j, '$.CHECK_TITLE')) AS title,
  COALESCE(JSON_VALUE(r.j, '$.finding_info.desc'), JSON_VALUE(r.j, '$.DESCRIPTION')) AS description,
  COALESCE(JSON_VALUE(r.j, '$.resources[0].group.name'), JSON_VALUE(r.j, '$.SERVICE_NAME')) AS service,
  ARRAY(SELECT r.check_uid) AS controls,
  r.standards AS standards,
  r.requirements AS requirements,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.cloud.account.name'), JSON_VALUE(r.j, '$.ACCOUNT_NAME')), '') AS account_name,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.cloud.org.uid'), JSON_VALUE(r.j, '$.ACCOUNT_ORGANIZATION_UID')), '')
    AS organization_uid,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.resources[0].cloud_partition'), JSON_VALUE(r.j, '$.PARTITION')), '')
    AS cloud_partition,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.resources[0].name'), JSON_VALUE(r.j, '$.RESOURCE_NAME')), '') AS resource_name,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.resources[0].type'), JSON_VALUE(r.j, '$.RESOURCE_TYPE')), '') AS resource_type,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.remediation.desc'), JSON_VALUE(r.j, '$.REMEDIATION_RECOMMENDATION_TEXT')), '')
    AS remediation,
  ARRAY(
    SELECT f
    FROM UNNEST(ARRAY_CONCAT(
      IFNULL(JSON_VALUE_ARRAY(r.j, '$.remediation.references'), []),
      [
        IFNULL(JSON_VALUE(r.j, '$.REMEDIATION_CODE_CLI'), ''),
        IFNULL(JSON_VALUE(r.j, '$.REMEDIATION_RECOMMENDATION_URL'), '')
      ]
    )) AS f
    WHERE f != ''
  ) AS remediation_references,
  'Prowler' AS product_name,
  'Prowler' AS product_vendor,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.metadata.product.version'), JSON_VALUE(r.j, '$.PROWLER_VERSION')), '')
    AS product_version,
  NULLIF(COALESCE(JSON_VALUE(r.j, '$.finding_info.uid'), JSON_VALUE(r.j, '$.FINDING_UID')), '') AS source_uid,
  COALESCE(
    IF(r.epoch > 100000000000, TIMESTAMP_MILLIS(r.epoch), TIMESTAMP_SECONDS(r.epoch)),
    SAFE_CAST(JSON_VALUE(r.j, '$.time_dt') AS TIMESTAMP),
    SAFE_CAST(JSON_VALUE(r.j, '$.TIMESTAMP') AS TIMESTAMP)
  ) AS observed_at,
  r.record AS raw_data
FROM matched AS r
