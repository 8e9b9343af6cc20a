"""One id becomes one tenant: at once, twice, and whichever step its owner dies at."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from contextvars import ContextVar
from datetime import UTC, timedelta

import pytest

from libs import errors
from libs.tenancy import Role
from services.tenant.keys import KeyRefused
from services.tenant.onboarding import HOLD, Hold, Onboarded, read_hold
from services.tenant.quotas import LIMITS, Plan, TenantState
from tests.support.fakes import Clock, Faults
from tests.support.tenant_world import Disk, Killed, MemoryDataset, Process, Steps, application, stays
from tests.support.virtual_time import run


def one_tenant(disk: Disk, made: Onboarded, plan: Plan = Plan.STARTER) -> None:
    """Everything of the tenant is there once, and its one live key is the one that was shown."""
    profile, quota = disk.profiles.rows["acme"], disk.quotas.rows["acme"]
    assert profile.state is quota.state is TenantState.ACTIVE
    assert (quota.plan, quota.limits, disk.subscriptions["acme"]) == (plan, LIMITS[plan], plan)
    assert (quota.pipelines_run_today, quota.grants) == (0, ())
    assert [key.api_key_id for key in disk.live_keys("acme")] == [made.key.key.api_key_id]
    assert made.key.key.role is Role.ADMIN
    dataset = disk.datasets["acme"]
    assert read_hold(dataset) is None and len(dataset.tables) == 3


async def steps_of_an_onboarding() -> int:
    disk, steps = Disk(Clock()), Steps()
    await Process(disk, steps).onboarding.onboard(application())
    return steps.taken


STEPS = run(steps_of_an_onboarding())
_SLOW: ContextVar[bool] = ContextVar("slow", default=False)


def test_an_onboarding_makes_everything_and_shows_the_key_once() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        made = await process.onboarding.onboard(application(plan=Plan.SCALE))
        one_tenant(disk, made, Plan.SCALE)
        assert made.dataset_created
        assert made.tables_created == ("x_meta_dq_results", "x_meta_pipeline_runs", "x_meta_step_logs")
        assert disk.profiles.rows["acme"].company_name == "Acme"
        assert [record.action for record in disk.audit] == ["tenant.onboard"]
        assert made.key.text.split("_")[3] not in repr((disk.audit, disk.keys, made))
        with pytest.raises(errors.AlreadyExists) as info:
            await process.onboarding.onboard(application())
        assert info.value.reason == "TENANT_EXISTS"
        one_tenant(disk, made, Plan.SCALE)

    run(scenario())


def test_fifty_at_once_on_three_replicas_make_one_tenant() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        replicas = [Process(disk) for _ in range(3)]
        outcomes = await asyncio.gather(
            *(replicas[n % 3].onboarding.onboard(application()) for n in range(50)), return_exceptions=True
        )
        made = [outcome for outcome in outcomes if isinstance(outcome, Onboarded)]
        assert len(made) == 1
        one_tenant(disk, made[0])
        kinds = Counter(type(outcome).__name__ for outcome in outcomes)
        assert set(kinds) <= {"Onboarded", "Aborted", "AlreadyExists"}
        waits = [outcome.retry_after for outcome in outcomes if isinstance(outcome, errors.Aborted)]
        assert all(wait is not None and wait <= HOLD for wait in waits)

    run(scenario())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_death_at_any_step_leaves_what_the_next_try_completes(step: int, after: bool) -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        dying = Process(disk, Steps(kill_at=step, after=after))
        outcome = await asyncio.gather(dying.onboarding.onboard(application(company="First")), return_exceptions=True)
        assert isinstance(outcome[0], Killed | errors.Error), "a dead process answered"
        half_made = {key.api_key_id for key in disk.keys.values()}

        process = Process(disk)
        wanted = application(plan=Plan.PROFESSIONAL, company="Second")
        held = "acme" in disk.datasets and read_hold(disk.datasets["acme"]) is not None
        if held:
            with pytest.raises(errors.Aborted) as info:
                await process.onboarding.onboard(wanted)
            assert info.value.reason == "ONBOARDING_IN_PROGRESS"
        disk.clock.advance(HOLD + timedelta(seconds=1))
        if "acme" in disk.datasets and not held:
            # It died between the end and the answer: the tenant is there, its key is lost.
            with pytest.raises(errors.AlreadyExists):
                await process.onboarding.onboard(wanted)
            replaced = await process.keys.create(
                "acme", name="", role=Role.ADMIN, expires_at=None, created_by="admin", must_stay=stays
            )
            await process.ring.refresh()
            assert (await process.ring.authenticate(replaced.text)).tenant_id == "acme"
            return
        made = await process.onboarding.onboard(wanted)
        one_tenant(disk, made, Plan.PROFESSIONAL)
        assert disk.profiles.rows["acme"].company_name == "Second"
        assert made.key.key.api_key_id not in half_made
        assert made.dataset_created is not held
        await process.ring.refresh()
        assert (await process.ring.authenticate(made.key.text)).tenant_id == "acme"

    run(scenario())


@pytest.mark.parametrize("stop_at", range(1, STEPS + 1))
def test_an_owner_that_was_given_up_on_gets_nothing_and_breaks_nothing(stop_at: int) -> None:
    async def scenario() -> None:
        disk, gate, taken = Disk(Clock()), asyncio.Event(), 0
        plain = disk.turn

        async def stalling() -> None:
            nonlocal taken
            if _SLOW.get():
                taken += 1
                if taken == stop_at:
                    await gate.wait()
            await plain()

        async def slowly() -> Onboarded:
            _SLOW.set(True)
            return await Process(disk).onboarding.onboard(application(company="Slow"))

        disk.turn = stalling  # type: ignore[method-assign]
        slow = asyncio.create_task(slowly())
        for _ in range(200):
            await asyncio.sleep(0)
        assert not slow.done()
        disk.clock.advance(HOLD + timedelta(seconds=1))
        made = await Process(disk).onboarding.onboard(application(company="Quick"))
        gate.set()
        with pytest.raises((errors.Aborted, errors.Unavailable, errors.AlreadyExists)):
            await slow
        one_tenant(disk, made)
        assert disk.profiles.rows["acme"].company_name == "Quick"

    run(scenario())


def test_a_store_that_answers_late_cannot_make_an_owner_overstay() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        ensure = process.onboarding._datasets.ensure_tables

        async def slow(name: str, provider: str) -> list[str]:
            disk.clock.advance(seconds=50)
            return list(await ensure(name, provider))

        process.onboarding._datasets = _With(process.onboarding._datasets, ensure_tables=slow)
        with pytest.raises(errors.Unavailable) as info:
            await process.onboarding.onboard(application())
        assert info.value.reason == "ONBOARDING_TIMED_OUT"
        assert not disk.keys and not disk.profiles.rows
        one_tenant(disk, await Process(disk).onboarding.onboard(application()))

    run(scenario())


def test_a_refused_statement_ends_the_hold_so_that_a_retry_need_not_wait() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        process.onboarding._store = _With(process.onboarding._store, insert_profile=_refusing)
        with pytest.raises(errors.FailedPrecondition):
            await process.onboarding.onboard(application())
        disk.clock.advance(seconds=1)
        made = await Process(disk).onboarding.onboard(application())
        one_tenant(disk, made)
        assert not made.dataset_created

    run(scenario())


def test_lost_replies_of_the_mutex_are_settled_by_its_label() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        datasets = process.onboarding._datasets

        async def create(name: str, labels: dict[str, str]) -> MemoryDataset:
            await datasets.create(name, labels)
            raise errors.Unavailable("STORE_UNAVAILABLE", "The reply was lost.")

        async def relabel(name: str, labels: dict[str, str | None], *, etag: str) -> MemoryDataset:
            await datasets.relabel(name, labels, etag=etag)
            raise errors.Unavailable("STORE_UNAVAILABLE", "The reply was lost.")

        process.onboarding._datasets = _With(datasets, create=create, relabel=relabel)
        made = await process.onboarding.onboard(application())
        assert made.dataset_created
        one_tenant(disk, made)

    run(scenario())


def test_lost_replies_and_conflicts_of_the_ledgers_change_nothing() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        disk.faults(Faults(conflict=0.3, lost_reply=0.3))
        with pytest.raises(Killed):
            await Process(disk, Steps(kill_at=STEPS - 2)).onboarding.onboard(application(company="First"))
        disk.clock.advance(HOLD)
        made = await Process(disk).onboarding.onboard(application(plan=Plan.SCALE, company="Second"))
        one_tenant(disk, made, Plan.SCALE)

    run(scenario())


def test_a_dataset_that_is_not_ours_is_left_alone() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        theirs = disk.datasets["acme"] = MemoryDataset({"team": "finance"}, "theirs", frozenset({"ledger"}))
        with pytest.raises(errors.AlreadyExists) as info:
            await Process(disk).onboarding.onboard(application())
        assert info.value.reason == "DATASET_TAKEN"
        assert disk.datasets == {"acme": theirs} and not disk.profiles.rows

    run(scenario())


@pytest.mark.parametrize("dataset_kept", [True, False])
def test_the_id_of_a_tenant_that_is_gone_is_not_given_again(dataset_kept: bool) -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        await process.onboarding.onboard(application())
        gone = dataclasses.replace(disk.profiles.rows["acme"], state=TenantState.DELETED)
        disk.profiles.rows["acme"] = gone
        disk.keys.clear()
        if not dataset_kept:
            del disk.datasets["acme"]
        for _ in range(2):
            with pytest.raises(errors.AlreadyExists):
                await process.onboarding.onboard(application())
        assert ("acme" in disk.datasets) is dataset_kept
        assert disk.profiles.rows["acme"] == gone and not disk.keys

    run(scenario())


def test_a_hold_can_be_written_as_labels_and_read_back() -> None:
    hold = Hold("0123456789abcdef" * 2, Clock()().astimezone(UTC), "fedcba9876543210" * 2)
    assert read_hold(MemoryDataset(hold.labels(), "")) == hold
    for labels in ({}, {"onboarding": "x"}, {"onboarding": "a-b", "onboarding_origin": "c"}, {"onboarding": "a-1"}):
        assert read_hold(MemoryDataset(labels, "")) is None


def test_a_forgotten_key_of_the_first_try_opens_nothing() -> None:
    async def scenario() -> None:
        disk = Disk(Clock())
        first = Process(disk)
        minted = []
        mint = first.keys.mint
        first.keys.mint = lambda *args, **more: minted.append(mint(*args, **more)) or minted[-1]  # type: ignore
        first.onboarding._audit = _refusing_audit
        with pytest.raises(errors.Ambiguous):
            await first.onboarding.onboard(application())
        disk.clock.advance(HOLD)
        second = Process(disk)
        made = await second.onboarding.onboard(application())
        await second.ring.refresh()
        assert await second.ring.authenticate(made.key.text)
        with pytest.raises(KeyRefused):
            await second.ring.authenticate(minted[0].text)

    run(scenario())


async def _refusing(*_args: object, **_more: object) -> None:
    raise errors.FailedPrecondition("STORE_OBJECT_MISSING", "A table does not exist yet.")


async def _refusing_audit(*_args: object, **_more: object) -> None:
    raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "Nobody knows.")


class _With:
    """An object with some of its methods replaced."""

    def __init__(self, inner: object, **replaced: object) -> None:
        self._inner = inner
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)
