-- One row per finding of Security Hub, as an observation (compliance_observation.schema.json).
-- Parameters: none. {raw} is the findings as they came, in ASFF; {target} is the staging table made.
-- A control has one finding per resource where its findings are consolidated, and one per standard where they are not: what
-- generated it tells those apart. Standards are named as the requirements name them (PCI DSS v3.2.1), so that the two agree,
-- though AWS writes their ids otherwise (standards/pci-dss/v/3.2.1).
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
    JSON_VALUE(r.j, '$.Compliance.SecurityControlId') AS control,
    JSON_VALUE(r.j, '$.GeneratorId') AS generator,
    JSON_VALUE(r.j, '$.Resources[0].Id') AS resource_uid,
    JSON_VALUE(r.j, '$.Compliance.Status') AS status_code,
    UPPER(
      COALESCE(JSON_VALUE(r.j, '$.Severity.Label'), JSON_VALUE(r.j, '$.FindingProviderFields.Severity.Label'))
    ) AS severity,
    ARRAY(
      SELECT REGEXP_EXTRACT(JSON_VALUE(s, '$.StandardsId'), r'(?:standards|ruleset)/(.+)$')
      FROM UNNEST(JSON_QUERY_ARRAY(r.j, '$.Compliance.AssociatedStandards')) AS s
    ) AS enabled,
    IFNULL(JSON_VALUE_ARRAY(r.j, '$.Compliance.RelatedRequirements'), []) AS related
  FROM records AS r
),
matched AS (
  SELECT
    n.scope AS scope, n.read_at AS read_at, n.record AS record, n.j AS j, n.control AS control,
    n.generator AS generator, n.resource_uid AS resource_uid, n.status_code AS status_code, n.severity AS severity,
    ARRAY(
      SELECT
        CASE
          WHEN STARTS_WITH(e, 'cis-aws-foundations-benchmark/v/')
            THEN CONCAT('CIS AWS Foundations Benchmark v', SPLIT(e, '/')[OFFSET(2)])
          WHEN STARTS_WITH(e, 'aws-foundational-security-best-practices/v/')
            THEN CONCAT('AWS Foundational Security Best Practices v', SPLIT(e, '/')[OFFSET(2)])
          WHEN STARTS_WITH(e, 'pci-dss/v/') THEN CONCAT('PCI DSS v', SPLIT(e, '/')[OFFSET(2)])
          WHEN STARTS_WITH(e, 'nist-800-53/v/')
            THEN CONCAT('NIST.800-53.r', SPLIT(SPLIT(e, '/')[OFFSET(2)], '.')[OFFSET(0)])
          WHEN STARTS_WITH(e, 'nist-800-171/v/')
            THEN CONCAT('NIST.800-171.r', SPLIT(SPLIT(e, '/')[OFFSET(2)], '.')[OFFSET(0)])
          ELSE REPLACE(e, '/v/', ' v')
        END
      FROM UNNEST(n.enabled) AS e
      WHERE e IS NOT NULL
    ) AS enabled,
    -- "PCI DSS v3.2.1/1.2.1" as it is; "NIST.800-53.r5 AC-3(7)" with its blank as the stroke.
    ARRAY(
      SELECT IF(STRPOS(q, '/') > 0, q, REGEXP_REPLACE(q, r'^(\S+)\s+(.+)$', r'\1/\2'))
      FROM UNNEST(n.related) AS q
      WHERE REGEXP_CONTAINS(q, r'^[^/]+/.+$|^\S+\s+\S')
    ) AS requirements
  FROM named AS n
)
SELECT
  COALESCE(m.control, m.generator) AS check_uid,
  JSON_VALUE(m.j, '$.AwsAccountId') AS account_uid,
  COALESCE(JSON_VALUE(m.j, '$.Region'), m.scope) AS region,
  m.resource_uid AS resource_uid,
  IF(m.control IS NULL OR STARTS_WITH(m.generator, 'security-control/'), NULL, m.generator) AS variant,
  CASE m.status_code
    WHEN 'PASSED' THEN 'PASS'
    WHEN 'FAILED' THEN 'FAIL'
    WHEN 'NOT_AVAILABLE' THEN 'UNKNOWN'
    ELSE m.status_code
  END AS status,
  m.status_code AS status_code,
  NULLIF(
    ARRAY_TO_STRING(
      ARRAY(
        SELECT COALESCE(JSON_VALUE(s, '$.Description'), JSON_VALUE(s, '$.ReasonCode'))
        FROM UNNEST(JSON_QUERY_ARRAY(m.j, '$.Compliance.StatusReasons')) AS s
      ),
      ' '
    ),
    ''
  ) AS status_detail,
  IF(JSON_VALUE(m.j, '$.Workflow.Status') = 'SUPPRESSED', 'MUTED', NULL) AS suppression,
  IFNULL(m.severity, 'UNKNOWN') AS severity,
  JSON_VALUE(m.j, '$.Title') AS title,
  JSON_VALUE(m.j, '$.Description') AS description,
  LOWER(REGEXP_EXTRACT(m.control, r'^([A-Za-z0-9]+)\.')) AS service,
  ARRAY(SELECT COALESCE(m.control, m.generator)) AS controls,
  ARRAY_CONCAT(
    m.enabled, ARRAY(SELECT REGEXP_EXTRACT(q, r'^([^/]+)/') FROM UNNEST(m.requirements) AS q)
  ) AS standards,
  m.requirements AS requirements,
  JSON_VALUE(m.j, '$.AwsAccountName') AS account_name,
  CAST(NULL AS STRING) AS organization_uid,
  SPLIT(JSON_VALUE(m.j, '$.ProductArn'), ':')[SAFE_OFFSET(1)] AS cloud_partition,
  REGEXP_EXTRACT(m.resource_uid, r'([^:/]+)$') AS resource_name,
  JSON_VALUE(m.j, '$.Resources[0].Type') AS resource_type,
  JSON_VALUE(m.j, '$.Remediation.Recommendation.Text') AS remediation,
  ARRAY(
    SELECT u FROM UNNEST([JSON_VALUE(m.j, '$.Remediation.Recommendation.Url')]) AS u WHERE u IS NOT NULL
  ) AS remediation_references,
  COALESCE(JSON_VALUE(m.j, '$.ProductName'), 'Security Hub') AS product_name,
  COALESCE(JSON_VALUE(m.j, '$.CompanyName'), 'AWS') AS product_vendor,
  CAST(NULL AS STRING) AS product_version,
  JSON_VALUE(m.j, '$.Id') AS source_uid,
  COALESCE(
    SAFE_CAST(JSON_VALUE(m.j, '$.LastObservedAt') AS TIMESTAMP),
    SAFE_CAST(JSON_VALUE(m.j, '$.UpdatedAt') AS TIMESTAMP),
    m.read_at
  ) AS observed_at,
  m.record AS raw_data
FROM matched AS m
