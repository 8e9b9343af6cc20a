"""What must be true at the end, and what must be true all the time; read from the store, past all of our code.

The numbers are those of the list in the README: one run per occurrence (I1), never more live leases than the plan
allows (I2), counters equal reservations (I3), an end stays an end (I4), nothing is stranded (I5), no schedule is left
behind (I6), what is published equals its source (I7), nobody sees another's (I8), what can run runs (I9), no more
attempts than allowed (I10). I4 and I8 are judged while it happens, by ``load``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import bigquery

from tests.chaos.load import Client, Customer, Jobs, RunFacts
from tests.chaos.source import OUT_OF_REACH, Source, count
from tests.support.stack import ENDED, Stack, Totals

_READ_SECONDS = 20.0
_READERS = 8
_EVERY_SECONDS = 3.0
_GRANTS = "SELECT tenant_id, concurrent_limit, grants FROM tenant_usage_quotas"
_GOING = "SELECT COUNT(*) AS n FROM x_meta_pipeline_runs WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')"
_TWICE = (
    "SELECT config_id, scheduled_for, COUNT(*) AS n FROM scheduled_pipeline_runs "
    "WHERE `trigger` = 'SCHEDULED' AND state != 'SKIPPED' "
    "GROUP BY config_id, scheduled_for, start_date HAVING COUNT(*) > 1"
)
_OWNERS = (
    "SELECT usage_date, pipeline_logging_id, COUNT(*) AS n FROM gcp_cost_billing "
    "WHERE usage_date IS NOT NULL GROUP BY 1, 2"
)

# What makes a row one thing, by table.
_ONCE_CENTRAL = {
    "scheduled_pipeline_runs": "run_id",
    "pipeline_execution_queue": "run_id",
    "tenant_pipeline_configs": "config_id",
    "tenant_api_keys": "api_key_id",
}
_ONCE = {
    "x_meta_pipeline_runs": "pipeline_logging_id, attempt",
    "x_meta_step_logs": "pipeline_logging_id, attempt, step",
    "x_meta_dq_results": "pipeline_logging_id, attempt, check_name, dimension",
}


def read(
    client: bigquery.Client, sql: str, dataset: str = "tenants", *, patience: float = 90.0
) -> list[dict[str, Any]]:
    """Rows of a query; asked again for ``patience`` seconds while the store is out of reach."""
    config = bigquery.QueryJobConfig(use_query_cache=False, default_dataset=f"{client.project}.{dataset}")
    deadline = time.monotonic() + patience
    while True:
        try:
            rows = client.query_and_wait(sql, job_config=config, retry=None, job_retry=None, api_timeout=_READ_SECONDS)
            return [dict(row) for row in rows]
        except OUT_OF_REACH:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _more_than_once(client: bigquery.Client, table: str, key: str, dataset: str = "tenants") -> list[dict[str, Any]]:
    columns = ", ".join(f"t.{name}" for name in key.split(", "))
    sql = f"SELECT {columns}, COUNT(*) AS n FROM {table} AS t GROUP BY {columns} HAVING COUNT(*) > 1"
    return read(client, sql, dataset)


class Sampler:
    """Looks at the quota rows and at one tenant's runs, again and again, while everything is harmed."""

    def __init__(self, stack: Stack, customers: Sequence[Customer]) -> None:
        self.samples = 0
        self.most: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._stack = stack
        self._customers = customers
        self._ended: dict[tuple[str, int], tuple[str, Any]] = {}
        self._turn = 0

    async def live(self) -> None:
        """Samples until it is cancelled."""
        client = self._stack.bigquery()
        try:
            while True:
                # A dead emulator is one of the faults.
                try:
                    await asyncio.to_thread(self.sample, client)
                except OUT_OF_REACH:
                    await asyncio.sleep(1)
                await asyncio.sleep(_EVERY_SECONDS)
        finally:
            client.close()

    def sample(self, client: bigquery.Client) -> None:
        """I2 over all tenants, I4 over one."""
        self.quotas(client)
        known = [each for each in self._customers if each.key]
        if known:
            self._turn += 1
            self.look(client, known[self._turn % len(known)].tenant_id)
        self.samples += 1

    def quotas(self, client: bigquery.Client) -> None:
        """I2, over all tenants."""
        for row in read(client, _GRANTS, patience=0):
            now = datetime.now(UTC)
            live = [g for g in json.loads(row["grants"] or "[]") if g["state"] == "LIVE" and _time(g["until"]) > now]
            self.most[row["tenant_id"]] = max(self.most[row["tenant_id"]], len(live))
            if len(live) > row["concurrent_limit"]:
                self.wrong.append(f"I2: {row['tenant_id']} has {len(live)} live leases of {row['concurrent_limit']}")

    def look(self, client: bigquery.Client, tenant_id: str) -> None:
        """I4, over one tenant."""
        sql = "SELECT pipeline_logging_id, attempt, status, outcome, rows_published FROM x_meta_pipeline_runs"
        for row in read(client, sql, tenant_id, patience=0):
            key = row["pipeline_logging_id"], row["attempt"]
            now = (row["status"], row["outcome"], row["rows_published"])
            if self._ended.get(key, now) != now:
                self.wrong.append(f"I4: attempt {key} of {tenant_id} was {self._ended[key]} and is {now}")
            if row["status"] in ENDED:
                self._ended[key] = now


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


async def drained(stack: Stack, customers: Iterable[Customer], jobs: Jobs, *, seconds: float) -> str:
    """Works on the queue until nothing runs, waits or lives; what was left after ``seconds``, or nothing."""
    deadline = asyncio.get_running_loop().time() + seconds
    client = stack.bigquery()
    names = [each.tenant_id for each in customers if each.key]
    try:
        while True:
            await jobs.trigger()
            await jobs.process_queue(20)
            left = await asyncio.to_thread(_left, client, names)
            if not left or asyncio.get_running_loop().time() > deadline:
                return left
            await asyncio.sleep(2)
    finally:
        client.close()


def _left(client: bigquery.Client, tenants: Sequence[str]) -> str:
    queue = read(client, "SELECT state, reason, COUNT(*) AS n FROM pipeline_execution_queue GROUP BY state, reason")
    waiting = {f"{r['state']} {r['reason']}": r["n"] for r in queue if not _at_rest(r)}
    live = sum(grant["state"] == "LIVE" for row in read(client, _GRANTS) for grant in json.loads(row["grants"] or "[]"))
    going = {name: found for name in tenants if (found := read(client, _GOING, name)[0]["n"])}
    parts = [
        f"queue {waiting}" if waiting else "",
        f"{live} live grants" if live else "",
        f"runs {going}" if going else "",
    ]
    return ", ".join(filter(None, parts))


def _at_rest(row: Mapping[str, Any]) -> bool:
    """True for rows that wait for what will not come today: a new quota, a person."""
    return row["state"] in ("DEAD_LETTER", "DEFERRED")


async def check(
    stack: Stack, customers: Sequence[Customer], client: Client, source: Source, held: Counter[str]
) -> list[str]:
    """Everything that is wrong at the end; ``held`` counts what was held against the tables."""
    wrong: list[str] = []
    answer = await client.call("invariants", "GET", "/scheduler/invariants", key=stack.admin_api_key)
    if not answer.ok or answer.body["violation_count"]:
        wrong.append(f"the scheduler's own invariants: {answer.body}")
    acknowledged = [(each, run) for each in customers for run in each.runs.values() if run.acknowledged]
    held["runs read again"] = len(acknowledged)
    gate = asyncio.Semaphore(_READERS)

    async def readable(customer: Customer, run: RunFacts) -> bool:
        async with gate:
            return (await customer.read(run)).ok

    read_again = await asyncio.gather(*(readable(customer, run) for customer, run in acknowledged))
    wrong += [
        f"run {run.run_id} of {customer.tenant_id} was acknowledged and cannot be read"
        for (customer, run), found in zip(acknowledged, read_again, strict=True)
        if not found
    ]
    return wrong + await asyncio.to_thread(tables, stack, customers, source, held)


def tables(stack: Stack, customers: Sequence[Customer], source: Source, held: Counter[str]) -> list[str]:
    """Everything that is wrong in the tables."""
    store = stack.bigquery()
    try:
        wrong = _central(store, customers, held)
        for customer in customers:
            wrong += _tenant(store, customer, source, held)
        return wrong
    finally:
        store.close()


def _central(store: bigquery.Client, customers: Sequence[Customer], held: Counter[str]) -> list[str]:
    wrong: list[str] = []
    mine = {each.tenant_id: each for each in customers}
    for table in ("tenant_profiles", "tenant_subscriptions", "tenant_usage_quotas"):
        counts = {
            r["tenant_id"]: r["n"]
            for r in read(store, f"SELECT tenant_id, COUNT(*) AS n FROM {table} GROUP BY tenant_id")
        }
        if counts != dict.fromkeys(mine, 1):
            wrong.append(f"{table} does not hold each tenant once: {counts}")
    for row in read(store, _TWICE):
        wrong.append(f"I1: {row['n']} runs of one occurrence: {row}")
    for table, key in _ONCE_CENTRAL.items():
        for row in _more_than_once(store, table, key):
            wrong.append(f"I1: {table} has {row['n']} rows of {row}")
    late = datetime.now(UTC) - timedelta(minutes=2)
    configs = {
        r["config_id"]: r
        for r in read(
            store, "SELECT config_id, tenant_id, is_active, next_run_time, deleted_at FROM tenant_pipeline_configs"
        )
    }
    for row in configs.values():
        if row["is_active"] and (row["next_run_time"] is None or row["next_run_time"] < late):
            wrong.append(f"I6: schedule {row['config_id']} is left behind: {row['next_run_time']}")
    held["schedules"] = len(configs)
    held["occurrences"] = read(store, "SELECT COUNT(*) AS n FROM scheduled_pipeline_runs")[0]["n"]
    for customer in customers:
        held["acknowledged changes"] += (
            len(customer.schedules) + len(customer.backfills) + len(customer.keys) + bool(customer.credential_id)
        )
        for schedule in customer.schedules.values():
            row = configs.get(schedule.config_id)
            if row is None or row["tenant_id"] != customer.tenant_id:
                wrong.append(f"schedule {schedule.config_id} of {customer.tenant_id} was acknowledged and is not there")
            elif schedule.active not in (None, row["is_active"]):
                wrong.append(f"schedule {schedule.config_id} was acknowledged as active={schedule.active}")
    filled = {r["backfill_id"] for r in read(store, "SELECT backfill_id FROM scheduler_backfills")}
    stored = {r["api_key_id"]: r["state"] for r in read(store, "SELECT api_key_id, state FROM tenant_api_keys")}
    credentials: dict[str, list[dict[str, Any]]] = {}
    for row in read(store, "SELECT credential_id, tenant_id, status, source FROM tenant_cloud_credentials"):
        credentials.setdefault(row["tenant_id"], []).append(row)
    for customer in customers:
        if lost := customer.backfills - filled:
            wrong.append(f"backfills of {customer.tenant_id} were acknowledged and are not there: {lost}")
        if lost := {key for key in customer.keys if stored.get(key) != "ACTIVE"}:
            wrong.append(f"keys of {customer.tenant_id} were acknowledged and are not there: {lost}")
        rows = credentials.get(customer.tenant_id, [])
        sources = [json.loads(row["source"] or "{}") for row in rows]
        if [row["credential_id"] for row in rows] != [customer.credential_id] or sources[0] not in customer.sources:
            wrong.append(
                f"{customer.tenant_id} has credentials {rows}, not {customer.credential_id} {customer.sources}"
            )
    for row in read(
        store, "SELECT run_id, retry_count, max_retries FROM scheduled_pipeline_runs WHERE retry_count > max_retries"
    ):
        wrong.append(f"I10: run {row['run_id']} was retried {row['retry_count']} times of {row['max_retries']}")
    for row in read(store, "SELECT tenant_id, run_id, state, reason, error FROM pipeline_execution_queue"):
        if not _at_rest(row):
            wrong.append(f"I5, I9: run {row['run_id']} is left in the queue, {row['state']} {row['reason']}")
    return wrong


def _tenant(store: bigquery.Client, customer: Customer, source: Source, held: Counter[str]) -> list[str]:
    wrong: list[str] = []
    tenant_id = customer.tenant_id
    [quota] = read(store, f"SELECT * FROM tenant_usage_quotas WHERE tenant_id = '{tenant_id}'")
    grants = {(g["run_id"], g["attempt"]): g for g in json.loads(quota["grants"] or "[]")}
    runs = {
        (r["pipeline_logging_id"], r["attempt"]): r
        for r in read(store, "SELECT * FROM x_meta_pipeline_runs", tenant_id)
    }
    held["attempts"] += len(runs)
    for table, key in _ONCE.items():
        for row in _more_than_once(store, table, key, tenant_id):
            wrong.append(f"I1: {tenant_id}.{table} has {row['n']} rows of {row}")
    if alive := [key for key, grant in grants.items() if grant["state"] == "LIVE"]:
        wrong.append(f"I5: grants of {tenant_id} live on: {alive}")
    counted = [grant for grant in grants.values() if grant["state"] != "REFUNDED"]
    today = [grant for grant in counted if grant["day"] == str(quota["day"])]
    if len(today) != quota["pipelines_run_today"] or len(counted) != quota["pipelines_run_month"]:
        wrong.append(f"I3: {tenant_id} counts {quota['pipelines_run_today']} and has {len(today)} grants of today")
    charged = {key for key, grant in grants.items() if grant["state"] != "REFUNDED"}
    if charged != set(runs):
        wrong.append(
            f"I3: {tenant_id} was charged for {charged - set(runs)} without a run and not for {set(runs) - charged}"
        )
    for key, run in runs.items():
        if run["status"] not in ENDED:
            wrong.append(f"I5: attempt {key} of {tenant_id} is {run['status']}")
    for run_id, facts in customer.runs.items():
        attempts = [run for key, run in runs.items() if key[0] == run_id]
        if facts.acknowledged and not attempts:
            wrong.append(f"run {run_id} of {tenant_id} was acknowledged and has no row")
        if len(attempts) > 1:
            wrong.append(f"I10: run {run_id} of {tenant_id}, asked for by hand, has {len(attempts)} attempts")
        for run in attempts:
            what, rows = run["outcome"], run["rows_published"] or 0
            if run["status"] == "COMPLETED" and what == "PUBLISHED" and not _may_be(rows, facts, source):
                wrong.append(
                    f"I7: run {run_id} of {tenant_id} published {rows} rows of {facts.date}, whose source had "
                    f"{facts.least} when it was asked for, and {sorted(source.counts(facts.date))} in all"
                )
            if facts.final and facts.final != (run["status"], what or facts.final[1], rows):
                wrong.append(f"I4: run {run_id} of {tenant_id} was said to be {facts.final} and is {run}")
    wrong += _data(store, customer, runs, source, held)
    return wrong


def _may_be(rows: int, facts: RunFacts, source: Source) -> bool:
    return rows >= facts.least and rows in source.counts(facts.date)


def _data(
    store: bigquery.Client,
    customer: Customer,
    runs: Mapping[tuple[str, int], Mapping[str, Any]],
    source: Source,
    held: Counter[str],
) -> list[str]:
    """I7: each date is one state of its source, whole, all of one run that says so, no older than was promised."""
    wrong, tenant_id = [], customer.tenant_id
    sql = (
        "SELECT usage_date, currency, COUNT(*) AS row_count, SUM(cost) AS cost, SUM(credits_total) AS credits, "
        "SUM(net_cost) AS net FROM gcp_cost_billing WHERE usage_date IS NOT NULL GROUP BY usage_date, currency"
    )
    found: dict[str, dict[str, Totals]] = {}
    for row in read(store, sql, tenant_id):
        day, currency = str(row.pop("usage_date")), row.pop("currency")
        found.setdefault(day, {})[currency] = Totals(**row)
    promised: dict[str, int] = {}
    for (run_id, _), run in runs.items():
        if run["status"] == "COMPLETED" and (facts := customer.runs.get(run_id)):
            promised[facts.date] = max(promised.get(facts.date, 0), facts.least)
    published = {
        str(run["start_date"]): run
        for run in runs.values()
        if run["status"] == "COMPLETED" and run["outcome"] == "PUBLISHED" and run["start_date"] == run["end_date"]
    }
    for date, totals in found.items():
        held["dates"] += 1
        held["rows"] += count(totals)
        if totals not in source.states.get(date, ()):
            wrong.append(f"I7: {tenant_id} {date} holds {totals}, its source never did: {source.states.get(date)}")
    for date, least in promised.items():
        if count(found.get(date, {})) < least:
            wrong.append(f"I7: {tenant_id} {date} holds {found.get(date)}, older than the {least} rows of a later run")
    if missing := set(published) - set(found):
        wrong.append(f"I7: {tenant_id} was told that {missing} is published, and there are no rows")
    owners: dict[str, list[str]] = {}
    for row in read(store, _OWNERS, tenant_id):
        owners.setdefault(str(row["usage_date"]), []).append(row["pipeline_logging_id"])
    completed = {key[0] for key, run in runs.items() if run["status"] == "COMPLETED" and run["outcome"] == "PUBLISHED"}
    for date, ids in owners.items():
        if len(ids) != 1 or ids[0] not in completed:
            wrong.append(f"I7: rows of {tenant_id} {date} are of {ids}, of which completed: {completed & set(ids)}")
    sql = (
        "SELECT x_ChargeDate AS day, BillingCurrency AS currency, SUM(BilledCost) AS net, "
        "STRING_AGG(DISTINCT x_PipelineLoggingId) AS runs FROM focus_cost_and_usage GROUP BY 1, 2"
    )
    focus = {(str(row["day"]), row["currency"]): row for row in read(store, sql, tenant_id)}
    nets = {(date, currency): total.net for date, totals in found.items() for currency, total in totals.items()}
    if {key: row["net"] for key, row in focus.items()} != nets:
        wrong.append(f"I7: {tenant_id} has in FOCUS {focus}, and {nets} beside it")
    for (date, _), row in focus.items():
        if [row["runs"]] != owners.get(date):
            wrong.append(f"I7: {tenant_id} {date} has FOCUS rows of {row['runs']} and others of {owners.get(date)}")
    return wrong
