"""Reservations on the emulator from three replicas: exact counts, and statements that grow with batches only."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from convergence.tenant.v1 import tenant_pb2 as pb
from convergence.tenant.v1 import tenant_pb2_grpc as pb_grpc

from libs import errors
from libs.bigquery import Warehouse
from libs.errors import ResourceExhausted
from services.tenant.main import utc_now
from services.tenant.quotas import GrantState, Plan, QuotaRow, Reserve, Settle
from tests.conftest import Emulator
from tests.support import tenant
from tests.support.quota_load import READ, REPLACE, Replica, asks, plant, run_load, tenants


@pytest.fixture
async def replicas(central: Warehouse, bigquery_emulator: Emulator) -> AsyncIterator[list[Replica]]:
    made = [Replica(central.project_id, bigquery_emulator.rest) for _ in range(3)]
    yield made
    for replica in made:
        await replica.close()


async def rows_of(replica: Replica, rows: list[QuotaRow]) -> dict[str, QuotaRow]:
    return dict(await replica.quotas._store.read([row.tenant_id for row in rows]))


async def test_a_starter_at_five_of_six_gets_exactly_one_more(
    central: Warehouse, project_id: str, replicas: list[Replica], tmp_path: Path
) -> None:
    """Three tenant processes, asked by an executor over their internal ports."""
    row = dataclasses.replace(
        QuotaRow.fresh("starter", Plan.STARTER, utc_now()), pipelines_run_today=5, pipelines_run_month=5
    )
    await plant(central, [row])
    before = central.statements[READ]
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(tenant.Replica(tenant.make_settings(tmp_path, project_id), central))
            for _ in range(3)
        ]
        stubs = [process.internal(pb_grpc.TenantQuotaServiceStub) for process in processes]
        outcomes = await asyncio.gather(
            *(
                stubs[n % 3].ReserveRun(
                    pb.ReserveRunRequest(tenant_id="starter", run_id=str(uuid.uuid4()), attempt=1, owner=f"e{n}")
                )
                for n in range(50)
            ),
            return_exceptions=True,
        )
    refused = [outcome for outcome in outcomes if isinstance(outcome, ResourceExhausted)]
    assert len(refused) == 49, [repr(o) for o in outcomes if not isinstance(o, ResourceExhausted)]
    for error in refused:
        assert error.reason == "QUOTA_DAILY_EXCEEDED" and error.retry_after is not None
        assert {item.quota_id for item in error.quota_violations} == {"DAILY_RUNS", "CONCURRENT_RUNS"}
    stored = (await rows_of(replicas[0], [row]))["starter"]
    assert (stored.pipelines_run_today, len(stored.grants)) == (6, 1)
    assert central.statements[READ] - before <= 20, "statements must not grow with requests"


async def test_a_thousand_reservations_over_two_hundred_tenants_are_exact(replicas: list[Replica]) -> None:
    rows = tenants(200, "load")
    await plant(replicas[0].warehouse, rows)
    load = await run_load(replicas, asks(rows, 1_000, 3, twice=0.2), lambda replica: replica.quotas.reserve)
    stored = await rows_of(replicas[0], rows)
    assert set(load.granted.values()) == {3} and len(load.granted) == 200
    assert all(row.pipelines_run_today == len(row.grants) == row.limits.concurrent for row in stored.values())
    assert set(load.refused) == {"QUOTA_CONCURRENT_EXCEEDED"}
    written = load.statements[REPLACE]
    assert load.statements[READ] + written <= 100, load.statements


async def test_what_ends_frees_its_slot_for_exactly_one_other(replicas: list[Replica]) -> None:
    rows = tenants(20, "ending", Plan.STARTER)
    await plant(replicas[0].warehouse, rows)
    await run_load(replicas, asks(rows, 20, 3), lambda replica: replica.quotas.reserve)
    held = {tenant: row.grants[0].run_id for tenant, row in (await rows_of(replicas[0], rows)).items()}
    states = [GrantState.SETTLED, GrantState.REFUNDED, GrantState.REAPED]
    await asyncio.gather(
        *(
            replicas[n % 3].quotas.settle(tenant, Settle(run, 1, states[n // 2 % 3]))
            for n, (tenant, run) in enumerate([*held.items(), *held.items()])
        )
    )
    again = [dataclasses.replace(ask, request=Reserve(f"next-{n}", 1, "me")) for n, ask in enumerate(asks(rows, 60, 3))]
    load = await run_load(replicas, again, lambda replica: replica.quotas.reserve)
    assert set(load.granted.values()) == {1} and len(load.granted) == 20
    for row in (await rows_of(replicas[0], rows)).values():
        charged = [grant for grant in row.grants if grant.state is not GrantState.REFUNDED]
        assert row.pipelines_run_today == row.pipelines_run_month == len(charged)


async def test_lost_replies_of_the_store_double_nothing(replicas: list[Replica]) -> None:
    rows = tenants(20, "lost", Plan.SCALE)
    await plant(replicas[0].warehouse, rows)
    for replica in replicas:
        replica.ledger._table = _Forgetful(replica.ledger._table)
    load = await run_load(replicas, asks(rows, 100, 3, twice=0.3), lambda replica: replica.quotas.reserve)
    assert sum(load.granted.values()) == 100
    for row in (await rows_of(replicas[0], rows)).values():
        assert row.pipelines_run_today == len(row.grants) == 5


async def test_a_table_that_is_out_of_reach_lets_nothing_through(replicas: list[Replica]) -> None:
    replica = replicas[0]
    replica.ledger._table = _Broken()
    with pytest.raises(errors.Unavailable) as refused:
        await replica.ledger.ask("starter", Reserve("run", 1, "me"), deadline=timedelta(milliseconds=300))
    assert not isinstance(refused.value, errors.Ambiguous)


class _Forgetful:
    """Every second write is made, and nobody hears of it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._writes = 0

    async def read(self, keys: Any) -> Any:
        return await self._inner.read(keys)

    async def replace(self, rows: Any) -> bool:
        self._writes += 1
        done: bool = await self._inner.replace(rows)
        return done and self._writes % 2 == 0


class _Broken:
    async def read(self, keys: Any) -> Any:
        raise errors.Unavailable("STORE_UNAVAILABLE", "The store did not answer.")

    async def replace(self, rows: Any) -> bool:
        raise AssertionError("nothing was read")
