"""kill -9 of every process while runs are under way, of all at once, replies lost on both sides: nothing is lost.

The shortest form of ``make chaos``, on a stack of its own with two replicas of each service: tenants work throughout,
then every run ends, every reservation is free, and all that was acknowledged is held against the tables.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import driver, faults

pytestmark = [pytest.mark.own_stack, pytest.mark.chaos, pytest.mark.timeout(600)]

# README: a run whose executor was killed is closed within 100 s; what waited for it then runs.
ENDS_WITHIN = 160.0


def test_killed_one_by_one_and_all_at_once_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    plan = faults.each_once()
    report = asyncio.run(driver.run(tmp_path / "stack", seed=1, phases=("chaos",), plan=plan, paced=True, tenants=3))
    print(report)
    assert not report.wrong

    figures = report.figures
    killed = {name.removeprefix("kill -9 ") for name in figures["faults"] if name.startswith("kill -9")}
    parts = {"gateway", "between", "tenant", "credential", "pipeline_executor", "scheduler", "kms", "bigquery"}
    assert killed == parts | {faults.EVERYTHING}
    assert all(figures["restarts"].values()), figures["restarts"]
    # Without these, nothing was shown: work that was interrupted, replies that were lost, work that was done after all.
    assert figures["met"]["runs under way at kills"]
    assert figures["met"]["store lose"]
    assert sum(number for name, number in figures["runs"].items() if "COMPLETED" in name)
    assert figures["held"]["rows"] and figures["held"]["acknowledged changes"]
    assert figures["drain_seconds"] < ENDS_WITHIN
    assert figures["planted"]["found"] == figures["planted"]["harms"] > 5  # as many as there was something to harm
