"""Shows that the checks of ``invariants`` check: harms the tables in each way they look for, and has each found.

Done when everything else is over and was found right, so whatever is found is what was planted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from google.cloud import bigquery

from tests.chaos import invariants
from tests.chaos.invariants import Sampler
from tests.chaos.load import Customer
from tests.chaos.source import Source
from tests.support.stack import Stack


@dataclass(frozen=True, slots=True)
class Harm:
    """One statement against the tables, and words of the finding that must follow."""

    sql: str
    says: str
    dataset: str = "tenants"


def found(stack: Stack, customers: Sequence[Customer], source: Source, sampler: Sampler) -> tuple[int, list[str]]:
    """How many harms were planted, and those that the checks did not see."""
    victim = max(customers, key=lambda each: sum(run.acknowledged for run in each.runs.values()))
    client = stack.bigquery()
    try:
        sampler.look(client, victim.tenant_id)
        planted = [harm for harm in _harms(client, victim) if _plant(client, harm)]
        sampler.wrong.clear()
        sampler.quotas(client)
        sampler.look(client, victim.tenant_id)
    finally:
        client.close()
    seen = sampler.wrong + invariants.tables(stack, customers, source, Counter())
    return len(planted), [harm.says for harm in planted if not any(harm.says in text for text in seen)]


def _plant(client: bigquery.Client, harm: Harm) -> bool:
    """True if there was a row to harm."""
    config = bigquery.QueryJobConfig(default_dataset=f"{client.project}.{harm.dataset}")
    job = client.query(harm.sql, job_config=config, retry=None, job_retry=None)
    job.result()
    return bool(job.num_dml_affected_rows)


def _harms(client: bigquery.Client, victim: Customer) -> list[Harm]:
    tenant = victim.tenant_id
    asked = [run.run_id for run in victim.runs.values() if run.acknowledged and run.final]
    lost, changed = (asked * 2)[:2] if asked else ("", "")
    kept = min(victim.keys, default="")
    of_tenant = f"tenant_id = '{tenant}'"
    a_run = f"SELECT MIN(s.run_id) FROM scheduled_pipeline_runs AS s WHERE s.{of_tenant}"
    dates = invariants.read(client, "SELECT DISTINCT usage_date AS d FROM gcp_cost_billing ORDER BY 1", tenant)
    first, last = (str(dates[n]["d"]) for n in (0, -1)) if dates else ("2000-01-01", "2000-01-01")
    grants = ", ".join(
        f'{{"run_id": "r{n}", "attempt": 1, "owner": "", "day": "2000-01-01", "until": "2999-01-01T00:00:00Z", '
        f'"state": "LIVE"}}'
        for n in range(40)
    )
    return [
        Harm(
            f"DELETE FROM x_meta_pipeline_runs WHERE pipeline_logging_id = '{lost}'",
            f"run {lost} of {tenant} was acknowledged and has no row",
            tenant,
        ),
        Harm(
            f"UPDATE x_meta_pipeline_runs SET status = 'RUNNING' WHERE pipeline_logging_id = '{changed}'",
            f"I4: attempt ('{changed}', 1) of {tenant} was",
            tenant,
        ),
        Harm(
            f"UPDATE gcp_cost_billing SET cost = cost + NUMERIC '0.000001' WHERE usage_date = DATE '{first}'",
            f"I7: {tenant} {first} holds",
            tenant,
        ),
        Harm(
            f"DELETE FROM focus_cost_and_usage WHERE x_ChargeDate = DATE '{last}'", f"I7: {tenant} has in FOCUS", tenant
        ),
        Harm(
            "INSERT INTO x_meta_step_logs (pipeline_logging_id, attempt, tenant_id, step, status, start_time) "
            f"SELECT 'twice', 1, '{tenant}', 'extract', 'COMPLETED', CURRENT_TIMESTAMP() FROM UNNEST([1, 2]) AS n",
            f"I1: {tenant}.x_meta_step_logs has 2 rows",
            tenant,
        ),
        Harm(
            f"UPDATE tenant_usage_quotas SET grants = '[{grants}]' WHERE {of_tenant}",
            f"I2: {tenant} has 40 live leases",
        ),
        Harm(
            f"UPDATE tenant_usage_quotas SET pipelines_run_today = 1000 WHERE {of_tenant}",
            f"I3: {tenant} counts 1000",
        ),
        Harm(
            "INSERT INTO scheduled_pipeline_runs SELECT s.* REPLACE ('again' AS run_id) "
            f"FROM scheduled_pipeline_runs AS s, UNNEST([1, 2]) AS n WHERE s.run_id = ({a_run})",
            "I1: scheduled_pipeline_runs has 2 rows of {'run_id': 'again'",
        ),
        Harm(
            f"UPDATE scheduled_pipeline_runs SET retry_count = max_retries + 1 WHERE run_id = ({a_run})",
            "I10: run ",
        ),
        Harm(
            "UPDATE tenant_pipeline_configs SET next_run_time = TIMESTAMP '2020-01-01 00:00:00+00' "
            f"WHERE {of_tenant} AND is_active",
            "I6: schedule",
        ),
        Harm(
            "INSERT INTO pipeline_execution_queue (run_id, tenant_id, version, state, priority, rank_at, serial_id, "
            "retry_count, max_retries, refusals, attempt, not_before, expires_at, `trigger`, provider, domain, "
            "template, scheduled_for, start_date, end_date, enqueued_at, created_at, updated_at) "
            "SELECT 'left', s.tenant_id, 1, 'QUEUED', 1, s.created_at, 'left', 0, 1, 0, 1, s.created_at, s.created_at, "
            "s.`trigger`, s.provider, s.domain, s.template, s.scheduled_for, s.start_date, s.end_date, s.created_at, "
            f"s.created_at, s.updated_at FROM scheduled_pipeline_runs AS s WHERE s.run_id = ({a_run}) LIMIT 1",
            "I5, I9: run left is left in the queue",
        ),
        Harm(f"DELETE FROM tenant_cloud_credentials WHERE {of_tenant}", f"{tenant} has credentials []"),
        Harm(
            f"UPDATE tenant_api_keys SET state = 'REVOKED' WHERE {of_tenant} AND api_key_id = '{kept}'",
            f"keys of {tenant} were acknowledged",
        ),
    ]
