"""A running local stack as tests use it: started for them, or the one that ``CONVERGENCE_E2E_STACK`` names.

``running()`` starts a stack of its own in an empty folder and stops it; ``Stack`` knows its addresses; ``Tenant`` is
one customer with its key, speaking REST. Waiting is on conditions, with the state in the error if they stay false.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from deploy.local.processes import Identity
from tests.support.plain import NO_CERTIFICATES
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
E2E_STACK = "CONVERGENCE_E2E_STACK"


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack, by its ``stack.json``."""

    path: Path
    described: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Stack:
        """Reads ``stack.json``."""
        return cls(path, json.loads(path.read_text()))

    @classmethod
    def of_environment(cls) -> Stack | None:
        """The stack that ``CONVERGENCE_E2E_STACK`` names: the path of its ``stack.json``, or its base URL.

        With a base URL, the other facts come from ``.data/stack.json`` (``DATA_DIR``).
        """
        named = os.environ.get(E2E_STACK, "")
        if not named:
            return None
        if not named.startswith("http"):
            return cls.load(ROOT / named)
        stack = cls.load(ROOT / os.environ.get("DATA_DIR", ".data") / "stack.json")
        address = {"rest": named.rstrip("/"), "grpc": named.rstrip("/").partition("://")[2]}
        return cls(stack.path, {**stack.described, **address})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.described[name]
        except KeyError:
            raise AttributeError(name) from None

    def now(self) -> Stack:
        """The stack as it describes itself now: pids change when a process is restarted."""
        return Stack.load(self.path)

    def process(self, name: str) -> Identity:
        """The process of that name that runs now."""
        one = self.now().processes[name]
        return Identity(one["pid"], one["started"])

    def http(self, key: str = "", **headers: str) -> httpx.Client:
        """A REST client with a key."""
        given = {"X-API-Key": key} if key else {}
        return httpx.Client(base_url=self.rest, headers={**given, **headers}, timeout=70, verify=NO_CERTIFICATES)

    def admin(self) -> httpx.Client:
        """A REST client with the platform admin's key."""
        return self.http(self.admin_api_key)

    def bigquery(self, project: str = "") -> bigquery.Client:
        """BigQuery's own client on the stack's emulator; for the platform's project unless another is named."""
        return bigquery.Client(
            project or self.project_id,
            AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": self.bigquery_rest},
        )

    def rows(self, sql: str, *, project: str = "", dataset: str = "") -> list[dict[str, Any]]:
        """The rows of a query, read past all of our code."""
        client = self.bigquery(project)
        config = bigquery.QueryJobConfig(use_query_cache=False)
        if dataset:
            config.default_dataset = f"{client.project}.{dataset}"
        try:
            return [dict(row) for row in client.query_and_wait(sql, job_config=config, retry=Retry(timeout=30))]
        finally:
            client.close()

    def logs(self) -> dict[str, str]:
        """The logs of all processes so far."""
        return {path.name: path.read_text(errors="replace") for path in sorted(Path(self.logs_dir).glob("*.log*"))}

    def figure(self, service: str, name: str, *labels: str) -> float:
        """What a process says of one figure to Prometheus, summed over the series that have all labels (``a="b"``)."""
        lines = httpx.get(self.metrics[service], timeout=30, verify=NO_CERTIFICATES).text.splitlines()
        found = (line.rpartition(" ") for line in lines if line.startswith(name))
        return sum(float(value) for series, _, value in found if all(label in series for label in labels))

    def healthy(self) -> bool:
        """True if the gateway says that all services are."""
        try:
            return httpx.get(f"{self.rest}/health", timeout=5, verify=NO_CERTIFICATES).status_code == 200
        except httpx.HTTPError:
            return False

    def onboard(self, tenant_id: str = "", plan: str = "SCALE") -> Tenant:
        """Onboards a new tenant (a fresh id unless one is given)."""
        tenant_id = tenant_id or f"t_{uuid.uuid4().hex[:12]}"
        body = {
            "tenant_id": tenant_id,
            "company_name": f"Company {tenant_id}",
            "admin_email": f"{tenant_id}@example.com",
            "subscription_plan": plan,
        }
        with self.admin() as http:
            answer = http.post("/api/v1/tenants/onboard", json=body)
        assert answer.status_code == 200, answer.text
        return Tenant(self, tenant_id, answer.json()["api_key"])


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer of a stack, with its ADMIN key."""

    stack: Stack
    tenant_id: str
    key: str = field(repr=False)

    def call(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, expect: int = 200
    ) -> dict[str, Any]:
        """Calls the REST API below ``/api/v1`` and returns the answer; fails unless it has the status expected."""
        with self.stack.http(self.key, **(headers or {})) as http:
            answer = http.request(method, f"/api/v1{path}", json=body)
        assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        result: dict[str, Any] = answer.json()
        return result

    def store_credential(self, *, project_id: str = "", source: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Stores the sample credential, or the same key for another project's export table."""
        body = json.loads(json.dumps(self.stack.sample_credential))
        if project_id:
            body["credentials"]["project_id"] = project_id
            body.pop("source", None)
        if source is not None:
            body["source"] = dict(source)
        return self.call("POST", f"/tenants/{self.tenant_id}/credentials", body)

    def start(self, *, idempotency_key: str = "", user_id: str = "", expect: int = 200, **body: Any) -> dict[str, Any]:
        """Asks for a run of ``gcp/cost/billing``."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        headers |= {"X-User-ID": user_id} if user_id else {}
        path = f"/pipelines/run/{self.tenant_id}/gcp/cost/billing"
        return self.call("POST", path, body, headers=headers, expect=expect)

    def read_run(self, run_id: str) -> dict[str, Any]:
        """Reads a run."""
        return self.call("GET", f"/pipelines/runs/{self.tenant_id}/{run_id}")

    def wait(self, run_id: str, *, timeout: float = 120) -> dict[str, Any]:
        """Returns the run once it has ended; watches it, because asking in a loop is work for the warehouse."""
        with self.stack.http(self.key) as http, contextlib.suppress(httpx.HTTPError):
            path = f"/api/v1/pipelines/runs/{self.tenant_id}/{run_id}:watch"
            with http.stream("GET", path, timeout=timeout) as answer:
                for _ in answer.iter_lines():
                    pass
        return until(
            lambda: self.read_run(run_id),
            lambda run: run["status"] in ENDED,
            timeout=timeout,
            what=f"run {run_id} ends",
            pause=1.0,
        )

    def run(self, *, timeout: float = 120, **body: Any) -> dict[str, Any]:
        """Runs ``gcp/cost/billing`` to its end, which must be a good one."""
        ended = self.wait(self.start(**body)["pipeline_logging_id"], timeout=timeout)
        assert ended["status"] == "COMPLETED", ended
        return ended

    def usage(self) -> dict[str, Any]:
        """What the tenant used of its quotas."""
        return self.call("GET", f"/tenants/{self.tenant_id}/usage")

    def stored(self, date: str) -> list[dict[str, Any]]:
        """The published rows of a date, all columns but the run's id, as texts in a fixed order."""
        sql = f"SELECT * EXCEPT (pipeline_logging_id) FROM gcp_cost_billing WHERE usage_date = DATE '{date}'"
        rows = self.stack.rows(sql, dataset=self.tenant_id)
        return sorted(({name: str(value) for name, value in row.items()} for row in rows), key=str)

    def totals(self, date: str) -> dict[str, Totals]:
        """What is stored for a date, by currency."""
        sql = (
            "SELECT currency, COUNT(*) AS row_count, SUM(cost) AS cost, SUM(credits_total) AS credits, "
            f"SUM(net_cost) AS net FROM gcp_cost_billing WHERE usage_date = DATE '{date}' GROUP BY currency"
        )
        return {row.pop("currency"): Totals(**row) for row in self.stack.rows(sql, dataset=self.tenant_id)}


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows and money of one date and currency, exact."""

    row_count: int
    cost: Decimal
    credits: Decimal
    net: Decimal


def source_totals(stack: Stack, project: str, dataset: str, table: str, date: str) -> dict[str, Totals]:
    """What the customer's export holds for a usage date, by currency: summed at the source, by none of our code."""
    sql = f"""
        SELECT s.currency AS currency, COUNT(*) AS row_count, SUM(CAST(s.cost AS NUMERIC)) AS cost,
          SUM(IFNULL((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(s.credits) AS c), NUMERIC '0')) AS credits
        FROM `{project}.{dataset}.{table}` AS s
        WHERE s.usage_start_time >= TIMESTAMP '{date} 00:00:00+00'
          AND s.usage_start_time < TIMESTAMP_ADD(TIMESTAMP '{date} 00:00:00+00', INTERVAL 1 DAY)
        GROUP BY currency"""
    rows = stack.rows(sql, project=project)
    return {
        row["currency"]: Totals(row["row_count"], row["cost"], row["credits"], row["cost"] + row["credits"])
        for row in rows
    }


def until[T](ask: Callable[[], T], good: Callable[[T], bool], *, timeout: float, what: str, pause: float = 0.1) -> T:
    """Asks again and again until the answer is good; ``AssertionError`` with the last one after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = ask()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s until {what}; now: {answer}"
        time.sleep(pause)


def command(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m deploy.local.stack`` on a data folder; the caller's own settings are left out."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "deploy.local.stack", *arguments],
        cwd=ROOT,
        env={**kept, "DATA_DIR": str(data_dir), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def running(data_dir: Path, **environment: str) -> Iterator[Stack]:
    """A stack of its own on a free port, stopped at the end; its folder goes too, unless the tests in it failed."""
    try:
        started = command(data_dir, "up", PORT=str(free_port()), **environment)
        assert started.returncode == 0, started.stdout + started.stderr
        yield Stack.load(data_dir / "stack.json")
    finally:
        stopped = command(data_dir, "down")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    shutil.rmtree(data_dir, ignore_errors=True)
