"""The engine over steps that do as they are told: order, parallelism, retry, timeout, cancellation, the record."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from libs import errors
from libs.bigquery import TableRef, Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.retry import Retry, pause
from services.pipeline_executor.run_context import (
    Outcome,
    Published,
    RunContext,
    Secret,
    StepEvent,
    StepStatus,
)
from services.pipeline_executor.steps.step import StepConfig, StepContext, StepResult
from services.pipeline_executor.templates import Pipeline, PipelineStep
from tests.support.billing import MemoryJournal

type Behaviour = Callable[[StepContext], Awaitable[StepResult]]
RUN_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


class Doing(StepConfig):
    """Config of a step that runs a function."""

    behaviour: Any


class Does:
    Config: ClassVar[type[StepConfig]] = Doing
    output: ClassVar[type | None] = None

    def __init__(self, config: Doing) -> None:
        self._behaviour: Behaviour = config.behaviour

    async def run(self, context: StepContext) -> StepResult:
        return await self._behaviour(context)


class Dropped:
    """The part of a warehouse that cleaning up needs."""

    def __init__(self) -> None:
        self.tables: list[str] = []

    async def drop_table(self, dataset: str, table: TableRef) -> None:
        self.tables.append(f"{dataset}.{table.table}")


def step(name: str, behaviour: Behaviour, *after: str, attempts: int = 1, seconds: float = 60) -> PipelineStep:
    retry = Retry(attempts, timedelta(seconds=1), timedelta(seconds=8))
    return PipelineStep(name, "does", after, Doing(behaviour=behaviour), retry, timedelta(seconds=seconds))


def pipeline(*steps: PipelineStep) -> Pipeline:
    return Pipeline("gcp", "cost", "billing", "A test.", "GCP", 10, ("gcp_cost_billing",), (), steps)


async def ok(context: StepContext) -> StepResult:
    return StepResult(rows=3, bytes=4)


async def publish(context: StepContext) -> StepResult:
    return StepResult(rows=3, output=Published(Outcome.PUBLISHED, 3))


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    async def open_credential() -> Secret:
        return Secret({})

    return RunContext(
        tenant_id=TenantId("acme"),
        user_id=None,
        pipeline_logging_id=RUN_ID,
        attempt=2,
        start_date=date(2025, 11, 17),
        end_date=date(2025, 11, 17),
        warehouse=cast(Warehouse, Dropped()),
        publisher=cast(Any, None),
        journal=MemoryJournal(),
        staging_dir=tmp_path / "staging",
        now=lambda: datetime(2025, 11, 18, tzinfo=UTC),
        open_credential=open_credential,
    )


def events(context: RunContext) -> list[StepEvent]:
    return cast(MemoryJournal, context.journal).events


def last(context: RunContext) -> dict[str, StepEvent]:
    return {event.step_name: event for event in events(context)}


def statuses(context: RunContext) -> dict[str, str]:
    return {name: str(event.status) for name, event in last(context).items()}


def engine(sleeps: list[float] | None = None) -> Engine:
    async def sleep(seconds: float) -> None:
        (sleeps if sleeps is not None else []).append(seconds)

    return Engine(steps={"does": Does}, jitter=lambda: 0.5, sleep=sleep)


async def test_steps_run_in_order_and_independent_ones_together(context: RunContext) -> None:
    both = asyncio.Barrier(2)
    order: list[str] = []

    async def meet(context: StepContext) -> StepResult:
        await both.wait()
        order.append(context.step_name)
        return StepResult(output=context.step_name)

    async def join(context: StepContext) -> StepResult:
        assert {context.output("left", str), context.output("right", str)} == set(order)
        return await publish(context)

    result = await engine().run(
        pipeline(step("left", meet), step("right", meet), step("publish", join, "left", "right")), context
    )
    assert (result.outcome, result.rows_published, result.superseded_by) == (Outcome.PUBLISHED, 3, None)
    assert [event.step_name for event in result.steps] == ["left", "right", "publish"]
    assert [event.position for event in result.steps] == [0, 1, 2]
    assert {event.status for event in result.steps} == {StepStatus.COMPLETED}


async def test_every_transition_is_told_whole(context: RunContext) -> None:
    await engine().run(pipeline(step("one", ok), step("publish", publish, "one")), context)
    one = [event for event in events(context) if event.step_name == "one"]
    assert [(event.status, event.tries) for event in one] == [("PENDING", 0), ("RUNNING", 1), ("COMPLETED", 1)]
    assert (one[-1].rows, one[-1].bytes, one[-1].error) == (3, 4, None)
    assert one[-1].start_time is not None
    assert one[-1].end_time is not None


async def test_a_retryable_failure_is_tried_again_with_jitter_and_a_terminal_one_is_not(context: RunContext) -> None:
    sleeps: list[float] = []
    failures = [
        errors.Unavailable("A", "later"),
        errors.Unavailable("B", "later", retry_after=timedelta(seconds=30)),
        errors.Unavailable("C", "later"),
    ]

    async def flaky(context: StepContext) -> StepResult:
        if failures:
            raise failures.pop(0)
        return await ok(context)

    await engine(sleeps).run(pipeline(step("flaky", flaky, attempts=4), step("publish", publish, "flaky")), context)
    assert sleeps == [0.5, 30.0, 2.0]
    assert last(context)["flaky"].tries == 4
    waiting = [event.error.reason for event in events(context) if event.status == "RUNNING" and event.error]
    assert waiting == ["A", "B", "C"]
    assert last(context)["flaky"].error is None


@pytest.mark.parametrize("error", [errors.Unavailable("X", "down"), errors.FailedPrecondition("X", "wrong")])
async def test_the_last_failure_ends_the_run(context: RunContext, error: errors.Error) -> None:
    tries = []

    async def fail(context: StepContext) -> StepResult:
        tries.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        await engine().run(
            pipeline(step("one", ok), step("fail", fail, "one", attempts=3), step("publish", publish, "fail")), context
        )
    assert caught.value.metadata["step"] == "fail"
    assert len(tries) == (3 if error.retryable else 1)
    assert statuses(context) == {"one": "COMPLETED", "fail": "FAILED", "publish": "SKIPPED"}
    assert last(context)["fail"].error is error


async def test_what_no_step_should_raise_becomes_internal(context: RunContext) -> None:
    async def crash(context: StepContext) -> StepResult:
        raise KeyError("secret text of a dependency")

    with pytest.raises(errors.Internal) as caught:
        await engine().run(pipeline(step("crash", crash, attempts=5), step("publish", publish, "crash")), context)
    assert caught.value.reason == "STEP_FAILED"
    assert "secret" not in caught.value.message
    assert isinstance(caught.value.__cause__, KeyError)
    assert last(context)["crash"].tries == 1


async def test_a_step_out_of_time_is_stopped_and_tried_again(context: RunContext) -> None:
    async def slow(context: StepContext) -> StepResult:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(errors.Unavailable) as caught:
        await engine().run(
            pipeline(step("slow", slow, attempts=2, seconds=0.01), step("publish", publish, "slow")), context
        )
    assert caught.value.reason == "STEP_TIMED_OUT"
    assert last(context)["slow"].tries == 2


async def test_one_failure_stops_those_beside_it(context: RunContext) -> None:
    started = asyncio.Event()
    stopped: list[str] = []

    async def waits(context: StepContext) -> StepResult:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(context.step_name)
        raise AssertionError

    async def fail(context: StepContext) -> StepResult:
        await started.wait()
        raise errors.InvalidArgument("BAD", "bad")

    with pytest.raises(errors.InvalidArgument):
        await engine().run(
            pipeline(step("waits", waits), step("fail", fail), step("publish", publish, "waits", "fail")), context
        )
    assert stopped == ["waits"]
    assert statuses(context) == {"waits": "CANCELLED", "fail": "FAILED", "publish": "SKIPPED"}


async def test_no_data_ends_well_and_skips_the_rest(context: RunContext) -> None:
    async def nothing(context: StepContext) -> StepResult:
        return StepResult(rows=0, no_data=True)

    result = await engine().run(pipeline(step("extract", nothing), step("publish", publish, "extract")), context)
    assert (result.outcome, result.rows_published) == (Outcome.NO_DATA, 0)
    assert statuses(context) == {"extract": "COMPLETED", "publish": "SKIPPED"}


@pytest.mark.parametrize("where", ["step", "pause"])
async def test_cancelling_the_task_cancels_its_steps(context: RunContext, where: str) -> None:
    reached = asyncio.Event()

    async def wait(context: StepContext) -> StepResult:
        if where == "pause":
            raise errors.Unavailable("X", "later")
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def sleep(seconds: float) -> None:
        reached.set()
        await asyncio.Event().wait()

    running = Engine(steps={"does": Does}, sleep=sleep)
    work = running.run(pipeline(step("one", wait, attempts=2), step("publish", publish, "one")), context)
    task = asyncio.create_task(work)
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert statuses(context) == {"one": "CANCELLED", "publish": "SKIPPED"}
    assert not context.staging_dir.exists()


async def test_a_cancelled_step_that_takes_its_time_is_waited_for_even_if_cancelled_again(context: RunContext) -> None:
    reached, release, ended = asyncio.Event(), asyncio.Event(), []

    async def stubborn(context: StepContext) -> StepResult:
        try:
            reached.set()
            await asyncio.Event().wait()
        finally:
            await release.wait()
            ended.append(True)
        raise AssertionError

    work = engine().run(pipeline(step("one", stubborn), step("publish", publish, "one")), context)
    task = asyncio.create_task(work)
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert statuses(context) == {"one": "CANCELLED", "publish": "SKIPPED"}


@pytest.mark.parametrize("fails", [False, True])
async def test_files_and_staging_tables_go_however_it_ends(context: RunContext, fails: bool) -> None:
    async def stage(context: StepContext) -> StepResult:
        assert context.run.staging_dir.stat().st_mode & 0o777 == 0o700
        (context.run.staging_dir / "rows.parquet").write_text("x")
        context.staging.table("raw")
        if fails:
            raise errors.InvalidArgument("BAD", "bad")
        return StepResult()

    try:
        await engine().run(pipeline(step("stage", stage), step("publish", publish, "stage")), context)
    except errors.InvalidArgument:
        assert fails
    assert not context.staging_dir.exists()
    assert cast(Dropped, context.warehouse).tables == [f"acme.x_staging_{RUN_ID.replace('-', '')}_2_raw"]


async def test_no_room_for_files_is_said_and_every_step_skipped(context: RunContext, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = dataclasses.replace(context, staging_dir=tmp_path / "file" / "staging")
    with pytest.raises(errors.Unavailable) as caught:
        await engine().run(pipeline(step("one", ok), step("publish", publish, "one")), blocked)
    assert caught.value.reason == "STAGING_FULL"
    assert statuses(context) == {"one": "SKIPPED", "publish": "SKIPPED"}


async def test_progress_is_told_but_not_at_every_batch(context: RunContext) -> None:
    async def count(context: StepContext) -> StepResult:
        for rows in range(1000):
            context.report(rows, rows * 10)
        return StepResult(rows=1000)

    await engine().run(pipeline(step("count", count), step("publish", publish, "count")), context)
    told = [event.rows for event in events(context) if event.step_name == "count" and event.status == "RUNNING"]
    assert told == [None, 0]
    assert last(context)["count"].rows == 1000


def test_the_pause_is_full_jitter_below_a_doubling_bound() -> None:
    retry = Retry(9, timedelta(seconds=1), timedelta(seconds=10))
    assert [pause(retry, tries, 1.0, None).total_seconds() for tries in (1, 2, 3, 4, 5, 60)] == [1, 2, 4, 8, 10, 10]
    assert pause(retry, 3, 0.0, None) == timedelta(0)
    assert pause(retry, 3, 0.25, timedelta(seconds=7)) == timedelta(seconds=7)


def test_a_secret_shows_itself_to_no_one() -> None:
    import copy
    import pickle

    secret = Secret({"private_key": "hunter2"})
    assert "hunter2" not in f"{secret!r} {secret!s} {secret} {[secret]}"
    for leak in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            leak(secret)
    assert secret.reveal()["private_key"] == "hunter2"
