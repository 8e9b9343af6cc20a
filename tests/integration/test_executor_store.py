"""Rows of runs on the emulator: made once, withdrawn for good, ended once, published through the fence or not."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from libs import errors, tables
from libs.bigquery import Sql, Value, Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.domain import (
    OWNER_LOST,
    Check,
    Ending,
    Grant,
    GrantState,
    Key,
    Outcome,
    Renewal,
    Run,
    RunError,
    RunFilter,
    RunStatus,
    Spec,
    Step,
    StepStatus,
    Trigger,
)
from services.pipeline_executor.leases import Lease
from services.pipeline_executor.publisher import Publisher
from services.pipeline_executor.reaper import Reaper
from services.pipeline_executor.store import BigQueryRunStore

ACME = TenantId("acme")
NOW = datetime(2025, 11, 17, 12, 0, 0, 250_000, tzinfo=UTC)
PUBLISH = Sql(
    "tests/publish.sql",
    """
    BEGIN TRANSACTION;
    UPDATE x_meta_pipeline_runs AS r
    SET status = 'COMPLETED', outcome = 'PUBLISHED', rows_published = 1, end_time = @now
    WHERE r.pipeline_logging_id = @run AND r.attempt = @attempt AND r.status = 'RUNNING';
    ASSERT @@row_count = 1 AS 'assert:RUN_FENCED';
    DELETE FROM facts AS f WHERE f.usage_date = @day;
    INSERT INTO facts (usage_date, run) SELECT @day, @run;
    COMMIT TRANSACTION;
    """,
)


def utc_now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def tenant(warehouse: Warehouse) -> Warehouse:
    async def prepare() -> None:
        await warehouse.create_dataset(ACME)
        await warehouse.ensure_tables(ACME, tables.group("x_meta"))
        await warehouse.execute(
            Sql("tests/facts.sql", "CREATE TABLE facts (usage_date DATE, run STRING)"), dataset=ACME
        )

    asyncio.run(prepare())
    return warehouse


@pytest.fixture
def store(tenant: Warehouse) -> BigQueryRunStore:
    return BigQueryRunStore(tenant, tenant)


def made(**changes: Any) -> Run:
    run = Run(
        key=Key(ACME, str(uuid.uuid4()), 1),
        spec=Spec("gcp", "cost", "billing", date(2025, 11, 16), date(2025, 11, 16), {"source": {"table_id": "it's"}}),
        status=RunStatus.RUNNING,
        trigger=Trigger.SCHEDULED,
        owner="o@127.0.0.1:1",
        fingerprint="f",
        start_time=NOW,
        user_id="ada",
        config_id="c1",
        request_id="r1",
        reservation_day=date(2025, 11, 17),
    )
    return replace(run, **changes)


async def read(store: BigQueryRunStore, key: Key) -> Run:
    [run] = [run for run in await store.attempts(ACME, [key.run_id]) if run.key == key]
    return run


def params(key: Key) -> Mapping[str, Value]:
    return {"run": key.run_id, "attempt": key.attempt, "now": utc_now(), "day": date(2025, 11, 16)}


async def facts(tenant: Warehouse, run_id: str) -> int:
    sql = Sql("tests/count.sql", "SELECT COUNT(*) AS n FROM facts AS f WHERE f.run = @run")
    return int((await tenant.query(sql, dataset=ACME, params={"run": run_id}))[0]["n"])


# ---------------------------------------------------------------- rows


async def test_a_row_is_read_as_it_was_made(store: BigQueryRunStore) -> None:
    for run in (made(), made(user_id=None, config_id="", request_id="", reservation_day=None)):
        assert await store.insert(run)
        assert await read(store, run.key) == run


async def test_inserted_again_it_is_there_once(store: BigQueryRunStore) -> None:
    run = made()
    assert await asyncio.gather(*(store.insert(run) for _ in range(4))) == [True] * 4
    assert len(await store.attempts(ACME, [run.key.run_id])) == 1


async def test_withdrawn_it_never_comes(store: BigQueryRunStore) -> None:
    run = made()
    assert await store.withdraw(run.key)
    assert not await store.insert(run)
    assert await store.withdraw(run.key)
    assert await store.attempts(ACME, [run.key.run_id]) == []


async def test_withdrawn_too_late_it_stays(store: BigQueryRunStore) -> None:
    run = made()
    assert await store.insert(run)
    assert not await store.withdraw(run.key)
    assert await read(store, run.key) == run


async def test_of_an_insert_and_a_withdrawal_at_once_exactly_one_takes_place(store: BigQueryRunStore) -> None:
    for run in [made() for _ in range(6)]:
        inserted, withdrawn = await asyncio.gather(store.insert(run), store.withdraw(run.key))
        assert inserted != withdrawn
        assert len(await store.attempts(ACME, [run.key.run_id])) == (1 if inserted else 0)


async def test_a_tenant_without_a_dataset_is_not_found(store: BigQueryRunStore) -> None:
    for call in (store.attempts(TenantId("nobody"), ["x"]), store.insert(made(key=Key(TenantId("nobody"), "x", 1)))):
        with pytest.raises(errors.NotFound) as refusal:
            await call
        assert refusal.value.reason == "TENANT_NOT_FOUND"


async def test_ended_it_never_changes_again(store: BigQueryRunStore) -> None:
    run, later = made(), NOW + timedelta(minutes=1)
    await store.insert(run)
    failure = RunError("SOURCE_NOT_FOUND", "Name 'the' \"table\".\n", False)
    ending = Ending(key=run.key, status=RunStatus.FAILED, end_time=later, error=failure)
    assert await store.end(ACME, [ending]) == 1
    done = await read(store, run.key)
    assert (done.status, done.error, done.end_time) == (RunStatus.FAILED, failure, later)
    again = Ending(key=run.key, status=RunStatus.COMPLETED, end_time=utc_now(), outcome=Outcome.NO_DATA)
    assert await store.end(ACME, [again]) == 0
    assert not await store.cancel(run.key, utc_now())
    with pytest.raises(errors.Aborted) as refusal:
        await store.publish(run.key, PUBLISH, params(run.key), 30)
    assert refusal.value.reason == "RUN_FENCED"
    assert await read(store, run.key) == done


async def test_one_statement_ends_many_each_in_its_way(store: BigQueryRunStore) -> None:
    plain, told, reaped, no_data = (made() for _ in range(4))
    for run in (plain, told, reaped, no_data):
        await store.insert(run)
    assert await store.cancel(told.key, utc_now())
    assert await store.cancel(reaped.key, utc_now())
    later = NOW + timedelta(minutes=1)
    lost = Ending(key=plain.key, status=RunStatus.FAILED, end_time=later, error=OWNER_LOST)
    endings = [
        lost,
        replace(lost, key=told.key),
        replace(lost, key=reaped.key, if_cancelling=RunStatus.FAILED),
        Ending(key=no_data.key, status=RunStatus.COMPLETED, end_time=later, outcome=Outcome.NO_DATA),
    ]
    assert await store.end(ACME, endings) == 4
    rows = {run.key: await read(store, run.key) for run in (plain, told, reaped, no_data)}
    assert (rows[plain.key].status, rows[plain.key].error) == (RunStatus.FAILED, OWNER_LOST)
    assert (rows[told.key].status, rows[told.key].error) == (RunStatus.CANCELLED, None)
    assert (rows[reaped.key].status, rows[reaped.key].error) == (RunStatus.FAILED, OWNER_LOST)
    assert (rows[no_data.key].status, rows[no_data.key].outcome) == (RunStatus.COMPLETED, Outcome.NO_DATA)


# ---------------------------------------------------------------- the fence


async def test_of_a_cancel_and_a_publication_at_once_exactly_one_takes_place(
    store: BigQueryRunStore, tenant: Warehouse
) -> None:
    for run in [made() for _ in range(5)]:
        await store.insert(run)
        publisher = Publisher(run, Lease(run.key, _far(), lambda: None), store, store, asyncio.Lock())
        published, told = await asyncio.gather(
            publisher.publish(PUBLISH, params(run.key)), store.cancel(run.key, utc_now()), return_exceptions=True
        )
        done = await read(store, run.key)
        if told is True:
            assert isinstance(published, errors.Aborted)
            assert published.reason == "RUN_FENCED"
        assert done.status is (RunStatus.CANCELLING if told is True else RunStatus.COMPLETED)
        assert await facts(tenant, run.key.run_id) == (0 if told is True else 1)


async def test_publications_of_one_tenant_from_two_processes_all_come_through(
    store: BigQueryRunStore, tenant: Warehouse
) -> None:
    runs = [made() for _ in range(6)]
    for run in runs:
        await store.insert(run)
    locks = (asyncio.Lock(), asyncio.Lock())
    publishers = [
        Publisher(run, Lease(run.key, _far(), lambda: None), store, store, locks[index % 2])
        for index, run in enumerate(runs)
    ]
    results = await asyncio.gather(*(p.publish(PUBLISH, params(p.run.key)) for p in publishers))
    assert [result.outcome for result in results] == [Outcome.PUBLISHED] * 6
    assert sum([await facts(tenant, run.key.run_id) for run in runs]) == 1


async def test_a_publication_whose_reply_is_lost_is_found_in_the_row(store: BigQueryRunStore) -> None:
    class Lossy:
        async def publish(self, key: Key, sql: Sql, values: Mapping[str, Value], limit_seconds: float) -> None:
            await store.publish(key, sql, values, limit_seconds)
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "Lost.")

    run = made()
    await store.insert(run)
    publisher = Publisher(run, Lease(run.key, _far(), lambda: None), Lossy(), store, asyncio.Lock())
    assert (await publisher.publish(PUBLISH, params(run.key))).rows == 1
    assert (await read(store, run.key)).status is RunStatus.COMPLETED


class OneRound:
    """``Quotas`` that hold some expired grants."""

    def __init__(self, keys: list[Key]) -> None:
        self.grants = [Grant(key, "gone", date(2025, 11, 17), NOW, GrantState.LIVE) for key in keys]
        self.settled: dict[Key, GrantState] = {}

    async def reserve(self, key: Key, owner: str, fingerprint: str) -> Grant:
        raise AssertionError

    async def renew(self, owner: str, keys: Any) -> Renewal:
        raise AssertionError

    async def settle(self, key: Key, state: GrantState) -> None:
        self.settled[key] = state

    async def expired(self, limit: int) -> list[Grant]:
        return self.grants


async def test_the_reaper_settles_each_grant_by_its_row(store: BigQueryRunStore, tenant: Warehouse) -> None:
    running, told, done, missing = (made() for _ in range(4))
    for run in (running, told, done):
        await store.insert(run)
    await store.cancel(told.key, utc_now())
    await store.publish(done.key, PUBLISH, params(done.key), 30)
    nobody = Key(TenantId("nobody"), str(uuid.uuid4()), 1)
    quotas = OneRound([running.key, told.key, done.key, missing.key, nobody])
    before = sum(tenant.statements.values())
    assert await Reaper(quotas, store, now=utc_now).reap() == 5
    assert quotas.settled == {
        running.key: GrantState.REAPED,
        told.key: GrantState.REAPED,
        done.key: GrantState.SETTLED,
        missing.key: GrantState.REFUNDED,
        nobody: GrantState.REFUNDED,
    }
    # Reads and one update for all of a tenant's rows, one statement for the missing one, one read that fails.
    assert sum(tenant.statements.values()) - before <= 6
    for run in (running, told):
        assert (await read(store, run.key)).error == OWNER_LOST
        with pytest.raises(errors.Aborted):
            await store.publish(run.key, PUBLISH, params(run.key), 30)
    assert not await store.insert(missing)


def _far() -> float:
    return asyncio.get_running_loop().time() + 3600


# ---------------------------------------------------------------- lists and logs


async def test_runs_are_listed_newest_first_by_their_newest_attempt(warehouse: Warehouse) -> None:
    other = TenantId("lists")
    await warehouse.create_dataset(other)
    await warehouse.ensure_tables(other, tables.group("x_meta"))
    store = BigQueryRunStore(warehouse, warehouse)
    runs = [
        made(key=Key(other, f"00000000-0000-0000-0000-00000000000{n}", 1), start_time=NOW + timedelta(seconds=n // 2))
        for n in range(6)
    ]
    for run in runs:
        await store.insert(run)
    await store.end(other, [Ending(key=runs[0].key, status=RunStatus.FAILED, end_time=NOW, error=OWNER_LOST)])
    retried = replace(runs[0], key=replace(runs[0].key, attempt=2), start_time=NOW + timedelta(hours=1))
    await store.insert(retried)

    expected = [retried, *reversed(runs[1:])]
    assert await store.list_runs(other, RunFilter(), 10, None) == expected
    shown: list[Run] = []
    while page := await store.list_runs(
        other, RunFilter(), 2, (shown[-1].start_time, shown[-1].key.run_id) if shown else None
    ):
        shown += page
    assert shown == expected
    assert await store.list_runs(other, RunFilter(status=RunStatus.FAILED), 10, None) == []
    assert len(await store.list_runs(other, RunFilter(RunStatus.RUNNING, "gcp", "cost", "billing"), 10, None)) == 6
    assert await store.list_runs(other, RunFilter(template="x"), 10, None) == []


def step(position: int, **changes: Any) -> Step:
    given = Step(
        attempt=1,
        position=position,
        name=f"step{position}",
        type="extract",
        status=StepStatus.COMPLETED,
        tries=1,
        rows=5,
        bytes=7,
        start_time=NOW + timedelta(seconds=1),
        end_time=NOW + timedelta(seconds=2),
        details={"note": "a 'quoted' \"word\"", "n": [1, 2]},
    )
    return replace(given, **changes)


async def test_steps_are_logged_once_in_one_statement_and_read_in_their_order(
    store: BigQueryRunStore, tenant: Warehouse
) -> None:
    run = made()
    failure = RunError("DOWN", "Later.", True)
    never = step(
        2, status=StepStatus.SKIPPED, tries=0, rows=None, bytes=None, start_time=None, end_time=None, details={}
    )
    steps = [step(0), step(1, status=StepStatus.FAILED, error=failure, rows=None), never]
    before = sum(tenant.statements.values())
    await store.append_steps(run, steps)
    assert sum(tenant.statements.values()) - before == 1
    await store.append_steps(run, steps)
    assert await store.steps(run.key.run_id, [run], 10, None) == steps
    assert await store.steps(run.key.run_id, [run], 10, (1, 0)) == steps[1:]
    assert await store.steps(run.key.run_id, [run], 1, None) == steps[:1]
    assert await store.steps(run.key.run_id, [], 1, None) == []


async def test_results_are_logged_once_and_the_last_one_of_a_check_counts(store: BigQueryRunStore) -> None:
    run = made()
    first = Check(
        attempt=1,
        name="cost_equals_source",
        type="equals_source",
        severity="ERROR",
        status="FAIL",
        dimension="EUR",
        expected="12.340",
        actual=None,
        message="Equal.",
        check_time=NOW + timedelta(seconds=1),
    )
    other = replace(first, name="rows", dimension="", status="PASS", actual="3")
    await store.append_checks(run, [first, other])
    await store.append_checks(run, [replace(first, check_time=NOW + timedelta(seconds=9)), other])
    assert await store.checks(run.key.run_id, [run], 10, None) == [first, other]
    mended = replace(first, status="PASS", actual="12.340", check_time=NOW + timedelta(seconds=20))
    await store.append_checks(run, [mended])
    assert await store.checks(run.key.run_id, [run], 10, None) == [mended, other]
    assert await store.checks(run.key.run_id, [run], 10, (1, "cost_equals_source", "EUR")) == [other]
    await store.append_checks(run, [])
