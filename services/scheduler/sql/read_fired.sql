-- Result: one row per schedule that a batch advanced.
-- Parameters: @change_id STRING, the batch's id.
-- Safe to run twice: it only reads.
SELECT c.config_id AS config_id
FROM tenant_pipeline_configs AS c
WHERE c.change_id = @change_id
