"""The command line as a new user's, from onboarding to costs, past no API but the public one.

Its JSON is what the gateway answers over REST; no secret shows in what was typed or seen, and none lies open.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.support.cli import Terminal
from tests.support.stack import Stack, Tenant, source_totals

DATE = "2025-11-17"
EXECUTABLE = Path(sys.executable).with_name("convergence")
# What lists, and needs nothing but a tenant.
LISTS = ("keys list", "credentials list", "runs list", "schedules list", "backfill list", "templates", "tenants audit")
ADMIN_LISTS = ("tenants list", "queue list", "queue dead-letters")


@dataclass
class Shell:
    """Somebody at a prompt; everything they typed and saw is kept."""

    terminal: Terminal
    url: str
    seen: str = ""

    def run(self, line: str, *, stdin: str = "", code: int = 0, env: Mapping[str, str] | None = None) -> Result:
        done = self.terminal.run(*line.split(), stdin=stdin, env={"CONVERGENCE_API_URL": self.url, **(env or {})})
        self.seen += f"$ convergence {line}\n{done.output}"
        assert done.exit_code == code, f"{line}: {done.exit_code}\n{done.output}"
        return done

    def json(self, line: str, **given: Any) -> Any:
        return json.loads(self.run(f"{line} --output json", **given).stdout)


@pytest.fixture(scope="module")
def shell(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(Terminal(tmp_path_factory.mktemp("cli") / "config"), stack.rest)


@pytest.fixture(scope="module")
def tenant(stack: Stack, shell: Shell) -> Tenant:
    """Onboarded, signed in, with a credential, all by command line; the admin is signed in beside it."""
    tenant_id = f"t_{uuid.uuid4().hex[:12]}"
    onboard = f"tenants onboard {tenant_id} --company Acme --email a@example.com --plan PROFESSIONAL --login"
    assert f"ADMIN of tenant {tenant_id}" in shell.run(onboard).stderr
    shell.run("login --profile admin", stdin=stack.admin_api_key + "\n")
    shell.run(f"profiles --use {tenant_id}")
    key = json.loads((shell.terminal.directory / f"profiles/{tenant_id}.json").read_text())["api_key"]
    stored = shell.json("credentials add gcp --file -", stdin=json.dumps(stack.sample_credential))
    assert (stored["action"], stored["status"]) == ("CREATED", "VALID")
    return Tenant(stack, tenant_id, key)


@pytest.fixture(scope="module")
def run(shell: Shell, tenant: Tenant) -> dict[str, Any]:
    """A run that was watched to its end."""
    ended = shell.json(f"run gcp/cost/billing --date {DATE} --watch")
    assert (ended["status"], ended["outcome"]) == ("COMPLETED", "PUBLISHED")
    return dict(ended)


def test_the_run_was_watched_step_by_step_and_brought_what_the_source_holds(
    stack: Stack, shell: Shell, tenant: Tenant, run: dict[str, Any]
) -> None:
    assert "publish COMPLETED" in shell.seen
    source = stack.sample_credential["source"]
    expected = source_totals(stack, source["project_id"], source["dataset_id"], source["table_id"], DATE)
    costs = shell.json(f"costs --by service --start-date {DATE} --end-date {DATE} --limit 0")["costs"]
    summed: dict[str, Decimal] = {}
    for cost in costs:
        summed[cost["currency"]] = summed.get(cost["currency"], Decimal(0)) + Decimal(cost["cost"])
    assert summed == {currency: total.net for currency, total in expected.items()}
    read = shell.run(f"costs --start-date {DATE} --end-date {DATE}").stdout
    for currency, total in expected.items():
        assert f"{total.net:,.2f} {currency} on {DATE}" in read


def test_json_is_what_the_gateway_answers(shell: Shell, tenant: Tenant, run: dict[str, Any]) -> None:
    run_id = run["pipeline_logging_id"]
    for line, path in (
        ("tenants get", f"/tenants/{tenant.tenant_id}"),
        (f"runs get {run_id}", f"/pipelines/runs/{tenant.tenant_id}/{run_id}"),
        ("credentials list --limit 10", f"/tenants/{tenant.tenant_id}/credentials?page_size=10"),
        ("templates --limit 10", "/pipelines/templates?page_size=10"),
        (
            f"costs --start-date {DATE} --end-date {DATE} --limit 9",
            f"/costs/{tenant.tenant_id}?start_date={DATE}&end_date={DATE}&page_size=9&group_by=service",
        ),
    ):
        assert shell.json(line) == tenant.call("GET", path), line
    assert shell.json("whoami")["tenant_id"] == tenant.tenant_id


def test_every_list_answers_as_json(shell: Shell, tenant: Tenant, run: dict[str, Any]) -> None:
    for line in (*LISTS, *(f"{line} --profile admin" for line in ADMIN_LISTS)):
        [items] = [value for value in shell.json(line).values() if isinstance(value, list)]
        if line in LISTS[:3]:
            assert items, line
    assert run["pipeline_logging_id"] in shell.run("runs list").stdout


def test_schedules_backfills_and_the_admins_jobs(shell: Shell, tenant: Tenant) -> None:
    made = shell.json(
        "schedules create gcp/cost/billing --cron @daily --timezone Europe/Berlin --paused --name nightly"
    )
    assert (made["is_active"], made["timezone"]) == (False, "Europe/Berlin")
    changed = shell.json(f"schedules update {made['config_id']} --priority 8")
    assert changed["priority"] == 8
    assert shell.json(f"schedules resume {made['config_id']}")["is_active"]
    assert len(shell.json(f"schedules next {made['config_id']}")["next_run_times"]) == 10
    shell.run(f"schedules delete {made['config_id']} --yes")
    backfill = shell.json("backfill start gcp/cost/billing --start-date 2025-11-15 --end-date 2025-11-16")
    assert backfill["total_count"] == 2
    assert "0 %" in shell.run(f"backfill status {backfill['backfill_id']}").stdout
    assert shell.json(f"backfill cancel {backfill['backfill_id']} --yes")["state"] == "CANCELLED"
    assert shell.json("status --profile admin")["gateway"]["status"] == "SERVING"
    shell.run("scheduler invariants --profile admin")
    assert tenant.tenant_id in shell.run("status").stdout


def test_a_refusal_ends_with_its_code_and_an_id_that_the_logs_know(stack: Stack, shell: Shell, tenant: Tenant) -> None:
    refused = shell.run("queue list", code=3)
    found = re.search(r"request id: ([0-9a-f-]{36})", refused.stderr)
    assert found and any(found[1] in text for text in stack.logs().values())
    shell.run("runs get 00000000-0000-5000-8000-000000000000", code=4)
    shell.run("run gcp/cost/billing --date 2999-01-01", code=2)
    shell.run("tenants get somebody_else", code=4)
    shell.run("whoami", code=3, env={"CONVERGENCE_API_KEY": tenant.tenant_id})
    shell.run("whoami", code=6, env={"CONVERGENCE_API_KEY": tenant.key, "CONVERGENCE_API_URL": "http://127.0.0.1:9"})


def test_on_a_terminal_steps_have_bars_and_ctrl_c_leaves_the_run_alone(shell: Shell, tenant: Tenant) -> None:
    main, terminal = pty.openpty()
    started = shell.json("run gcp/cost/billing --start-date 2025-11-10 --end-date 2025-11-16")
    run_id = started["pipeline_logging_id"]
    process = subprocess.Popen(
        [EXECUTABLE, "runs", "watch", run_id],
        env={
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "COLUMNS": "100",
            "LINES": "40",
            "CONVERGENCE_CONFIG_DIR": str(shell.terminal.directory),
        },
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown = ""
    interrupted = False
    deadline = time.monotonic() + 120
    try:
        # Read to the end: a terminal that nobody reads would hold the writer up.
        while process.poll() is None or select.select([main], [], [], 0.2)[0]:
            assert time.monotonic() < deadline, shown
            if select.select([main], [], [], 0.5)[0]:
                try:
                    shown += os.read(main, 65_536).decode(errors="replace")
                except OSError:  # the other side is closed: all is read
                    break
            if "in all" in shown and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
        code = process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert "extract" in shown and "━" in shown, shown
    # A machine quicker than this test has ended the run already.
    assert code in (130, 0), shown
    if code == 130:
        assert "The run goes on." in shown
    assert tenant.wait(run_id)["status"] == "COMPLETED"


def test_the_doctor_finds_nothing_wrong_here(stack: Stack, shell: Shell, tenant: Tenant, run: dict[str, Any]) -> None:
    checks = shell.json("doctor")["checks"]
    assert {check["verdict"] for check in checks} <= {"OK", "WARN"}, checks
    said = {f"{check['area']}: {check['name']}": check for check in checks}
    assert said["gateway: health"]["verdict"] == said["gateway: version"]["verdict"] == "OK", said
    assert said["tenant: credential gcp/default"]["verdict"] == "OK"
    checks = shell.json("doctor --profile admin --operator", env=stack.environment)["checks"]
    said = {f"{check['area']}: {check['name']}": check for check in checks}
    assert said["bigquery: dataset tenants"]["found"].startswith("8 of 8 tables: ")
    assert said["kms: key"]["verdict"] == "OK" and said["scheduler: invariants"]["verdict"] == "OK"
    broken = shell.run("doctor --operator", code=1, env={**stack.environment, "CONVERGENCE_KMS_KEY": ""})
    assert "CONVERGENCE_KMS_KEY is not set" in broken.stdout and "fix: CONVERGENCE_KMS_KEY=projects/" in broken.stdout


def test_no_secret_was_shown_and_none_lies_open(
    stack: Stack, shell: Shell, tenant: Tenant, run: dict[str, Any]
) -> None:
    private = json.dumps(stack.sample_credential["credentials"]["private_key"])[30:90]
    for secret in (tenant.key, stack.admin_api_key, private):
        assert secret not in shell.seen
    config = shell.terminal.directory
    files = [path for path in config.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in (*files, config, config / "profiles"):
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
    shell.run("logout")
    shell.run("usage", code=3)
