"""The CronJobs' manifest: their times, their patience, and that they run console scripts this project has."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.settings import variable_of
from services.scheduler.jobs import JobSettings

ROOT = Path(__file__).parents[3]
MANIFEST = ROOT / "deploy/kustomize/base/scheduler-cronjobs.yaml"
JOBS = [doc for doc in yaml.safe_load_all(MANIFEST.read_text()) if doc["kind"] == "CronJob"]


def test_there_are_three_with_the_times_that_are_promised() -> None:
    assert {job["metadata"]["name"]: job["spec"]["schedule"] for job in JOBS} == {
        "scheduler-trigger": "0 * * * *",
        "scheduler-process-queue": "*/5 * * * *",
        "scheduler-reset-daily-quotas": "0 0 * * *",
    }


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_each_is_safe_to_leave_alone(job: dict[str, Any]) -> None:
    spec, run = job["spec"], job["spec"]["jobTemplate"]["spec"]
    pod = run["template"]["spec"]
    assert spec["timeZone"] == "Etc/UTC"
    assert spec["concurrencyPolicy"] == "Forbid"
    # Without it, a hundred missed starts end the schedule; more than its period would let starts pile up.
    period = {"scheduler-trigger": 3600, "scheduler-process-queue": 300, "scheduler-reset-daily-quotas": 86400}
    assert 60 <= spec["startingDeadlineSeconds"] < period[job["metadata"]["name"]]
    assert spec["successfulJobsHistoryLimit"] >= 1 and spec["failedJobsHistoryLimit"] >= 1
    assert run["backoffLimit"] <= 6
    assert run["activeDeadlineSeconds"] >= 300
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_each_runs_a_console_script_with_settings_it_knows(job: dict[str, Any]) -> None:
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[container["command"][0]].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    known = {variable_of(JobSettings, field) for field in JobSettings.model_fields}
    assert {each["name"] for each in container["env"]} <= known
