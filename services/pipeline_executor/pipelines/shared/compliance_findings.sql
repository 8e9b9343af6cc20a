-- One row per finding of a scan: the observations ({observations}, columns as in compliance_observation.schema.json) with
-- their identity, their state and a hash of what matters. {target} is the staging table made.
-- Parameters: @provider, @template STRING.
-- The identity is made of what stays the same from scan to scan. Azure writes one resource's id in varying letter case. Where a
-- source has several records of one finding the worst stands: what fails before what passes, what counts before what does
-- not. A muted or exempt finding is neither open nor passed, whatever its check says.
-- Replaces its target, so it may run again.
CREATE OR REPLACE TABLE {target}
OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 24 HOUR))
AS
WITH
keyed AS (
  SELECT
    o.*,
    TO_JSON_STRING(STRUCT(o.controls AS controls, o.standards AS standards, o.requirements AS requirements)) AS lists
  FROM {observations} AS o
),
-- Findings of one check share their lists: each of these is sorted once.
sorted AS (
  SELECT
    k.lists AS lists,
    ARRAY(SELECT DISTINCT v FROM UNNEST(JSON_VALUE_ARRAY(k.lists, '$.controls')) AS v ORDER BY v) AS controls,
    ARRAY(SELECT DISTINCT v FROM UNNEST(JSON_VALUE_ARRAY(k.lists, '$.standards')) AS v ORDER BY v) AS standards,
    ARRAY(SELECT DISTINCT v FROM UNNEST(JSON_VALUE_ARRAY(k.lists, '$.requirements')) AS v ORDER BY v) AS requirements
  FROM (SELECT DISTINCT i.lists AS lists FROM keyed AS i) AS k
),
identified AS (
  SELECT
    o.* EXCEPT (controls, standards, requirements, lists),
    TO_HEX(SHA256(TO_JSON_STRING([
      @provider, @template, IFNULL(o.check_uid, ''), IFNULL(o.account_uid, ''), IFNULL(o.region, ''),
      IF(@provider = 'azure', LOWER(IFNULL(o.resource_uid, '')), IFNULL(o.resource_uid, '')), IFNULL(o.variant, '')
    ]))) AS finding_uid,
    k.controls, k.standards, k.requirements
  FROM keyed AS o
  JOIN sorted AS k ON k.lists = o.lists
)
SELECT
  s.finding_uid AS finding_uid,
  CASE
    WHEN s.suppression IS NOT NULL THEN s.suppression
    WHEN s.status = 'FAIL' THEN 'OPEN'
    WHEN s.status = 'PASS' THEN 'PASSED'
    ELSE 'UNDECIDED'
  END AS state,
  TO_HEX(MD5(TO_JSON_STRING([
    IFNULL(s.status, ''), IFNULL(s.status_code, ''), IFNULL(s.suppression, ''), IFNULL(s.severity, ''),
    TO_JSON_STRING(s.standards), TO_JSON_STRING(s.requirements)
  ]))) AS fingerprint,
  s.status AS status,
  s.status_code AS status_code,
  s.status_detail AS status_detail,
  s.suppression AS suppression,
  s.severity AS severity,
  s.check_uid AS check_uid,
  s.title AS title,
  s.description AS description,
  s.service AS service,
  s.controls AS controls,
  s.standards AS standards,
  s.requirements AS requirements,
  s.account_uid AS account_uid,
  s.account_name AS account_name,
  s.organization_uid AS organization_uid,
  s.cloud_partition AS cloud_partition,
  s.region AS region,
  s.resource_uid AS resource_uid,
  s.resource_name AS resource_name,
  s.resource_type AS resource_type,
  s.variant AS variant,
  s.remediation AS remediation,
  s.remediation_references AS remediation_references,
  s.product_name AS product_name,
  s.product_vendor AS product_vendor,
  s.product_version AS product_version,
  s.source_uid AS source_uid,
  s.observed_at AS observed_at,
  PARSE_JSON(s.raw_data, wide_number_mode => 'round') AS raw_data
FROM identified AS s
WHERE TRUE
QUALIFY ROW_NUMBER() OVER (
  PARTITION BY s.finding_uid
  ORDER BY
    s.suppression IS NULL DESC,
    CASE s.status WHEN 'FAIL' THEN 0 WHEN 'WARNING' THEN 1 WHEN 'UNKNOWN' THEN 2 WHEN 'PASS' THEN 3 ELSE 4 END,
    CASE s.severity
      WHEN 'FATAL' THEN 0 WHEN 'CRITICAL' THEN 1 WHEN 'HIGH' THEN 2 WHEN 'MEDIUM' THEN 3 WHEN 'LOW' THEN 4
      WHEN 'INFORMATIONAL' THEN 5 ELSE 6
    END,
    s.raw_data
) = 1
