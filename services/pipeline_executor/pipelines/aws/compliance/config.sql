-- One row per evaluation of a resource by a rule of AWS Config, as an observation (compliance_observation.schema.json).
-- Parameters: none. {raw} is the evaluations as they came, each with its rule; {target} is the staging table made.
-- Config knows no severity and no standards. Account and region are the rule's own. An id is unique among the resources of a
-- type only, so the type tells them apart.
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
    JSON_VALUE(r.j, '$.ConfigRule.ConfigRuleName') AS check_uid,
    JSON_VALUE(r.j, '$.ConfigRule.Source.SourceIdentifier') AS identifier,
    SPLIT(JSON_VALUE(r.j, '$.ConfigRule.ConfigRuleArn'), ':') AS arn,
    JSON_VALUE(r.j, '$.EvaluationResult.ComplianceType') AS status_code,
    JSON_VALUE(r.j, '$.EvaluationResult.EvaluationResultIdentifier.EvaluationResultQualifier.ResourceType')
      AS resource_type,
    JSON_VALUE(r.j, '$.EvaluationResult.EvaluationResultIdentifier.EvaluationResultQualifier.ResourceId')
      AS resource_uid,
    SAFE_CAST(JSON_VALUE(r.j, '$.EvaluationResult.ResultRecordedTime') AS FLOAT64) AS epoch
  FROM records AS r
)
SELECT
  n.check_uid AS check_uid,
  n.arn[SAFE_OFFSET(4)] AS account_uid,
  n.scope AS region,
  n.resource_uid AS resource_uid,
  n.resource_type AS variant,
  CASE n.status_code
    WHEN 'COMPLIANT' THEN 'PASS'
    WHEN 'NON_COMPLIANT' THEN 'FAIL'
    WHEN 'NOT_APPLICABLE' THEN 'UNKNOWN'
    WHEN 'INSUFFICIENT_DATA' THEN 'UNKNOWN'
    ELSE n.status_code
  END AS status,
  n.status_code AS status_code,
  JSON_VALUE(n.j, '$.EvaluationResult.Annotation') AS status_detail,
  CAST(NULL AS STRING) AS suppression,
  'UNKNOWN' AS severity,
  n.check_uid AS title,
  JSON_VALUE(n.j, '$.ConfigRule.Description') AS description,
  LOWER(SPLIT(n.resource_type, '::')[SAFE_OFFSET(1)]) AS service,
  ARRAY(SELECT c FROM UNNEST([n.check_uid, n.identifier]) AS c WHERE c IS NOT NULL) AS controls,
  ARRAY(SELECT s FROM UNNEST(['']) AS s WHERE s != '') AS standards,
  ARRAY(SELECT s FROM UNNEST(['']) AS s WHERE s != '') AS requirements,
  CAST(NULL AS STRING) AS account_name,
  CAST(NULL AS STRING) AS organization_uid,
  n.arn[SAFE_OFFSET(1)] AS cloud_partition,
  n.resource_uid AS resource_name,
  n.resource_type AS resource_type,
  CAST(NULL AS STRING) AS remediation,
  ARRAY(SELECT s FROM UNNEST(['']) AS s WHERE s != '') AS remediation_references,
  'AWS Config' AS product_name,
  'AWS' AS product_vendor,
  CAST(NULL AS STRING) AS product_version,
  CONCAT(
    JSON_VALUE(n.j, '$.ConfigRule.ConfigRuleArn'), '/', IFNULL(n.resource_type, ''), '/', IFNULL(n.resource_uid, '')
  ) AS source_uid,
  COALESCE(TIMESTAMP_MILLIS(CAST(n.epoch * 1000 AS INT64)), n.read_at) AS observed_at,
  n.record AS raw_data
FROM named AS n
