"""Schedules of several tenants over REST, driven by the three console commands as the CronJobs run them.

The sample export has data on one past date only, so a scheduled run (yesterday's) ends well with NO_DATA, and a
backfill over that date brings the rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import ROOT, Stack, Tenant, source_totals

DATE = "2025-11-17"
COUNT = 3
SCHEDULE = {
    "provider": "GCP",
    "domain": "cost",
    "template": "billing",
    "cron": "0 * * * *",
    "timezone": "Europe/Berlin",
}


def job(stack: Stack, name: str, *arguments: str) -> dict[str, Any]:
    """Runs a console command as its CronJob would; the one line it logs."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'protos/gen'}",
        "CONVERGENCE_SCHEDULER_ADDRESS": stack.now().processes["scheduler"]["address"],
        "CONVERGENCE_PEERS_DIR": str(Path(stack.data_dir) / "peers"),
    }
    script = Path(sys.executable).parent / f"convergence-{name}"
    done = subprocess.run(
        [script, *arguments], env=env, cwd=stack.data_dir, capture_output=True, text=True, timeout=320, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = done.stdout.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


@pytest.fixture(scope="module")
def tenants(stack: Stack) -> list[Tenant]:
    def go(_number: int) -> Tenant:
        tenant = stack.onboard(plan="PROFESSIONAL")
        tenant.store_credential()
        return tenant

    with ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(go, range(COUNT)))


def create(tenant: Tenant, **values: Any) -> dict[str, Any]:
    return tenant.call("POST", f"/scheduler/customer/{tenant.tenant_id}/pipelines", {**SCHEDULE, **values})


def make_due(stack: Stack, config_ids: list[str]) -> None:
    """An hour passes for these schedules."""
    ids = ", ".join(f"'{config_id}'" for config_id in config_ids)
    client = stack.bigquery()
    client.query_and_wait(
        "UPDATE tenants.tenant_pipeline_configs SET next_run_time = TIMESTAMP_SUB(next_run_time, INTERVAL 1 HOUR) "
        f"WHERE config_id IN ({ids})"
    )
    client.close()


def test_schedules_of_several_tenants_run_once_each(stack: Stack, tenants: list[Tenant]) -> None:
    made = {create(tenant)["config_id"]: tenant for tenant in tenants for _ in range(2)}
    paused = create(tenants[0], is_active=False)
    assert job(stack, "trigger")["job"] == "trigger"
    make_due(stack, list(made))
    # Twice at once, as a CronJob may: each occurrence is one run.
    with ThreadPoolExecutor(2) as pool:
        lines = list(pool.map(lambda _: job(stack, "trigger"), range(2)))
    assert sum(line["queued_count"] for line in lines) >= len(made)
    done = job(stack, "process-queue", "--time-budget-seconds", "200")
    assert (done["running_count"], done["queued_count"], done["dead_letter_count"]) == (0, 0, 0), done
    for config_id, tenant in made.items():
        path = f"/scheduler/customer/{tenant.tenant_id}/pipelines/{config_id}"
        [run] = tenant.call("GET", f"{path}/runs")["runs"]
        assert (run["state"], run["reason"], run["tenant_id"]) == ("COMPLETED", "NO_DATA", tenant.tenant_id)
        seen = tenant.read_run(run["run_id"])
        assert (seen["status"], seen["trigger"], seen.get("user_id")) == ("COMPLETED", "SCHEDULED", None)
        schedule = tenant.call("GET", path)
        assert schedule["next_run_times"][0] == schedule["next_run_time"] and len(schedule["next_run_times"]) == 10
    rows = stack.rows(
        "SELECT config_id, COUNT(*) AS n FROM scheduled_pipeline_runs GROUP BY config_id", dataset="tenants"
    )
    counts = {row["config_id"]: row["n"] for row in rows}
    assert {config_id: counts.get(config_id) for config_id in made} == dict.fromkeys(made, 1)
    assert paused["config_id"] not in counts


def test_a_backfill_brings_the_data(stack: Stack, tenants: list[Tenant]) -> None:
    tenant = tenants[1]
    path = f"/scheduler/customer/{tenant.tenant_id}/backfills"
    body = {key: SCHEDULE[key] for key in ("provider", "domain", "template")}
    made = tenant.call("POST", path, {**body, "start_date": DATE, "end_date": DATE})
    assert (made["state"], made["total_count"]) == ("RUNNING", 1)
    job(stack, "process-queue", "--time-budget-seconds", "120")
    seen = tenant.call("GET", f"{path}/{made['backfill_id']}")
    assert (seen["state"], seen["completed_count"]) == ("COMPLETED", 1), seen
    source = stack.sample_credential["source"]
    expected = source_totals(stack, source["project_id"], source["dataset_id"], source["table_id"], DATE)
    assert tenant.totals(DATE) == expected


def test_a_run_that_cannot_start_is_a_dead_letter_with_its_reason(stack: Stack) -> None:
    tenant = stack.onboard()
    made = create(tenant)
    path = f"/scheduler/customer/{tenant.tenant_id}/pipelines/{made['config_id']}"
    run = tenant.call("POST", f"{path}:run")
    job(stack, "process-queue", "--time-budget-seconds", "60")
    [seen] = tenant.call("GET", f"{path}/runs")["runs"]
    assert (seen["state"], seen["run_id"]) == ("DEAD_LETTER", run["run_id"]) and seen["reason"] and seen["error"]
    tenant.store_credential()
    with stack.admin() as http:
        letters = http.get("/api/v1/scheduler/dead-letters").json()["runs"]
        assert run["run_id"] in {letter["run_id"] for letter in letters}
        assert http.post(f"/api/v1/scheduler/dead-letters/{run['run_id']}:requeue").json()["state"] == "QUEUED"
    job(stack, "process-queue", "--time-budget-seconds", "120")
    [seen] = tenant.call("GET", f"{path}/runs")["runs"]
    assert seen["state"] == "COMPLETED", seen


def test_the_admin_sees_a_healthy_scheduler_and_a_tenant_sees_none_of_it(stack: Stack, tenants: list[Tenant]) -> None:
    line = job(stack, "reset-daily-quotas")
    assert line["event"] == "job_done" and line["reset_count"] >= 0
    with stack.admin() as http:
        status = http.get("/api/v1/scheduler/status").json()
        assert {call["job"] for call in status["jobs"]} == {"trigger", "process-queue", "reset-daily-quotas"}
        assert {call["outcome"] for call in status["jobs"]} == {"OK"}
        invariants = http.get("/api/v1/scheduler/invariants").json()
        assert invariants["violation_count"] == 0, invariants
        # Scheduler POSTs work without a body.
        assert http.post("/api/v1/scheduler/trigger").status_code == 200
    with httpx.Client(base_url=stack.rest, headers={"X-API-Key": tenants[0].key}) as http:
        for method, path in (("GET", "status"), ("GET", "queue"), ("POST", "trigger"), ("POST", "process-queue")):
            assert http.request(method, f"/api/v1/scheduler/{path}").status_code == 403
