"""Many reservations on the real store: by the service's group commit, and by a twin with its own statements."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from libs import errors
from libs.bigquery import Sql, Warehouse, build_client, rows_param
from libs.ledger import Ledger
from libs.tenancy import CENTRAL_DATASET
from services.tenant.main import utc_now
from services.tenant.quotas import Plan, QuotaRow, Quotas, Reserve, decide
from services.tenant.store import BigQueryQuotaStore, quota_table, quota_to_json

INSERT = Sql.load("services.tenant", "sql/insert_quota.sql")
READ, REPLACE = "services.tenant/sql/read_quotas.sql", "services.tenant/sql/replace_quotas.sql"

type ReserveOne = Callable[[str, Reserve], Awaitable[object]]


@dataclass(frozen=True)
class Ask:
    """One reservation, and which replica it goes to."""

    replica: int
    tenant_id: str
    request: Reserve


@dataclass(frozen=True)
class Load:
    """How a load went: what was granted and refused, and what it took."""

    granted: Counter[str]
    refused: Counter[str]
    statements: Counter[str]
    seconds: float
    latencies: Sequence[float]


class Replica:
    """What one tenant process has: a warehouse, a ledger, the use case."""

    def __init__(self, client_project: str, endpoint: str) -> None:
        self.warehouse = Warehouse(build_client(client_project, endpoint=endpoint))
        table = quota_table(self.warehouse)
        self.ledger = Ledger(table, decide, now=utc_now)
        self.quotas = Quotas(self.ledger, BigQueryQuotaStore(self.warehouse, table), now=utc_now)
        self.naive = Naive(self.warehouse)

    async def close(self) -> None:
        await self.ledger.close()
        self.warehouse.close()


class Naive:
    """The twin: every request reads its row and swaps it in a statement of its own, until it wins."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._table = quota_table(warehouse)

    async def reserve(self, tenant_id: str, request: Reserve) -> object:
        for attempt in range(100):
            row = (await self._table.read([tenant_id])).get(tenant_id)
            after, answer = decide(row, request, utc_now())
            assert after is not None
            if after == row or await self._table.replace([after]):
                return answer
            await asyncio.sleep(random.uniform(0, min(2.0, 0.05 * 2**attempt)))
        raise errors.Unavailable("STORE_BUSY", "Lost a hundred races.")


async def plant(warehouse: Warehouse, rows: Sequence[QuotaRow]) -> None:
    """Inserts quota rows, in one statement."""
    params = {"rows": rows_param(quota_to_json(row) for row in rows)}
    await warehouse.execute(INSERT, dataset=CENTRAL_DATASET, params=params)


def tenants(count: int, prefix: str, plan: Plan = Plan.PROFESSIONAL) -> list[QuotaRow]:
    """Rows of new tenants."""
    return [QuotaRow.fresh(f"{prefix}_{number:04d}", plan, utc_now()) for number in range(count)]


def asks(rows: Sequence[QuotaRow], count: int, replicas: int, *, twice: float = 0.0, seed: int = 1) -> list[Ask]:
    """Reservations spread over tenants and replicas; a share of them is sent to another replica as well."""
    dice = random.Random(seed)
    made = []
    for number in range(count):
        request = Reserve(f"run-{number}", 1, "bench")
        replica = dice.randrange(replicas)
        made.append(Ask(replica, rows[number % len(rows)].tenant_id, request))
        if dice.random() < twice:
            made.append(Ask((replica + 1) % replicas, rows[number % len(rows)].tenant_id, request))
    dice.shuffle(made)
    return made


async def run_load(
    replicas: Sequence[Replica], wanted: Sequence[Ask], reserve: Callable[[Replica], ReserveOne]
) -> Load:
    """Sends all at once; a request that was too late for its deadline is sent again, as a client would."""
    granted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    latencies: list[float] = []
    seen: set[tuple[str, str]] = set()
    before = [Counter(replica.warehouse.statements) for replica in replicas]

    async def one(ask: Ask) -> None:
        began = time.perf_counter()
        while True:
            try:
                await reserve(replicas[ask.replica])(ask.tenant_id, ask.request)
            except errors.Unavailable:
                continue
            except errors.ResourceExhausted as full:
                refused[full.reason] += 1
            else:
                if (ask.tenant_id, ask.request.run_id) not in seen:
                    seen.add((ask.tenant_id, ask.request.run_id))
                    granted[ask.tenant_id] += 1
            latencies.append(time.perf_counter() - began)
            return

    began = time.perf_counter()
    await asyncio.gather(*(one(ask) for ask in wanted))
    seconds = time.perf_counter() - began
    statements: Counter[str] = Counter()
    for replica, earlier in zip(replicas, before, strict=True):
        statements.update(replica.warehouse.statements - earlier)
    return Load(granted, refused, statements, seconds, sorted(latencies))
