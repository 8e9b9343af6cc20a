"""The life of runs with all neighbours in memory: who executes, what a row becomes, what a grant ends as."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from libs import errors
from libs.tenancy import Caller, Role, TenantId
from services.pipeline_executor.domain import Key, Outcome, Run, RunStatus, StepStatus, Trigger, View
from services.pipeline_executor.runs import RunRequest, StartRequest
from services.tenant.quotas import GrantState, Plan
from tests.support.executor import Process, Script, World, as_client, simulated, until

ACME = TenantId("acme")
DAY = date(2025, 11, 16)


def asked(**changes: Any) -> RunRequest:
    return replace(
        RunRequest(tenant_id=ACME, provider="GCP", domain="cost", template="billing", date="2025-11-16"), **changes
    )


def dispatched(run_id: str, attempt: int = 1, **changes: Any) -> StartRequest:
    request = StartRequest(
        key=Key(ACME, run_id, attempt),
        provider="gcp",
        domain="cost",
        template="billing",
        start_date="2025-11-16",
        end_date="2025-11-16",
    )
    return replace(request, **changes)


async def run(process: Process, **changes: Any) -> View:
    return await as_client(process.runs.run(asked(**changes)))


async def start(process: Process, run_id: str, attempt: int = 1, **changes: Any) -> View:
    return await as_client(process.runs.start(dispatched(run_id, attempt, **changes)), Caller(None, peer="scheduler"))


def row(world: World, view: View) -> Run:
    return world.store.rows[view.run.key]


def state(world: World, view: View) -> GrantState:
    return world.quotas.grants()[view.run.key].state


async def settled(world: World, view: View, seconds: float = 600) -> Run:
    await until(lambda: world.quotas.grants()[view.run.key].state is not GrantState.LIVE, seconds=seconds)
    return row(world, view)


# ---------------------------------------------------------------- the usual course


@simulated
async def test_a_run_is_answered_at_once_and_goes_on_to_its_end(world: World) -> None:
    a = world.boot("a")
    view = await run(a)
    assert view.run.status is RunStatus.RUNNING
    assert view.run.user_id == "ada"
    assert view.run.trigger is Trigger.MANUAL
    assert row(world, view).status is RunStatus.RUNNING
    done = await settled(world, view)
    assert (done.status, done.outcome, done.rows_published) == (RunStatus.COMPLETED, Outcome.PUBLISHED, 7)
    assert state(world, view) is GrantState.SETTLED
    assert [(step.name, step.status) for step in world.store.step_logs[view.run.key]] == [
        ("extract", StepStatus.COMPLETED),
        ("publish", StepStatus.COMPLETED),
    ]
    assert a.audit.records[0].action == "pipeline.run"
    assert a.audit.records[0].actor_key_id == "key_1"


@simulated
async def test_a_published_run_costs_few_statements_whatever_it_does(world: World) -> None:
    a = world.boot("a")
    view = await run(a)
    await settled(world, view)
    spent = {name: count for name, count in a.link.calls.items() if name not in ("expired", "renew")}
    assert spent == {
        "source": 1,
        "ensure_dataset": 1,
        "reserve": 1,
        "insert": 1,
        "open": 1,
        "publish": 1,
        "attempts": 1,
        "append_steps": 1,
        "settle": 1,
    }


@simulated
async def test_without_a_date_it_is_yesterdays(world: World) -> None:
    view = await run(world.boot("a"), date="")
    assert (view.run.spec.start_date, view.run.spec.end_date) == (DAY, DAY)


@simulated
async def test_no_source_rows_end_well_and_change_nothing(world: World) -> None:
    world.default_script = Script(no_data=True)
    view = await run(world.boot("a"))
    done = await settled(world, view)
    assert (done.status, done.outcome) == (RunStatus.COMPLETED, Outcome.NO_DATA)
    assert not world.store.data


@simulated
async def test_a_failed_run_says_why_and_stays_charged(world: World) -> None:
    world.default_script = Script(failure=errors.FailedPrecondition("SOURCE_NOT_FOUND", "Name the table."))
    view = await run(world.boot("a"))
    done = await settled(world, view)
    assert done.status is RunStatus.FAILED
    assert done.error is not None
    assert (done.error.reason, done.error.message, done.error.retryable) == (
        "SOURCE_NOT_FOUND",
        "Name the table.",
        False,
    )
    assert state(world, view) is GrantState.SETTLED
    assert world.quotas.rows[ACME].pipelines_run_today == 1


@simulated
async def test_an_older_reading_published_later_is_superseded(world: World) -> None:
    world.chance.seed(1)
    a = world.boot("a")
    slow = await run(a, date="", start_date="2025-11-15", end_date="2025-11-17")
    world.scripts[slow.run.key.run_id] = Script(seconds=60)
    await asyncio.sleep(1)
    quick = await run(a)
    await settled(world, quick)
    old = await settled(world, slow)
    assert (old.status, old.outcome, old.superseded_by) == (
        RunStatus.COMPLETED,
        Outcome.SUPERSEDED,
        quick.run.key.run_id,
    )
    assert world.store.data[ACME, DAY][0] == quick.run.key


# ---------------------------------------------------------------- refusals before anything is reserved


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"template": "nothing"}, errors.NotFound, "TEMPLATE_NOT_FOUND"),
        ({"date": "2025-11-18"}, errors.InvalidArgument, "DATE_IN_FUTURE"),
        ({"date": "2025-02-30"}, errors.InvalidArgument, "DATE_INVALID"),
        ({"start_date": "2025-11-01"}, errors.InvalidArgument, "DATE_RANGE_INVALID"),
        ({"date": "", "start_date": "2025-11-01"}, errors.InvalidArgument, "DATE_RANGE_INVALID"),
        (
            {"date": "", "start_date": "2025-11-02", "end_date": "2025-11-01"},
            errors.InvalidArgument,
            "DATE_RANGE_INVALID",
        ),
        (
            {"date": "", "start_date": "2024-01-01", "end_date": "2025-11-01"},
            errors.InvalidArgument,
            "DATE_RANGE_TOO_LONG",
        ),
        ({"parameters": {"colour": "red"}}, errors.InvalidArgument, "PARAMETERS_INVALID"),
        ({"parameters": {"source": "here"}}, errors.InvalidArgument, "PARAMETERS_INVALID"),
        ({"parameters": {"source": {"colour": "red"}}}, errors.InvalidArgument, "SOURCE_INVALID"),
    ],
)
@simulated
async def test_what_is_wrong_is_refused_before_it_is_charged(
    world: World, changes: dict[str, Any], kind: type[errors.Error], reason: str
) -> None:
    a = world.boot("a")
    with pytest.raises(kind) as refusal:
        await run(a, **changes)
    assert refusal.value.reason == reason
    assert a.link.calls["reserve"] == 0
    assert not world.store.rows


@simulated
async def test_a_missing_credential_is_refused_before_it_is_charged(world: World) -> None:
    a = world.boot("a")
    world.credential_failure = errors.FailedPrecondition("CREDENTIAL_NOT_FOUND", "Store one.")
    with pytest.raises(errors.FailedPrecondition, match="Store one"):
        await run(a)
    assert a.link.calls["reserve"] == 0
    assert not a.executions._live


@simulated
async def test_a_tenant_that_is_not_there_is_said_first(world: World) -> None:
    world.store.tenants = {TenantId("other")}
    world.credential_failure = errors.FailedPrecondition("CREDENTIAL_NOT_FOUND", "Store one.")
    with pytest.raises(errors.NotFound) as refusal:
        await run(world.boot("a"))
    assert refusal.value.reason == "TENANT_NOT_FOUND"


@simulated
async def test_a_full_executor_refuses_before_it_reserves(world: World) -> None:
    a = world.boot("a", max_runs=2)
    answers = await asyncio.gather(*(run(a) for _ in range(5)), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, errors.Unavailable)]
    assert [refusal.reason for refusal in refusals] == ["EXECUTOR_FULL"] * 3
    assert a.link.calls["reserve"] == 2
    await until(lambda: not a.executions._live)
    await run(a)


@simulated
async def test_of_a_burst_each_hears_its_own_answer(world: World) -> None:
    """The places of those that are refused go to those that wait, not to EXECUTOR_FULL."""
    world.quotas._plan = Plan.STARTER
    processes = [world.boot(name, max_runs=4) for name in ("a", "b", "c")]
    answers = await asyncio.gather(*(run(processes[n % 3]) for n in range(50)), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, errors.ResourceExhausted)]
    assert len(refusals) == 49, [answer for answer in answers if answer not in refusals]
    assert all(refusal.quota_violations and refusal.retry_after for refusal in refusals)
    assert sum(len(process.executions._live) for process in processes) == 1


@simulated
async def test_beyond_the_plan_the_answer_is_tenants(world: World) -> None:
    world.quotas._plan = Plan.STARTER
    a = world.boot("a")
    await run(a)
    with pytest.raises(errors.ResourceExhausted) as refusal:
        await run(a)
    assert refusal.value.reason == "QUOTA_CONCURRENT_EXCEEDED"
    assert refusal.value.quota_violations
    assert len(a.executions._live) == 1


# ---------------------------------------------------------------- the same run asked for again


@simulated
async def test_the_same_key_is_the_same_run_on_any_replica_and_at_any_time(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    views = await asyncio.gather(*(run(process, idempotency_key="k") for process in (a, b, a, b)))
    assert len({view.run.key for view in views}) == 1
    await settled(world, views[0])
    again = await run(b, idempotency_key="k")
    assert again.run.status is RunStatus.COMPLETED
    assert [step.name for step in again.steps] == ["extract", "publish"]
    assert world.begun == {views[0].run.key: 1}
    assert world.quotas.rows[ACME].pipelines_run_today == 1


@simulated
async def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    first = await run(a, idempotency_key="k")
    for process in (a, b):
        with pytest.raises(errors.InvalidArgument) as refusal:
            await run(process, idempotency_key="k", date="2025-11-15")
        assert refusal.value.reason == "IDEMPOTENCY_KEY_REUSED"
    await settled(world, first)
    with pytest.raises(errors.InvalidArgument):
        await run(a, idempotency_key="k", date="2025-11-15")
    await run(a, idempotency_key="k", date="", start_date="2025-11-16", end_date="2025-11-16")


@simulated
async def test_two_tenants_keys_do_not_meet(world: World) -> None:
    a = world.boot("a")
    one = await run(a, idempotency_key="k")
    other = await run(a, idempotency_key="k", tenant_id=TenantId("other"))
    assert one.run.key.run_id != other.run.key.run_id


@simulated
async def test_yesterday_by_default_is_the_same_request_after_midnight(world: World) -> None:
    a = world.boot("a")
    first = await run(a, idempotency_key="k", date="")
    await asyncio.sleep(timedelta(hours=13).total_seconds())
    again = await run(a, idempotency_key="k", date="")
    assert again.run.key == first.run.key
    assert again.run.spec.start_date == DAY


@simulated
async def test_a_caller_who_gives_up_takes_no_run_with_him(world: World) -> None:
    world.faults.seconds = 2
    a = world.boot("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await run(a, idempotency_key="k")
    view = await run(a, idempotency_key="k")
    await settled(world, view)
    assert world.begun == {view.run.key: 1}


@simulated
async def test_what_another_process_is_starting_is_answered_when_it_is_recorded(world: World) -> None:
    world.faults.seconds = 3
    a, b = world.boot("a"), world.boot("b")
    views = await asyncio.gather(run(a, idempotency_key="k"), run(b, idempotency_key="k"))
    assert {view.run.status for view in views} == {RunStatus.RUNNING}
    await settled(world, views[0])
    assert world.begun == {views[0].run.key: 1}


@simulated
async def test_a_run_that_its_owner_never_recorded_is_not_acknowledged_by_another(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    insert = a.store.insert

    async def dies(_: Run) -> bool:
        a.kill()
        return await insert(_)

    a.store.insert = dies  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(20):
            await run(a, idempotency_key="k")
    with pytest.raises(errors.Unavailable) as refusal:
        await run(b, idempotency_key="k")
    assert refusal.value.reason == "RUN_STARTING"
    # Given back when the lease is over; then the key means a run again.
    await until(
        lambda: all(grant.state is not GrantState.LIVE for grant in world.quotas.grants().values()), seconds=100
    )
    view = await run(b, idempotency_key="k")
    assert (await settled(world, view)).status is RunStatus.COMPLETED


# ---------------------------------------------------------------- dispatched attempts


@simulated
async def test_two_executors_told_to_start_the_same_attempt_run_it_once(world: World) -> None:
    world.faults.seconds = 1
    a, b = world.boot("a"), world.boot("b")
    run_id = str(uuid.uuid4())
    one, two = await asyncio.gather(start(a, run_id), start(b, run_id))
    assert one.run.key == two.run.key
    assert {one.run.status, two.run.status} <= {RunStatus.RUNNING, RunStatus.PENDING}
    await settled(world, one)
    assert world.begun == {one.run.key: 1}
    assert world.quotas.rows[ACME].pipelines_run_today == 1


@simulated
async def test_the_next_attempt_waits_for_the_end_of_the_one_before(world: World) -> None:
    world.default_script = Script(failure=errors.Unavailable("SOURCE_DOWN", "Later."))
    a = world.boot("a")
    run_id = str(uuid.uuid4())
    first = await start(a, run_id, config_id="c1", trigger=Trigger.BACKFILL, user_id="eve")
    assert (first.run.config_id, first.run.trigger, first.run.user_id) == ("c1", Trigger.BACKFILL, "eve")
    with pytest.raises(errors.FailedPrecondition) as refusal:
        await start(a, run_id, 2)
    assert refusal.value.reason == "ATTEMPT_RUNNING"
    failed = await settled(world, first)
    assert failed.error is not None and failed.error.retryable
    world.default_script = Script()
    second = await start(a, run_id, 2)
    await settled(world, second)
    assert row(world, second).status is RunStatus.COMPLETED
    with pytest.raises(errors.FailedPrecondition) as refusal:
        await start(a, run_id, 3)
    assert refusal.value.reason == "RUN_COMPLETED"
    newest = await a.runs.get(ACME, run_id, 0)
    assert newest.run.key.attempt == 2
    oldest = await a.runs.get(ACME, run_id, 1)
    assert oldest.run.status is RunStatus.FAILED


@simulated
async def test_a_batch_answers_what_exists_in_one_read_a_tenant(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    views = [await start(a, str(uuid.uuid4())) for _ in range(3)]
    keys = [view.run.key for view in views]
    missing = Key(ACME, str(uuid.uuid4()), 1)
    answer = await b.runs.batch([*keys, missing, Key(TenantId("nobody"), missing.run_id, 1)])
    assert [view.run.key for view in answer] == keys
    assert b.link.calls["attempts"] == 2
    before = a.link.calls["attempts"]
    assert [view.run.status for view in await a.runs.batch(keys)] == [RunStatus.RUNNING] * 3
    assert a.link.calls["attempts"] == before
    newest = await b.runs.batch([Key(ACME, keys[0].run_id, 0)])
    assert [view.run.key for view in newest] == keys[:1]


# ---------------------------------------------------------------- cancel


@simulated
async def test_cancel_here_ends_cancelled_and_publishes_nothing(world: World) -> None:
    a = world.boot("a")
    view = await run(a)
    told = await as_client(a.runs.cancel(ACME, view.run.key.run_id))
    assert told.run.status is RunStatus.CANCELLING
    done = await settled(world, view, seconds=10)
    assert (done.status, done.error) == (RunStatus.CANCELLED, None)
    assert not world.store.data
    assert {step.status for step in world.store.step_logs[view.run.key]} == {StepStatus.CANCELLED}
    with pytest.raises(errors.FailedPrecondition) as refusal:
        await as_client(a.runs.cancel(ACME, view.run.key.run_id))
    assert refusal.value.reason == "RUN_ENDED"


@simulated
async def test_cancel_at_another_replica_reaches_the_owner(world: World) -> None:
    world.default_script = Script(seconds=3600)
    a, b = world.boot("a"), world.boot("b")
    view = await run(a)
    await as_client(b.runs.cancel(ACME, view.run.key.run_id))
    await as_client(b.runs.cancel(ACME, view.run.key.run_id))
    done = await settled(world, view, seconds=10)
    assert done.status is RunStatus.CANCELLED
    assert [record.action for record in b.audit.records] == ["pipeline.cancel"]


@simulated
async def test_cancel_that_never_reaches_the_owner_still_holds_the_publication(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await run(a)
    world.processes.pop("a")
    await as_client(b.runs.cancel(ACME, view.run.key.run_id))
    done = await settled(world, view)
    assert done.status is RunStatus.CANCELLED
    assert not world.store.data


@simulated
async def test_a_run_of_somebody_else_is_not_found(world: World) -> None:
    a = world.boot("a")
    view = await run(a)
    for run_id in (view.run.key.run_id, str(uuid.uuid4()), "x", "../" + view.run.key.run_id):
        with pytest.raises(errors.NotFound) as refusal:
            await as_client(a.runs.cancel(TenantId("other"), run_id))
        assert refusal.value.reason == "RUN_NOT_FOUND"
        with pytest.raises(errors.NotFound):
            await a.runs.get(TenantId("other"), run_id, 0)


# ---------------------------------------------------------------- lost replies and lost processes


@simulated
async def test_a_reservation_whose_reply_was_lost_is_given_back(world: World) -> None:
    a = world.boot("a")
    world.faults.after = 1
    with pytest.raises(errors.Unavailable):
        await run(a)
    world.faults.after = 0
    await until(lambda: all(grant.state is GrantState.REFUNDED for grant in world.quotas.grants().values()), seconds=90)
    assert world.quotas.rows[ACME].pipelines_run_today == 0


@simulated
async def test_a_row_whose_insert_was_answered_late_is_executed_once(world: World) -> None:
    a = world.boot("a")
    store_insert, tries = world.store.insert, 0

    def lose_two(run: Run) -> bool:
        nonlocal tries
        tries += 1
        store_insert(run)
        if tries <= 2:
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "Lost.")
        return store_insert(run)

    world.store.insert = lose_two  # type: ignore[method-assign]
    view = await run(a)
    done = await settled(world, view)
    assert done.status is RunStatus.COMPLETED
    assert world.begun == {view.run.key: 1}


@simulated
async def test_a_row_that_cannot_be_made_gives_the_reservation_back(world: World) -> None:
    a = world.boot("a")

    def refuse(run: Run) -> bool:
        raise errors.FailedPrecondition("STORE_ACCESS_DENIED", "No.")

    world.store.insert = refuse  # type: ignore[method-assign]
    with pytest.raises(errors.FailedPrecondition):
        await run(a)
    assert world.quotas.rows[ACME].pipelines_run_today == 0


@simulated
async def test_a_publication_that_timed_out_but_took_place_is_the_truth(world: World) -> None:
    a = world.boot("a")
    view = await run(a)
    await until(lambda: a.link.calls["open"] == 1)
    world.faults.after = 1
    await until(lambda: row(world, view).status is RunStatus.COMPLETED)
    world.faults.after = 0
    done = await settled(world, view)
    assert (done.status, done.outcome) == (RunStatus.COMPLETED, Outcome.PUBLISHED)
    assert world.store.publications == {view.run.key: 1}
    assert {step.status for step in world.store.step_logs[view.run.key]} == {StepStatus.COMPLETED}


@simulated
async def test_lost_bookkeeping_never_runs_the_data_again(world: World) -> None:
    a = world.boot("a")
    view = await run(a)

    def refuse(run: Run, steps: Any) -> None:
        raise errors.Internal("STORE_REJECTED", "No.")

    world.store.append_steps = refuse  # type: ignore[method-assign]
    done = await settled(world, view)
    assert done.status is RunStatus.COMPLETED
    assert world.begun == {view.run.key: 1}


@simulated
async def test_a_killed_owners_run_is_closed_within_100_seconds(world: World) -> None:
    world.default_script = Script(seconds=3600)
    a, _ = world.boot("a"), world.boot("b")
    view = await run(a)
    await asyncio.sleep(35)
    a.kill()
    done = await settled(world, view, seconds=100)
    assert done.status is RunStatus.FAILED
    assert done.error is not None
    assert (done.error.reason, done.error.retryable) == ("OWNER_LOST", True)
    assert state(world, view) is GrantState.REAPED


@simulated
async def test_a_zombie_that_wakes_up_after_its_lease_publishes_nothing(world: World) -> None:
    world.default_script = Script(seconds=200)
    a, _ = world.boot("a"), world.boot("b")
    view = await run(a)
    a.outlive_its_leases()
    done = await settled(world, view, seconds=100)
    assert done.status is RunStatus.FAILED
    await until(lambda: not a.executions._live)
    assert a.link.calls["publish"] == 1
    assert row(world, view) == done
    assert state(world, view) is GrantState.REAPED
    assert not world.store.data


@simulated
async def test_a_process_that_cannot_renew_stops_before_its_lease_ends(world: World) -> None:
    world.default_script = Script(seconds=3600)
    a = world.boot("a")
    view = await run(a)

    async def fail(*_: Any) -> Any:
        raise errors.Unavailable("DOWN", "Down.")

    a.quotas.renew = fail  # type: ignore[method-assign]
    until_ = world.quotas.grants()[view.run.key].until
    await until(lambda: row(world, view).status.ended)
    assert world.now() < until_
    failure = row(world, view).error
    assert failure is not None and failure.reason == "LEASE_LOST"
    await settled(world, view)


@simulated
async def test_leases_are_renewed_together_for_as_long_as_it_takes(world: World) -> None:
    world.default_script = Script(seconds=600)
    a = world.boot("a")
    views = [await run(a) for _ in range(5)]
    await asyncio.sleep(590)
    assert a.link.calls["renew"] <= 31
    for view in views:
        await settled(world, view)
        assert row(world, view).status is RunStatus.COMPLETED


@simulated
async def test_a_row_that_would_come_after_its_reaping_never_comes(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    insert = world.store.insert
    held: list[Run] = []

    def hold(run: Run) -> bool:
        held.append(run)
        a.kill()
        raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "On its way.")

    world.store.insert = hold  # type: ignore[method-assign]
    task = asyncio.create_task(run(a, idempotency_key="k"))
    await until(
        lambda: any(grant.state is GrantState.REFUNDED for grant in world.quotas.grants().values()), seconds=101
    )
    world.store.insert = insert  # type: ignore[method-assign]
    assert not insert(held[0])
    view = await run(b, idempotency_key="k")
    assert view.run.key.attempt == 2
    await settled(world, view)
    assert row(world, view).status is RunStatus.COMPLETED
    task.cancel()


# ---------------------------------------------------------------- shutdown


@simulated
async def test_a_draining_executor_finishes_what_it_can_and_takes_nothing_new(world: World) -> None:
    a = world.boot("a")
    short, long = await run(a), await run(a)
    world.scripts[long.run.key.run_id] = Script(seconds=3600)
    draining = asyncio.create_task(a.executions.drain(25))
    await asyncio.sleep(0)
    with pytest.raises(errors.Unavailable) as refusal:
        await run(a)
    assert refusal.value.reason == "EXECUTOR_DRAINING"
    await draining
    assert asyncio.get_running_loop().time() < 25
    assert row(world, short).status is RunStatus.COMPLETED
    interrupted = row(world, long)
    assert interrupted.error is not None
    assert (interrupted.status, interrupted.error.reason) == (RunStatus.FAILED, "INTERRUPTED")
    assert interrupted.error.retryable
    assert state(world, long) is GrantState.SETTLED
    assert not world.quotas.rows[ACME].in_use(world.now())


@simulated
async def test_interrupted_before_it_is_reserved_a_run_costs_nothing(world: World) -> None:
    world.faults.seconds = 10
    a = world.boot("a")
    asking = asyncio.create_task(run(a))
    await asyncio.sleep(0.1)
    await a.executions.drain(0)
    with pytest.raises(errors.Unavailable):
        await asking
    await asyncio.sleep(100)
    assert ACME not in world.quotas.rows or world.quotas.rows[ACME].pipelines_run_today == 0


@pytest.mark.parametrize("role", [Role.RUNNER, Role.PLATFORM_ADMIN])
@simulated
async def test_who_asked_is_in_the_audit_trail(world: World, role: Role) -> None:
    a = world.boot("a")
    await as_client(a.runs.run(asked()), Caller(role, "acme", "key_9"))
    record = a.audit.records[0]
    assert (record.role, record.user_id, record.request_id) == (role.value, None, "req-1")


@simulated
async def test_a_failure_after_an_unknown_outcome_proves_nothing(world: World) -> None:
    a = world.boot("a")
    insert, tries = world.store.insert, 0

    def late(run: Run) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            asyncio.get_running_loop().call_later(1, insert, run)
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "On its way.")
        if tries < 8:
            raise errors.Unavailable("STORE_RATE_LIMITED", "Not now.")
        return insert(run)

    world.store.insert = late  # type: ignore[method-assign]
    view = await run(a)
    assert world.quotas.rows[ACME].pipelines_run_today == 1
    assert (await settled(world, view)).status is RunStatus.COMPLETED
