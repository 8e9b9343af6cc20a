"""Starts runs when they are due.

Owns ``tenants.tenant_pipeline_configs``, ``scheduled_pipeline_runs``, ``pipeline_execution_queue`` and the backfills.
Promises that every due occurrence runs once, fairly, or is visibly skipped. It executes nothing itself (that is the
executor's) and counts no quota (that is tenant's).
"""
