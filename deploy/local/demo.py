"""``make demo``: every flow on sample data, in a stack of its own, told step by step.

Onboards a tenant, stores a credential for each of three clouds, runs their ``cost/billing``, asks what it cost, and
compares what is stored with what the customer's exports hold. Exits 0 only if they are equal for every provider, in
every currency.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import httpx
from google.cloud import bigquery
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local import sample_data
from deploy.local.layout import HOST, ROOT, Folder, StackError
from deploy.local.stack import read
from libs.bigquery import Sql, TableRef, build_client
from services.cli.charts import bar

DATE = "2025-11-17"
MONTH = {"start_date": "2025-11-01", "end_date": "2025-11-30"}
BACKFILL_DATE = "2025-11-16"
TENANT = "demo_corp"
_BAR = 24
_STORED = Decimal("1e-17")

# Provider and currency → measure → value.
type Totals = dict[tuple[str, str], dict[str, Decimal]]


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

        console.rule("Flow 1: store a credential for each cloud")
        for provider, credential in stack["sample_credentials"].items():
            stored = _call(http, "POST", f"/api/v1/tenants/{TENANT}/credentials", credential)
            console.print(f"{provider}: credential {stored['action']}, data tables {stored['dataset_status']}")

        console.rule(f"Flow 2: run gcp/cost/billing for {DATE}, aws and azure for the month")
        windows = {"gcp": {"date": DATE}, "aws": MONTH, "azure": MONTH}
        runs = {}
        for provider, window in windows.items():
            started = _call(http, "POST", f"/api/v1/pipelines/run/{TENANT}/{provider}/cost/billing", window)
            runs[provider] = started["pipeline_logging_id"]
            console.print(f"{provider}: run {runs[provider]}: {started['status']}")
        for provider, run_id in runs.items():
            _watch(console, http, provider, run_id)
            _show_run(console, http, provider, run_id)

        console.rule(f"Flow 3: schedule it, and backfill {BACKFILL_DATE}")
        _schedule(console, http, stack)

        console.rule("What it cost in November 2025")
        _show_costs(console, http)
    source, target = _source_totals(stack), _stored_totals(stack)
    console.rule("Does it tie to the source?")
    _show_totals(console, source, target)
    rows = sum(int(measures["rows"]) for measures in target.values())
    clouds = len({provider for provider, _ in target})
    if source == target and clouds == len(windows):
        return True, f"Loaded {rows} rows of {clouds} clouds for {TENANT}; source and stored totals are equal."
    return False, "Source and stored totals differ."


def _call(http: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = http.request(method, path, json=body)
    if answer.status_code != 200:
        raise StackError(f"{method} {path} answered {answer.status_code}: {answer.text}")
    result: dict[str, Any] = answer.json()
    return result


def _watch(console: Console, http: httpx.Client, provider: str, run_id: str) -> None:
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
        task = progress.add_task(provider, total=100)
        for line in answer.iter_lines():
            if line:
                now = json.loads(line)
                doing = [step["step"] for step in now["run"]["steps"] if step["status"] == "RUNNING"]
                text = ", ".join(doing) or now["run"]["status"].lower()
                progress.update(task, completed=now["percent"], description=f"{provider:5} {text:12}")


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


def _show_run(console: Console, http: httpx.Client, provider: str, run_id: str) -> None:
    run = _call(http, "GET", f"/api/v1/pipelines/runs/{TENANT}/{run_id}")
    if run["status"] != "COMPLETED":
        raise StackError(f"the run of {provider} ended {run['status']}: {run['error']}")
    checks = _call(http, "GET", f"/api/v1/pipelines/runs/{TENANT}/{run_id}/dq-results?page_size=100")["dq_results"]
    passed = sum(check["status"] == "PASS" for check in checks)
    steps = ", ".join(f"{step['step']} {step['rows']}" for step in run["steps"])
    console.print(f"{run['status']}, {run['outcome']}: {run['rows_published']} rows ({steps})", soft_wrap=True)
    console.print(f"quality checks: {passed} of {len(checks)} passed")


def _show_costs(console: Console, http: httpx.Client) -> None:
    """The answer of the costs API, by provider and service."""
    query: dict[str, Any] = {**MONTH, "group_by": ["provider", "service"], "page_size": 1000}
    answer = http.get(f"/api/v1/costs/{TENANT}", params=query)
    if answer.status_code != 200:
        raise StackError(f"the costs were answered with {answer.status_code}: {answer.text}")
    table = Table("provider", "service", "currency", box=None, pad_edge=False)
    table.add_column("billed", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="crop")
    costs = answer.json()["costs"]
    highest: dict[str, Decimal] = {}
    for group in costs:
        highest[group["currency"]] = max(highest.get(group["currency"], Decimal(0)), Decimal(group["cost"]))
    for group in costs:
        cost, most = Decimal(group["cost"]), highest[group["currency"]]
        names = (group["dimensions"]["provider"], group["dimensions"]["service"], group["currency"])
        table.add_row(*names, f"{cost:,.4f}", f"[cyan]{bar(cost, most, _BAR)}[/]")
    console.print(table)


def _source_totals(stack: Mapping[str, Any]) -> Totals:
    """Sums of the customer's exports: of the table made there, of the files made here, past all of our code."""
    source = stack["sample_credentials"]["gcp"]["source"]
    export = TableRef(source["table_id"], source["dataset_id"], source["project_id"])
    sql = Sql.load(__package__, "sql/demo_source_totals.sql").with_tables(source=export)
    found = _totals("gcp", _query(stack, source["project_id"], sql, dataset=source["dataset_id"]))
    aws = _of_file(sample_data.AWS_FILE, "lineItem/UnblendedCost", "lineItem/CurrencyCode")
    azure = _of_file(sample_data.AZURE_FILE, "CostInBillingCurrency", "BillingCurrency")
    return {**found, **{("aws", key): sums for key, sums in aws}, **{("azure", key): sums for key, sums in azure}}


def _of_file(path: Path, cost: str, currency: str) -> Iterator[tuple[str, dict[str, Decimal]]]:
    """Rows and cost of a CSV file by currency, each value to the place it is stored to."""
    sums: dict[str, dict[str, Decimal]] = {}
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            found = sums.setdefault(row[currency], {"rows": Decimal(0), "cost": Decimal(0)})
            found["rows"] += 1
            found["cost"] += Decimal(row[cost]).quantize(_STORED, ROUND_HALF_UP)
    yield from sums.items()


def _stored_totals(stack: Mapping[str, Any]) -> Totals:
    """Sums of the tenant's tables."""
    found: Totals = {}
    for provider in stack["sample_credentials"]:
        sql = Sql.load(__package__, f"sql/demo_stored_{provider}.sql")
        found |= _totals(provider, _query(stack, stack["project_id"], sql, dataset=TENANT))
    return found


def _totals(provider: str, rows: list[dict[str, Any]]) -> Totals:
    return {
        (provider, row["currency"]): {
            name.replace("row_count", "rows").replace("net", "net cost"): Decimal(value)
            for name, value in row.items()
            if name != "currency"
        }
        for row in rows
    }


def _show_totals(console: Console, source: Totals, target: Totals) -> None:
    table = Table("provider", "currency", "", box=None, pad_edge=False)
    for name in ("at the source", "stored"):
        table.add_column(name, justify="right")
    table.add_column("")
    for provider, currency in sorted(source.keys() | target.keys()):
        left, right = source.get((provider, currency), {}), target.get((provider, currency), {})
        for name in dict.fromkeys([*left, *right]):
            verdict = "[green]equal[/]" if left.get(name) == right.get(name) else "[bold red]different[/]"
            shown = [_plain(side.get(name, Decimal(0))) for side in (left, right)]
            table.add_row(provider, currency, name, *shown, verdict)
    console.print(table)


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _query(stack: Mapping[str, Any], project: str, sql: Sql, *, dataset: str) -> list[dict[str, Any]]:
    client = build_client(project, endpoint=stack["bigquery_rest"])
    config = bigquery.QueryJobConfig(
        default_dataset=f"{project}.{dataset}",
        query_parameters=[bigquery.ScalarQueryParameter("day", "DATE", DATE)],
    )
    return [dict(row) for row in client.query_and_wait(sql.text, job_config=config)]


if __name__ == "__main__":
    raise SystemExit(main())
