"""Four tenants, onboarded two at a time and run all at once; no row or log of one is visible to another.

Against a running stack: `CONVERGENCE_E2E_STACK=.data/stack.json` (or its base URL) and this file.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.stack import Stack, Tenant, source_totals, until

DATE = "2025-11-17"
COUNT = 4
UNKNOWN = "no_such_tenant_anywhere"
TABLES = ("gcp_cost_billing", "x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results")


@dataclass(frozen=True, slots=True)
class Done:
    """A tenant with its credential and its ended run."""

    tenant: Tenant
    credential_id: str
    run: dict[str, Any]


@pytest.fixture(scope="module")
def everyone(stack: Stack) -> list[Done]:
    """Through every flow; the runs all at once."""

    def begin(number: int) -> tuple[Tenant, str]:
        tenant = stack.onboard()
        return tenant, tenant.store_credential()["credential_id"]

    def go(number: int) -> Done:
        tenant, credential_id = begun[number]
        run = tenant.run(date=DATE, idempotency_key="same key, other tenants", user_id=f"user-{number}", timeout=240)
        return Done(tenant, credential_id, run)

    # A tenant's tables take the emulator 2 s of CPU: all at once they outlast a request on a busy machine.
    with ThreadPoolExecutor(COUNT // 2) as pool:
        begun = list(pool.map(begin, range(COUNT)))
    with ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(go, range(COUNT)))


def test_every_tenant_has_all_of_its_data(stack: Stack, everyone: list[Done]) -> None:
    source = stack.sample_credential["source"]
    expected = source_totals(stack, source["project_id"], source["dataset_id"], source["table_id"], DATE)
    assert len({done.run["pipeline_logging_id"] for done in everyone}) == COUNT
    for done in everyone:
        assert done.tenant.totals(DATE) == expected


def test_a_dataset_holds_its_own_tenant_only(stack: Stack, everyone: list[Done]) -> None:
    for number, done in enumerate(everyone):
        own = {(done.tenant.tenant_id, f"user-{number}")}
        run_ids = {done.run["pipeline_logging_id"]}
        for table in TABLES:
            rows = stack.rows(f"SELECT * FROM {table}", dataset=done.tenant.tenant_id)
            assert rows, table
            assert {row["pipeline_logging_id"] for row in rows} == run_ids
            if table.startswith("x_meta"):
                assert {(row["tenant_id"], row["user_id"]) for row in rows} == own


def paths(done: Done) -> list[str]:
    """Every path of a tenant that shows something of it."""
    tenant, run = done.tenant.tenant_id, done.run["pipeline_logging_id"]
    return [
        f"/api/v1/tenants/{tenant}",
        f"/api/v1/tenants/{tenant}/usage",
        f"/api/v1/tenants/{tenant}/audit",
        f"/api/v1/tenants/{tenant}/api-keys",
        f"/api/v1/tenants/{tenant}/credentials",
        f"/api/v1/tenants/{tenant}/credentials/{done.credential_id}",
        f"/api/v1/pipelines/runs/{tenant}",
        f"/api/v1/pipelines/runs/{tenant}/{run}",
        f"/api/v1/pipelines/runs/{tenant}/{run}/steps",
        f"/api/v1/pipelines/runs/{tenant}/{run}/dq-results",
        f"/api/v1/pipelines/runs/{tenant}/{run}:watch",
        f"/api/v1/costs/{tenant}",
        f"/api/v1/compliance/{tenant}",
        f"/api/v1/scheduler/customer/{tenant}/pipelines",
        f"/api/v1/scheduler/customer/{tenant}/backfills",
    ]


def test_a_foreign_path_answers_like_one_that_does_not_exist(stack: Stack, everyone: list[Done]) -> None:
    for mine, other in itertools.pairwise([*everyone, everyone[0]]):
        with stack.http(mine.tenant.key) as http:
            for path in paths(other):
                foreign = http.get(path)
                unknown = http.get(path.replace(other.tenant.tenant_id, UNKNOWN))
                assert foreign.status_code == 404, path
                assert foreign.content == unknown.content, path
                assert foreign.headers["content-type"] == unknown.headers["content-type"], path


def test_foreign_ids_under_the_own_path_are_not_found(everyone: list[Done]) -> None:
    for mine, other in itertools.pairwise([*everyone, everyone[0]]):
        tenant = mine.tenant
        runs = f"/pipelines/runs/{tenant.tenant_id}/{other.run['pipeline_logging_id']}"
        tenant.call("GET", runs, expect=404)
        tenant.call("GET", f"/tenants/{tenant.tenant_id}/credentials/{other.credential_id}", expect=404)
        for below in ("steps", "dq-results"):
            answer = tenant.call("GET", f"{runs}/{below}", expect=404)
            assert other.tenant.tenant_id not in str(answer)


def test_a_foreign_tenant_cannot_be_changed(stack: Stack, everyone: list[Done]) -> None:
    mine, other = everyone[0], everyone[1]
    tenant = other.tenant.tenant_id
    run = other.run["pipeline_logging_id"]
    changes: list[tuple[str, str, Any]] = [
        ("POST", f"/api/v1/tenants/{tenant}/credentials", stack.sample_credential),
        ("PATCH", f"/api/v1/tenants/{tenant}/credentials/{other.credential_id}", {"source": {}}),
        ("DELETE", f"/api/v1/tenants/{tenant}/credentials/{other.credential_id}", None),
        ("PATCH", f"/api/v1/tenants/{tenant}", {"company_name": "Mine now"}),
        ("POST", f"/api/v1/tenants/{tenant}/api-keys", {"role": "ADMIN"}),
        ("POST", f"/api/v1/pipelines/run/{tenant}/gcp/cost/billing", {"date": DATE}),
        ("POST", f"/api/v1/pipelines/runs/{tenant}/{run}:cancel", {}),
    ]
    before = other.tenant.call("GET", f"/tenants/{tenant}")
    with stack.http(mine.tenant.key) as http:
        for method, path, body in changes:
            foreign = http.request(method, path, json=body)
            unknown = http.request(method, path.replace(tenant, UNKNOWN), json=body)
            assert (foreign.status_code, foreign.content) == (404, unknown.content), path
    assert other.tenant.call("GET", f"/tenants/{tenant}") == before
    assert other.tenant.usage()["daily"]["used"] == 1


def test_lists_show_the_own_only(everyone: list[Done]) -> None:
    for done in everyone:
        own = done.tenant
        runs = own.call("GET", f"/pipelines/runs/{own.tenant_id}")["runs"]
        assert [run["pipeline_logging_id"] for run in runs] == [done.run["pipeline_logging_id"]]
        credentials = own.call("GET", f"/tenants/{own.tenant_id}/credentials")["credentials"]
        assert [one["credential_id"] for one in credentials] == [done.credential_id]
        usage = until(
            own.usage, lambda now: now["concurrent"]["used"] == 0, timeout=15, what="all is settled", pause=0.5
        )
        assert usage["daily"]["used"] == 1
