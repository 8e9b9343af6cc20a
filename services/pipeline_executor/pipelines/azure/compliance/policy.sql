-- One row per newest state of a resource under a policy, as an observation (compliance_observation.schema.json).
-- Parameters: none. {raw} is the states as they came; {target} is the staging table made.
-- One definition may be assigned more than once, and stand more than once in an initiative: assignment and reference tell those
-- apart. An exempt state says nothing of what the policy would say. Policy knows no severity. Initiatives are the standards,
-- and their groups the requirements.
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
    JSON_VALUE(r.j, '$.complianceState') AS status_code,
    COALESCE(
      NULLIF(JSON_VALUE(r.j, '$.policyDefinitionName'), ''),
      REGEXP_EXTRACT(JSON_VALUE(r.j, '$.policyDefinitionId'), r'([^/]+)$')
    ) AS check_uid,
    NULLIF(JSON_VALUE(r.j, '$.policyDefinitionReferenceId'), '') AS reference,
    COALESCE(
      NULLIF(JSON_VALUE(r.j, '$.policySetDefinitionName'), ''),
      REGEXP_EXTRACT(JSON_VALUE(r.j, '$.policySetDefinitionId'), r'([^/]+)$')
    ) AS initiative,
    IFNULL(JSON_VALUE_ARRAY(r.j, '$.policyDefinitionGroupNames'), []) AS policy_groups,
    JSON_VALUE(r.j, '$.resourceId') AS resource_uid,
    NULLIF(JSON_VALUE(r.j, '$.resourceType'), '') AS resource_type
  FROM records AS r
)
SELECT
  n.check_uid AS check_uid,
  LOWER(COALESCE(NULLIF(JSON_VALUE(n.j, '$.subscriptionId'), ''), n.scope)) AS account_uid,
  NULLIF(JSON_VALUE(n.j, '$.resourceLocation'), '') AS region,
  n.resource_uid AS resource_uid,
  LOWER(CONCAT(IFNULL(JSON_VALUE(n.j, '$.policyAssignmentId'), ''), '|', IFNULL(n.reference, ''))) AS variant,
  CASE LOWER(n.status_code)
    WHEN 'compliant' THEN 'PASS'
    WHEN 'noncompliant' THEN 'FAIL'
    WHEN 'exempt' THEN 'WARNING'
    WHEN 'conflict' THEN 'WARNING'
    WHEN 'conflicting' THEN 'WARNING'
    WHEN 'unknown' THEN 'UNKNOWN'
    WHEN 'error' THEN 'UNKNOWN'
    WHEN 'notstarted' THEN 'UNKNOWN'
    WHEN 'protected' THEN 'UNKNOWN'
    ELSE n.status_code
  END AS status,
  n.status_code AS status_code,
  NULLIF(JSON_VALUE(n.j, '$.complianceReasonCode'), '') AS status_detail,
  IF(LOWER(n.status_code) = 'exempt', 'EXEMPT', NULL) AS suppression,
  'UNKNOWN' AS severity,
  COALESCE(n.reference, n.check_uid) AS title,
  NULLIF(JSON_VALUE(n.j, '$.policyDefinitionCategory'), '') AS description,
  SPLIT(n.resource_type, '/')[SAFE_OFFSET(0)] AS service,
  ARRAY_CONCAT(ARRAY(SELECT n.check_uid), n.policy_groups) AS controls,
  ARRAY(SELECT i FROM UNNEST([n.initiative]) AS i WHERE i IS NOT NULL) AS standards,
  ARRAY(
    SELECT CONCAT(n.initiative, '/', g) FROM UNNEST(n.policy_groups) AS g WHERE n.initiative IS NOT NULL
  ) AS requirements,
  CAST(NULL AS STRING) AS account_name,
  CAST(NULL AS STRING) AS organization_uid,
  'AzureCloud' AS cloud_partition,
  REGEXP_EXTRACT(n.resource_uid, r'([^/]+)$') AS resource_name,
  n.resource_type AS resource_type,
  CAST(NULL AS STRING) AS remediation,
  ARRAY(SELECT s FROM UNNEST(['']) AS s WHERE s != '') AS remediation_references,
  'Azure Policy' AS product_name,
  'Microsoft' AS product_vendor,
  CAST(NULL AS STRING) AS product_version,
  CAST(NULL AS STRING) AS source_uid,
  COALESCE(
    SAFE_CAST(REGEXP_REPLACE(JSON_VALUE(n.j, '$.timestamp'), r'(\.[0-9]{6})[0-9]+', r'\1') AS TIMESTAMP), n.read_at
  ) AS observed_at,
  n.record AS raw_data
FROM named AS n
