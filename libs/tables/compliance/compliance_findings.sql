-- A view: one row per compliance finding of all providers as it is now, in the flattened columns of OCSF 1.8.0, class 2003
-- (Compliance Finding, profiles cloud and datetime); ocsf is the whole event, raw_data the source's own record.
-- Parameters: none. How it came to be so is in compliance_history; valid_to prunes the partitions. It only reads.
-- activity_id: 1 Create while nothing has changed, 2 Update, 3 Close. status_id: 1 New, 3 Suppressed (muted, exempt), 4 Resolved
-- (passed, vanished), 0 Unknown (not decided). compliance.status_id: 1 Pass, 2 Warning, 3 Fail, 0 Unknown.
WITH
scans AS (
  SELECT
    n.provider AS provider, n.source AS source, n.account_uid AS account_uid, n.region AS region,
    MAX(n.scan_date) AS scan_date
  FROM {compliance_scans} AS n
  GROUP BY 1, 2, 3, 4
),
events AS (
  SELECT
    h.*,
    IFNULL(h.last_seen, GREATEST(h.valid_from, IFNULL(n.scan_date, h.valid_from))) AS seen,
    CASE WHEN h.state = 'CLOSED' THEN 3 WHEN h.change = 'NEW' THEN 1 ELSE 2 END AS activity,
    CASE h.severity
      WHEN 'INFORMATIONAL' THEN 1 WHEN 'LOW' THEN 2 WHEN 'MEDIUM' THEN 3 WHEN 'HIGH' THEN 4 WHEN 'CRITICAL' THEN 5
      WHEN 'FATAL' THEN 6 ELSE 0
    END AS severity_number,
    CASE h.state
      WHEN 'OPEN' THEN 1 WHEN 'MUTED' THEN 3 WHEN 'EXEMPT' THEN 3 WHEN 'PASSED' THEN 4 WHEN 'CLOSED' THEN 4 ELSE 0
    END AS status_number,
    CASE h.status WHEN 'PASS' THEN 1 WHEN 'WARNING' THEN 2 WHEN 'FAIL' THEN 3 ELSE 0 END AS result_number
  FROM {compliance_history} AS h
  LEFT JOIN scans AS n
    ON n.provider = h.provider
    AND n.source = h.source
    AND n.account_uid = h.account_uid
    AND n.region = IFNULL(h.region, '')
  WHERE h.valid_to = DATE '9999-12-31'
),
named AS (
  SELECT
    h.*,
    CASE h.activity WHEN 1 THEN 'Create' WHEN 2 THEN 'Update' ELSE 'Close' END AS activity_word,
    INITCAP(h.severity) AS severity_word,
    CASE h.status_number WHEN 1 THEN 'New' WHEN 3 THEN 'Suppressed' WHEN 4 THEN 'Resolved' ELSE 'Unknown' END
      AS status_word,
    CASE h.result_number WHEN 1 THEN 'Pass' WHEN 2 THEN 'Warning' WHEN 3 THEN 'Fail' ELSE 'Unknown' END AS result_word
  FROM events AS h
)
SELECT
  h.finding_uid AS finding_info_uid,
  2 AS category_uid,
  2003 AS class_uid,
  200300 + h.activity AS type_uid,
  h.activity AS activity_id,
  h.activity_word AS activity_name,
  h.observed_at AS time,
  h.severity_number AS severity_id,
  h.severity_word AS severity,
  h.status_number AS status_id,
  h.status_word AS status,
  h.status_detail AS message,
  h.title AS finding_info_title,
  h.description AS finding_info_desc,
  h.source_uid AS finding_info_uid_alt,
  h.check_uid AS compliance_check_uid,
  h.controls AS compliance_controls,
  h.standards AS compliance_standards,
  h.requirements AS compliance_requirements,
  h.result_number AS compliance_status_id,
  h.result_word AS compliance_status,
  h.status_code AS compliance_status_code,
  h.provider AS cloud_provider,
  h.account_uid AS cloud_account_uid,
  h.account_name AS cloud_account_name,
  h.organization_uid AS cloud_org_uid,
  h.cloud_partition AS cloud_partition,
  h.region AS cloud_region,
  h.resource_uid AS resource_uid,
  h.resource_name AS resource_name,
  h.resource_type AS resource_type,
  h.service AS resource_group_name,
  h.variant AS variant,
  h.remediation AS remediation_desc,
  h.remediation_references AS remediation_references,
  h.product_name AS metadata_product_name,
  h.product_vendor AS metadata_product_vendor_name,
  h.product_version AS metadata_product_version,
  '1.8.0' AS metadata_version,
  h.source AS source,
  h.state AS state,
  h.change AS last_change,
  h.previous_state AS previous_state,
  h.suppression AS suppression,
  h.first_seen AS first_seen,
  h.seen AS last_seen,
  h.valid_from AS changed_at,
  h.opened_at AS opened_at,
  h.closed_at AS closed_at,
  h.closed_reason AS closed_reason,
  h.reopened_at AS reopened_at,
  h.reopen_count AS reopen_count,
  h.pipeline_logging_id AS pipeline_logging_id,
  h.raw_data AS raw_data,
  JSON_STRIP_NULLS(TO_JSON(STRUCT(
    h.activity AS activity_id,
    h.activity_word AS activity_name,
    2 AS category_uid,
    'Findings' AS category_name,
    2003 AS class_uid,
    'Compliance Finding' AS class_name,
    200300 + h.activity AS type_uid,
    CONCAT('Compliance Finding: ', h.activity_word) AS type_name,
    h.severity_number AS severity_id,
    h.severity_word AS severity,
    h.status_number AS status_id,
    h.status_word AS status,
    UNIX_MILLIS(h.observed_at) AS time,
    FORMAT_TIMESTAMP('%Y-%m-%dT%H:%M:%E6SZ', h.observed_at) AS time_dt,
    h.status_detail AS message,
    h.closed_reason AS comment,
    STRUCT(
      '1.8.0' AS version,
      ['cloud', 'datetime'] AS profiles,
      h.check_uid AS event_code,
      STRUCT(
        h.product_name AS name, h.product_vendor AS vendor_name, h.product_version AS version
      ) AS product
    ) AS metadata,
    STRUCT(
      h.finding_uid AS uid,
      h.source_uid AS uid_alt,
      h.title AS title,
      h.description AS `desc`,
      UNIX_MILLIS(TIMESTAMP(h.first_seen)) AS created_time,
      UNIX_MILLIS(TIMESTAMP(h.valid_from)) AS modified_time,
      UNIX_MILLIS(TIMESTAMP(h.first_seen)) AS first_seen_time,
      UNIX_MILLIS(TIMESTAMP(h.seen)) AS last_seen_time,
      FORMAT_TIMESTAMP('%Y-%m-%dT%H:%M:%E6SZ', TIMESTAMP(h.first_seen)) AS first_seen_time_dt,
      FORMAT_TIMESTAMP('%Y-%m-%dT%H:%M:%E6SZ', TIMESTAMP(h.seen)) AS last_seen_time_dt
    ) AS finding_info,
    STRUCT(
      IFNULL(h.controls[SAFE_OFFSET(0)], h.check_uid) AS control,
      h.standards AS standards,
      h.requirements AS requirements,
      h.result_number AS status_id,
      h.result_word AS status,
      h.status_code AS status_code,
      IF(h.status_detail IS NULL, [], [h.status_detail]) AS status_details,
      [STRUCT(
        h.check_uid AS uid, IFNULL(h.title, h.check_uid) AS name, h.severity_number AS severity_id,
        h.result_number AS status_id, h.standards AS standards
      )] AS checks
    ) AS compliance,
    STRUCT(
      h.provider AS provider,
      h.region AS region,
      h.cloud_partition AS cloud_partition,
      STRUCT(h.account_uid AS uid, h.account_name AS name) AS account,
      IF(h.organization_uid IS NULL, NULL, STRUCT(h.organization_uid AS uid)) AS org
    ) AS cloud,
    [JSON_STRIP_NULLS(TO_JSON(STRUCT(
      h.resource_uid AS uid,
      h.resource_name AS name,
      h.resource_type AS type,
      h.region AS region,
      h.cloud_partition AS cloud_partition,
      IF(h.service IS NULL, NULL, STRUCT(h.service AS name)) AS `group`
    )))] AS resources,
    IF(
      h.remediation IS NULL, NULL, STRUCT(h.remediation AS `desc`, h.remediation_references AS references)
    ) AS remediation,
    TO_JSON_STRING(h.raw_data) AS raw_data
  ))) AS ocsf
FROM named AS h
