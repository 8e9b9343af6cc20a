"""``make demo``: every flow on sample data, in a stack of its own, told step by step.

Onboards a tenant, stores its credential, runs ``gcp/cost/billing``, shows the cost, and compares what is stored with
what the customer's export holds. Exits 0 only if they are equal in every currency.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
from google.cloud import bigquery
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local.layout import HOST, ROOT, Folder, StackError
from deploy.local.stack import read
from libs.bigquery import Sql, TableRef, build_client

DATE = "2025-11-17"
BACKFILL_DATE = "2025-11-16"
TENANT = "demo_corp"
_BAR = 24


@dataclass(frozen=True, slots=True)
class Total:
    """Rows and money of one currency."""

    rows: int
    cost: Decimal
    net: Decimal


def main() -> int:
    """Runs the demo; 0 if the totals are equal."""
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        with _stack(console) as stack:
            equal, said = _tell(console, stack)
    except (StackError, httpx.HTTPError, AssertionError) as exc:
        console.print(f"[bold red]The demo failed:[/] {exc}")
        return 1
    style = "bold green" if equal else "bold red"
    console.print(f"[{style}]{said}[/] ({time.monotonic() - began:.0f} s, stack stopped)", soft_wrap=True)
    return 0 if equal else 1


@contextmanager
def _stack(console: Console) -> Iterator[Mapping[str, Any]]:
    """A stack in an empty folder on a free port; stopped and removed at the end."""
    folder = Folder(Folder.of_environment().path / "demo")
    _control(folder, "down")
    shutil.rmtree(folder.path, ignore_errors=True)
    console.rule("A stack of its own")
    try:
        _control(folder, "up")
        stack = read(folder)
        if stack is None:
            raise StackError("the stack ended right after its start")
        yield stack
    finally:
        _control(folder, "down", quiet=True)
    shutil.rmtree(folder.path, ignore_errors=True)


def _control(folder: Folder, verb: str, *, quiet: bool = False) -> None:
    if verb == "down" and not folder.path.exists():
        return
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deploy.local.stack", verb]
    env = {**os.environ, "DATA_DIR": str(folder.path), "PORT": str(port)}
    out = subprocess.DEVNULL if quiet else None
    if subprocess.run(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, check=False).returncode:
        raise StackError(f"`stack {verb}` failed; logs are in {folder.logs}")


def _tell(console: Console, stack: Mapping[str, Any]) -> tuple[bool, str]:
    with httpx.Client(base_url=stack["rest"], timeout=70) as http:
        console.rule("Flow 0: onboard a tenant")
        onboarded = _call(
            http,
            "POST",
            "/api/v1/tenants/onboard",
            {
                "tenant_id": TENANT,
                "company_name": "Demo Corp",
                "admin_email": "demo@example.com",
                "subscription_plan": "PROFESSIONAL",
            },
        )
        http.headers["X-API-Key"] = onboarded["api_key"]
        tables = ", ".join(onboarded["tables_created"])
        console.print(f"{TENANT}: dataset {onboarded['dataset_status']}, tables {tables}", soft_wrap=True)
        console.print("API key: shown once, here not at all")

        console.rule("Flow 1: store its Google Cloud credential")
        stored = _call(http, "POST", f"/api/v1/tenants/{TENANT}/credentials", stack["sample_credential"])
        console.print(f"{stored['provider']} credential {stored['action']}, data tables {stored['dataset_status']}")

        console.rule(f"Flow 2: run gcp/cost/billing for {DATE}")
        path = f"/api/v1/pipelines/run/{TENANT}/gcp/cost/billing"
        started = _call(http, "POST", path, {"date": DATE})
        run_id = started["pipeline_logging_id"]
        console.print(f"run {run_id}: {started['status']}")
        _watch(console, http, run_id)
        run = _call(http, "GET", f"/api/v1/pipelines/runs/{TENANT}/{run_id}")
        if run["status"] != "COMPLETED":
            raise StackError(f"the run ended {run['status']}: {run['error']}")
        _show_run(console, run)
        checks = _call(http, "GET", f"/api/v1/pipelines/runs/{TENANT}/{run_id}/dq-results")["dq_results"]
        passed = sum(check["status"] == "PASS" for check in checks)
        console.print(f"quality checks: {passed} of {len(checks)} passed")

        console.rule(f"Flow 3: schedule it, and backfill {BACKFILL_DATE}")
        _schedule(console, http, stack)

    console.rule("What it cost")
    _show_costs(console, stack)
    source, target = _source_totals(stack), _stored_totals(stack)
    _show_totals(console, source, target)
    money = ", ".join(f"{total.cost:,.2f} {currency}" for currency, total in sorted(target.items()))
    rows = sum(total.rows for total in target.values())
    if source == target and source:
        return True, f"Loaded {rows} rows of {DATE} for {TENANT}: {money}; source and stored totals are equal."
    return False, f"Source and stored totals of {DATE} differ."


def _call(http: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = http.request(method, path, json=body)
    if answer.status_code != 200:
        raise StackError(f"{method} {path} answered {answer.status_code}: {answer.text}")
    result: dict[str, Any] = answer.json()
    return result


def _watch(console: Console, http: httpx.Client, run_id: str) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(_BAR),
        TextColumn("{task.percentage:3.0f} %"),
    )
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        http.stream("GET", f"/api/v1/pipelines/runs/{TENANT}/{run_id}:watch", timeout=300) as answer,
    ):
        task = progress.add_task("starting", total=100)
        for line in answer.iter_lines():
            if line:
                now = json.loads(line)
                doing = [step["step"] for step in now["run"]["steps"] if step["status"] == "RUNNING"]
                text = ", ".join(doing) or now["run"]["status"].lower()
                progress.update(task, completed=now["percent"], description=f"{text:12}")


def _schedule(console: Console, http: httpx.Client, stack: Mapping[str, Any]) -> None:
    """A schedule for the days to come, a backfill for one that was, and the queue worked off as its CronJob would."""
    customer = f"/api/v1/scheduler/customer/{TENANT}"
    pipeline = {"provider": "gcp", "domain": "cost", "template": "billing"}
    daily = {**pipeline, "cron": "0 6 * * *", "timezone": "Europe/Berlin"}
    schedule = _call(http, "POST", f"{customer}/pipelines", daily)
    console.print(f"schedule {daily['cron']} {daily['timezone']}: next at {schedule['next_run_time']}")
    window = {"start_date": BACKFILL_DATE, "end_date": BACKFILL_DATE}
    backfill = _call(http, "POST", f"{customer}/backfills", {**pipeline, **window})
    admin = {"X-API-Key": stack["admin_api_key"]}
    with httpx.Client(base_url=stack["rest"], headers=admin, timeout=130) as jobs:
        _call(jobs, "POST", "/api/v1/scheduler/process-queue", {"time_budget_seconds": 120})
    runs = _call(http, "GET", f"/api/v1/pipelines/runs/{TENANT}")["runs"]
    ended = [run for run in runs if run["trigger"] == "BACKFILL"]
    if [run["status"] for run in ended] != ["COMPLETED"]:
        raise StackError(f"the backfill {backfill['backfill_id']} did not end well: {ended}")
    console.print(f"backfill of {BACKFILL_DATE}: {ended[0]['status']}, {ended[0]['rows_published']} rows")


def _show_run(console: Console, run: Mapping[str, Any]) -> None:
    table = Table("step", "status", "rows", "tries", box=None, pad_edge=False)
    for step in run["steps"]:
        table.add_row(step["step"], step["status"], str(step["rows"]), str(step["tries"]))
    console.print(table)
    console.print(f"{run['status']}, {run['outcome']}: {run['rows_published']} rows")


def _show_costs(console: Console, stack: Mapping[str, Any]) -> None:
    rows = _query(stack, stack["project_id"], Sql.load(__package__, "sql/demo_cost_by_service.sql"), dataset=TENANT)
    table = Table("service", "currency", box=None, pad_edge=False)
    for name in ("cost", "credits", "net cost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="crop")
    highest: dict[str, Decimal] = {}
    for row in rows:
        highest[row["currency"]] = max(highest.get(row["currency"], Decimal(0)), row["net"])
    for row in rows:
        money = [f"{row[name]:,.4f}" for name in ("cost", "credits", "net")]
        share = row["net"] / highest[row["currency"]] if highest[row["currency"]] else Decimal(0)
        table.add_row(row["service"], row["currency"], *money, f"[cyan]{_bar(share)}[/]")
    console.print(table)


def _bar(share: Decimal) -> str:
    """A bar of eighths of a character; nothing for a share that is not positive."""
    eighths = max(0, round(share * _BAR * 8))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _source_totals(stack: Mapping[str, Any]) -> dict[str, Total]:
    """Sums of the customer's export, made there."""
    source = stack["sample_credential"]["source"]
    export = TableRef(source["table_id"], source["dataset_id"], source["project_id"])
    sql = Sql.load(__package__, "sql/demo_source_totals.sql").with_tables(source=export)
    return _totals(_query(stack, source["project_id"], sql, dataset=source["dataset_id"]))


def _stored_totals(stack: Mapping[str, Any]) -> dict[str, Total]:
    """Sums of the tenant's table."""
    sql = Sql.load(__package__, "sql/demo_stored_totals.sql")
    return _totals(_query(stack, stack["project_id"], sql, dataset=TENANT))


def _totals(rows: list[dict[str, Any]]) -> dict[str, Total]:
    return {row["currency"]: Total(row["row_count"], row["cost"], row["net"]) for row in rows}


def _show_totals(console: Console, source: Mapping[str, Total], target: Mapping[str, Total]) -> None:
    table = Table("currency", "", box=None, pad_edge=False)
    for name in ("at the source", "stored"):
        table.add_column(name, justify="right")
    table.add_column("")
    measures: list[tuple[str, Callable[[Total], object]]] = [
        ("rows", lambda total: total.rows),
        ("cost", lambda total: total.cost),
        ("net cost", lambda total: total.net),
    ]
    none = Total(0, Decimal(0), Decimal(0))
    for currency in sorted(source.keys() | target.keys()):
        for name, measure in measures:
            left, right = measure(source.get(currency, none)), measure(target.get(currency, none))
            verdict = "[green]equal[/]" if left == right else "[bold red]different[/]"
            table.add_row(currency, name, str(left), str(right), verdict)
    console.print()
    console.print(table)


def _query(stack: Mapping[str, Any], project: str, sql: Sql, *, dataset: str) -> list[dict[str, Any]]:
    client = build_client(project, endpoint=stack["bigquery_rest"])
    config = bigquery.QueryJobConfig(
        default_dataset=f"{project}.{dataset}",
        query_parameters=[bigquery.ScalarQueryParameter("day", "DATE", DATE)],
    )
    return [dict(row) for row in client.query_and_wait(sql.text, job_config=config)]


if __name__ == "__main__":
    raise SystemExit(main())
