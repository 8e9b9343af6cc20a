-- Result: none; affects one row per schedule of the tenants that was not deleted.
-- Parameters: @tenant_ids ARRAY<STRING>; @now TIMESTAMP.
-- Safe to run twice: the second time all are deleted.
UPDATE tenant_pipeline_configs AS c
SET
  version = c.version + 1,
  is_active = FALSE,
  next_run_time = NULL,
  deleted_at = @now,
  updated_at = @now
WHERE c.tenant_id IN UNNEST(@tenant_ids) AND c.deleted_at IS NULL
