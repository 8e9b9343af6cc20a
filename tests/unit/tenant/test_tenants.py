"""A tenant's life: plan, suspension, offboarding, and what a crash between two writes leaves to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from libs import errors
from libs.tenancy import Role
from services.tenant.domain import REAPING, Edit
from services.tenant.keys import KeyRefused
from services.tenant.quotas import LEASE, LIMITS, GrantState, Plan, Reserve, Settle, TenantState
from tests.support.fakes import Clock, Faults
from tests.support.tenant_world import Disk, Killed, Process, Steps, application, stays
from tests.support.virtual_time import run

type Scenario = Callable[[Disk, Process], Awaitable[None]]


def world(scenario: Scenario, faults: Faults | None = None) -> None:
    """Runs a scenario with tenant ``acme`` on PROFESSIONAL."""

    async def begin() -> None:
        disk = Disk(Clock())
        process = Process(disk)
        await process.onboarding.onboard(application(plan=Plan.PROFESSIONAL))
        await process.ring.refresh()
        disk.audit.clear()
        disk.faults(faults or Faults())
        await scenario(disk, process)

    run(begin())


def test_a_profile_is_changed_field_by_field() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        tenant = await process.tenants.update("acme", Edit(company_name="New"), None)
        assert (tenant.profile.company_name, tenant.profile.admin_email) == ("New", "admin@acme.test")
        tenant = await process.tenants.update("acme", Edit(admin_email="new@acme.test"), None)
        assert (tenant.profile.company_name, tenant.profile.admin_email) == ("New", "new@acme.test")
        assert [record.details for record in disk.audit] == [
            {"company_name": "New"},
            {"admin_email": "new@acme.test"},
        ]

    world(scenario)


@pytest.mark.parametrize("faults", [Faults(), Faults(conflict=0.2, lost_reply=0.2)])
def test_a_plan_change_holds_at_once_and_reaches_the_subscription(faults: Faults) -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        tenant = await process.tenants.update("acme", Edit(), Plan.SCALE)
        assert (tenant.plan, tenant.limits) == (Plan.SCALE, LIMITS[Plan.SCALE])
        assert disk.quotas.rows["acme"].limits == LIMITS[Plan.SCALE]
        assert disk.subscriptions["acme"] is Plan.SCALE

    world(scenario, faults)


def test_plan_changes_at_once_leave_all_rows_agreeing() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        others = [Process(disk) for _ in range(3)]
        await asyncio.gather(*(p.tenants.update("acme", Edit(), plan) for p in others for plan in Plan))
        assert disk.subscriptions["acme"] is disk.quotas.rows["acme"].plan
        assert await process.tenants.repair() == 0

    world(scenario)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, 6))
def test_a_plan_change_that_died_half_way_is_repaired(step: int, after: bool) -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        dying = Process(disk, Steps(kill_at=step, after=after))
        await asyncio.gather(dying.tenants.update("acme", Edit(), Plan.STARTER), return_exceptions=True)
        await process.tenants.repair()
        assert disk.subscriptions["acme"] is disk.quotas.rows["acme"].plan
        assert await process.tenants.repair() == 0

    world(scenario)


def test_suspending_stops_what_is_new_and_nothing_else() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        await process.quotas.reserve("acme", Reserve("running", 1, "me"))
        for _ in range(2):
            assert (await process.tenants.suspend("acme", "unpaid")).state is TenantState.SUSPENDED
        assert disk.profiles.rows["acme"].state_reason == "unpaid"
        with pytest.raises(errors.FailedPrecondition):
            await process.quotas.reserve("acme", Reserve("new", 1, "me"))
        renewal = await process.quotas.renew("me", [("acme", "running", 1)])
        assert not renewal["acme"].lost
        assert await process.tenants.state("acme") is TenantState.SUSPENDED
        for _ in range(2):
            assert (await process.tenants.reactivate("acme")).state is TenantState.ACTIVE
        assert (await process.quotas.reserve("acme", Reserve("new", 1, "me"))).created
        assert [record.action for record in disk.audit] == ["tenant.suspend"] * 2 + ["tenant.reactivate"] * 2

    world(scenario)


def test_a_tenant_that_is_not_there_is_not_found() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        tenants = process.tenants
        for work in (
            tenants.get("nobody"),
            tenants.state("nobody"),
            tenants.update("nobody", Edit(), None),
            tenants.update("nobody", Edit("x"), None),
            tenants.update("nobody", Edit(), Plan.SCALE),
            tenants.suspend("nobody", ""),
            tenants.reactivate("nobody"),
            tenants.offboard("nobody", delete_dataset=True),
            tenants.confirm("nobody", "scheduler"),
            tenants.ensure_dataset("nobody", "gcp"),
            tenants.must_stay("nobody"),
        ):
            with pytest.raises(errors.NotFound) as info:
                await work
            assert (info.value.reason, info.value.message) == ("TENANT_NOT_FOUND", "Tenant not found.")
        assert disk.audit == [] and "nobody" not in disk.datasets

    world(scenario)


# ---------------------------------------------------------------- offboarding


def test_offboarding_kills_keys_and_leases_at_once() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        made = await process.keys.create(
            "acme", name="", role=Role.RUNNER, expires_at=None, created_by="admin", must_stay=stays
        )
        await process.ring.refresh()
        assert await process.ring.authenticate(made.text)
        await process.quotas.reserve("acme", Reserve("running", 1, "me"))

        tenant = await process.tenants.offboard("acme", delete_dataset=True)
        assert tenant.state is TenantState.OFFBOARDING
        with pytest.raises(KeyRefused):
            await process.ring.authenticate(made.text)
        assert disk.live_keys("acme") == []
        assert (await process.quotas.renew("me", [("acme", "running", 1)]))["acme"].lost
        assert [grant.run_id for _, grant in await process.quotas.expired(10)] == ["running"]
        with pytest.raises(errors.FailedPrecondition):
            await process.quotas.reserve("acme", Reserve("new", 1, "me"))
        for work in (
            process.tenants.update("acme", Edit("x"), None),
            process.tenants.reactivate("acme"),
            process.tenants.suspend("acme", ""),
            process.tenants.ensure_dataset("acme", "gcp"),
            process.tenants.must_stay("acme"),
        ):
            with pytest.raises(errors.FailedPrecondition) as info:
                await work
            assert info.value.reason == "TENANT_OFFBOARDING"

    world(scenario)


@pytest.mark.parametrize("delete_dataset", [True, False])
def test_the_dataset_goes_last_once_all_have_confirmed(delete_dataset: bool) -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        await process.quotas.reserve("acme", Reserve("running", 1, "me"))
        await process.tenants.offboard("acme", delete_dataset=delete_dataset)
        assert await process.tenants.unconfirmed("credential") == ["acme"]
        assert await process.tenants.advance_offboardings() == 0

        for _ in range(2):
            await process.tenants.confirm("acme", "credential")
        assert await process.tenants.unconfirmed("credential") == []
        assert await process.tenants.unconfirmed("scheduler") == ["acme"]
        assert await process.tenants.advance_offboardings() == 0
        await process.tenants.confirm("acme", "scheduler")
        assert process.tenants.nudge.is_set()
        assert await process.tenants.advance_offboardings() == 0, "a run is not closed yet"
        await process.quotas.settle("acme", Settle("running", 1, GrantState.REAPED))
        assert await process.tenants.advance_offboardings() == 1

        assert ("acme" not in disk.datasets) is delete_dataset
        assert disk.profiles.rows["acme"].state is disk.quotas.rows["acme"].state is TenantState.DELETED
        assert (await process.tenants.get("acme")).state is TenantState.DELETED
        with pytest.raises(errors.NotFound):
            await process.tenants.state("acme")
        with pytest.raises(errors.NotFound):
            await process.quotas.reserve("acme", Reserve("new", 1, "me"))
        assert (await process.tenants.offboard("acme", delete_dataset=True)).state is TenantState.DELETED
        await process.tenants.confirm("acme", "scheduler")
        assert await process.tenants.advance_offboardings() == 0
        assert disk.audit[-3].action == "tenant.deleted"

    world(scenario)


def test_runs_that_nobody_closes_hold_an_offboarding_up_for_some_minutes_only() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        await process.quotas.reserve("acme", Reserve("running", 1, "me"))
        await process.tenants.offboard("acme", delete_dataset=True)
        for context in ("credential", "scheduler"):
            await process.tenants.confirm("acme", context)
        assert await process.tenants.advance_offboardings() == 0
        disk.clock.advance(REAPING + timedelta(seconds=1))
        assert await process.tenants.advance_offboardings() == 1

    world(scenario)


def test_until_the_end_the_last_asker_decides_about_the_dataset() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        await process.tenants.offboard("acme", delete_dataset=True)
        await process.tenants.offboard("acme", delete_dataset=False)
        for context in ("credential", "scheduler"):
            await process.tenants.confirm("acme", context)
        assert await process.tenants.advance_offboardings() == 1
        assert "acme" in disk.datasets

    world(scenario)


@pytest.mark.parametrize("faults", [Faults(), Faults(conflict=0.1, lost_reply=0.2)], ids=["calm", "faults"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, 17))
def test_an_offboarding_that_died_at_any_step_is_taken_up_by_another(step: int, after: bool, faults: Faults) -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        dying = Process(disk, Steps(kill_at=step, after=after))
        await asyncio.gather(_all_of_it(dying), return_exceptions=True)
        asked = disk.profiles.rows["acme"].state is not TenantState.ACTIVE

        disk.clock.advance(LEASE)
        await process.tenants.advance_offboardings()
        if not asked:
            assert disk.live_keys("acme") and "acme" in disk.datasets
            await process.tenants.offboard("acme", delete_dataset=True)
        assert disk.live_keys("acme") == []
        assert disk.quotas.rows["acme"].state is not TenantState.ACTIVE
        for context in ("credential", "scheduler"):
            await process.tenants.confirm("acme", context)
        await process.tenants.advance_offboardings()
        assert "acme" not in disk.datasets
        assert disk.profiles.rows["acme"].state is TenantState.DELETED

    world(scenario, faults)


async def _all_of_it(process: Process) -> None:
    await process.tenants.offboard("acme", delete_dataset=True)
    for context in ("credential", "scheduler"):
        await process.tenants.confirm("acme", context)
    await process.tenants.advance_offboardings()


def test_replicas_that_end_an_offboarding_at_once_write_one_record() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        await process.tenants.offboard("acme", delete_dataset=True)
        for context in ("credential", "scheduler"):
            await process.tenants.confirm("acme", context)
        await asyncio.gather(*(Process(disk).tenants.advance_offboardings() for _ in range(3)))
        ends = {record.record_id for record in disk.audit if record.action == "tenant.deleted"}
        assert len(ends) == 1 and "acme" not in disk.datasets

    world(scenario)


def test_one_tenants_trouble_does_not_keep_the_others() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        await process.onboarding.onboard(application("beta"))
        for tenant_id in ("acme", "beta"):
            await process.tenants.offboard(tenant_id, delete_dataset=True)
            for context in ("credential", "scheduler"):
                await process.tenants.confirm(tenant_id, context)
        delete = process.tenants._datasets.delete

        async def failing(name: str) -> None:
            if name == "acme":
                raise errors.FailedPrecondition("STORE_ACCESS_DENIED", "No.")
            await delete(name)

        process.tenants._datasets.delete = failing  # type: ignore[method-assign]
        assert await process.tenants.advance_offboardings() == 1
        assert "acme" in disk.datasets and "beta" not in disk.datasets

    world(scenario)


def test_only_the_contexts_that_hold_something_confirm() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        with pytest.raises(errors.FailedPrecondition):
            await process.tenants.confirm("acme", "scheduler")
        await process.tenants.offboard("acme", delete_dataset=False)
        with pytest.raises(errors.InvalidArgument):
            await process.tenants.confirm("acme", "pipeline_executor")

    world(scenario)


# ---------------------------------------------------------------- datasets


def test_a_providers_tables_are_ensured_and_then_answered_from_memory() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        assert await process.tenants.ensure_dataset("acme", "GCP") == (False, ["gcp_cost"])
        disk.down = True
        assert await process.tenants.ensure_dataset("acme", "gcp") == (False, [])
        disk.clock.advance(timedelta(minutes=5))
        with pytest.raises(errors.Unavailable):
            await process.tenants.ensure_dataset("acme", "gcp")

    world(scenario)


def test_a_dataset_somebody_dropped_is_made_again() -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        del disk.datasets["acme"]
        created, made = await process.tenants.ensure_dataset("acme", "")
        assert created and len(made) == 3

    world(scenario)


@pytest.mark.parametrize("provider", ["central", "x_meta", "../gcp", "oracle", "gcp "])
def test_only_providers_with_tables_are_ensured(provider: str) -> None:
    async def scenario(disk: Disk, process: Process) -> None:
        with pytest.raises(errors.InvalidArgument):
            await process.tenants.ensure_dataset("acme", provider)

    world(scenario)


def test_killed_is_no_error_of_ours() -> None:
    assert not issubclass(Killed, Exception)
