"""kill -9 of any process in mid-run: the run says what it is, its reservation frees itself, the next run is right.

On a stack of its own, whose supervisor starts again what was killed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import ENDED, Stack, Tenant, running, source_totals, until

pytestmark = [pytest.mark.own_stack, pytest.mark.chaos]

DATE = "2025-11-17"
# ARCHITECTURE: a lease of 60 s, a reaper every 20 s, and what they need to be done.
FREED_WITHIN = 100.0


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that may be harmed."""
    with running(tmp_path_factory.mktemp("fragile")) as own:
        yield own


def kill(stack: Stack, name: str) -> None:
    """Kills a process and returns when it runs again and the gateway says that all is well."""
    victim = stack.process(name)
    victim.send(signal.SIGKILL)
    until(lambda: stack.process(name), lambda now: now != victim, timeout=60, what=f"{name} is started again")
    until(stack.healthy, bool, timeout=60, what="the stack is healthy again")


def state(tenant: Tenant, run_id: str) -> dict[str, Any]:
    """The run, or the state of the edge while it cannot say."""
    with tenant.stack.http(tenant.key) as http:
        answer = http.get(f"/api/v1/pipelines/runs/{tenant.tenant_id}/{run_id}")
    if answer.status_code in (500, 502, 503, 504):
        return {"status": "UNKNOWN", "answer": answer.text}
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def check_consistent(stack: Stack, tenant: Tenant, run: dict[str, Any]) -> None:
    """A run that says COMPLETED has published all; one that says FAILED has published nothing."""
    source = stack.sample_credential["source"]
    expected = source_totals(stack, source["project_id"], source["dataset_id"], source["table_id"], DATE)
    if run["status"] == "COMPLETED":
        assert tenant.totals(DATE) == expected
        # What stands published already is not read again.
        count = 0 if run["outcome"] == "UNCHANGED" else sum(total.row_count for total in expected.values())
        assert int(run["rows_published"]) == count
    else:
        assert run["status"] == "FAILED", run
        assert run["error"]["reason"], run
        assert tenant.totals(DATE) == {}
    rows = stack.rows(
        f"SELECT status FROM x_meta_pipeline_runs WHERE pipeline_logging_id = '{run['pipeline_logging_id']}'",
        dataset=tenant.tenant_id,
    )
    assert [row["status"] for row in rows] == [run["status"]]


@pytest.mark.parametrize(
    "name", ["pipeline_executor", "tenant", "credential", "bigquery", "kms", "gateway", "scheduler"]
)
def test_killed_in_mid_run(fragile: Stack, name: str) -> None:
    tenant = fragile.onboard()
    tenant.store_credential()
    run_id = tenant.start(date=DATE)["pipeline_logging_id"]
    killed = time.monotonic()
    kill(fragile, name)

    ended = until(
        lambda: state(tenant, run_id),
        lambda run: run["status"] in ENDED,
        timeout=FREED_WITHIN,
        what=f"the run ends after kill -9 of {name}",
    )
    left = FREED_WITHIN - (time.monotonic() - killed)
    until(
        lambda: tenant.usage()["concurrent"]["used"],
        lambda used: used == 0,
        timeout=max(left, 0),
        what="the reservation is free",
    )
    check_consistent(fragile, tenant, ended)
    if name == "pipeline_executor":
        assert ended["status"] == "COMPLETED" or ended["error"]["reason"] == "OWNER_LOST", ended

    again = tenant.run(date=DATE)
    check_consistent(fragile, tenant, again)


def test_everything_killed_at_once_comes_back(fragile: Stack) -> None:
    tenant = fragile.onboard()
    tenant.store_credential()
    tenant.run(date=DATE)
    before = tenant.stored(DATE)
    victims = {name: fragile.process(name) for name in fragile.now().processes}
    for victim in victims.values():
        victim.send(signal.SIGKILL)
    for name, victim in victims.items():
        until(
            lambda name=name: fragile.process(name),  # type: ignore[misc]
            lambda now, victim=victim: now != victim,  # type: ignore[misc]
            timeout=60,
            what=f"{name} is started again",
        )
    until(fragile.healthy, bool, timeout=60, what="the stack is healthy again")
    assert tenant.stored(DATE) == before
    tenant.run(date=DATE)
    assert tenant.stored(DATE) == before
