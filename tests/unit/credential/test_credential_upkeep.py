"""What is done without being asked, with everything around it faked."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from libs import caller, errors
from services.credential.states import KEPT_FOR, Credential, Status, Verdict
from services.credential.upkeep import PENDING_AGE, VALID_AGE, Upkeep, every
from tests.support.credential import MemoryCredentialStore
from tests.unit.credential.test_credential_domain import ACME, CANARY, GLOBEX, World


class DueStore(MemoryCredentialStore):
    """Finds everything due: upkeep itself must see what is."""

    async def list_due(
        self, now: datetime, *, key_version: str, pending_age: timedelta, valid_age: timedelta, limit: int
    ) -> Sequence[Credential]:
        return [row for row in self.table.rows.values() if row.secrets][:limit]


@pytest.fixture
def world() -> World:
    world = World()
    world.store = DueStore(now=world.clock)
    world.credentials = world.process(world.store)
    return world


@pytest.fixture
def upkeep(world) -> Upkeep:
    return Upkeep(
        credentials=world.credentials,
        store=world.store,
        cipher=world.cipher,
        leaving=world.tenants,
        trail=world.trail,
        now=world.clock,
    )


async def test_a_tenant_that_leaves_is_shredded_and_confirmed(world, upkeep):
    await world.post(ACME)
    await world.post(ACME, name="two")
    await world.post(GLOBEX)
    assert await upkeep.offboard() == 0
    world.tenants.offboarding = {ACME, "never_had_one"}
    assert await upkeep.offboard() == 2
    assert world.tenants.confirmed == [ACME, "never_had_one"]
    assert all(not row.secrets for row in world.store.table.rows.values() if row.tenant_id == ACME)
    assert await world.opened(GLOBEX) == f"{CANARY}-one"
    assert world.trail.actions().count(("credential.shred", "OK")) == 2
    assert await upkeep.offboard() == 0


async def test_a_tenant_that_cannot_be_shredded_is_not_confirmed_and_keeps_nobody(world, upkeep):
    await world.post(ACME)
    world.tenants.offboarding = {ACME, "zeta"}
    world.trail.failure = errors.Unavailable("STORE_BUSY", "down")
    assert await upkeep.offboard() == 1
    assert world.tenants.confirmed == ["zeta"]
    world.trail.failure = None
    assert await upkeep.offboard() == 1


async def test_after_a_rotation_all_versions_are_wrapped_anew(world, upkeep):
    cid = (await world.post(secret="one")).credential.credential_id
    await world.post(secret="two")
    world.cipher.key_version = "kek/2"
    await upkeep.tidy()
    assert {s.sealed.key_version for s in world.store.table.rows[cid].secrets} == {"kek/2"}
    assert await world.opened() == f"{CANARY}-two"
    records = len(world.trail.events)
    await upkeep.tidy()
    assert len(world.trail.events) == records, "nothing was left to do"


async def test_an_older_version_is_destroyed_when_its_time_is_over(world, upkeep):
    cid = (await world.post(secret="one")).credential.credential_id
    await world.post(secret="two")
    world.clock.advance(KEPT_FOR - timedelta(seconds=1))
    await upkeep.tidy()
    assert len(world.store.table.rows[cid].secrets) == 2
    world.clock.advance(seconds=1)
    await upkeep.tidy()
    assert len(world.store.table.rows[cid].secrets) == 1


async def test_providers_are_asked_again_the_sooner_the_less_is_known(world, upkeep):
    world.google.verdict = Verdict(Status.PENDING, "down")
    cid = (await world.post()).credential.credential_id
    world.google.verdict = Verdict(Status.VALID)

    async def asked_after(age: timedelta) -> int:
        before = len(world.google.asked)
        world.clock.advance(age)
        await upkeep.tidy()
        return len(world.google.asked) - before

    assert await asked_after(PENDING_AGE) == 0
    assert await asked_after(timedelta(seconds=1)) == 1
    assert world.store.table.rows[cid].status is Status.VALID
    assert await asked_after(VALID_AGE) == 0
    assert await asked_after(timedelta(seconds=1)) == 1
    world.google.verdict = Verdict(Status.INVALID, "disabled")
    assert await asked_after(VALID_AGE + timedelta(seconds=1)) == 1
    assert world.store.table.rows[cid].status is Status.INVALID
    assert await asked_after(VALID_AGE * 3) == 0


async def test_one_credential_s_trouble_is_its_own(world, upkeep):
    mine = (await world.post(ACME)).credential
    theirs = (await world.post(GLOBEX)).credential
    rows = world.store.table.rows
    rows[mine.credential_id] = replace(rows[mine.credential_id], secrets=theirs.secrets)
    world.clock.advance(VALID_AGE + timedelta(seconds=1))
    assert await upkeep.tidy() == 2
    assert rows[theirs.credential_id].last_validated_time == world.clock()
    assert rows[mine.credential_id].last_validated_time != world.clock()


async def test_a_round_that_fails_is_followed_by_the_next():
    rounds = []
    enough = asyncio.Event()

    async def work() -> int:
        rounds.append((caller.current().peer, caller.request_id()))
        if len(rounds) == 3:
            enough.set()
        raise errors.Unavailable("X", "down") if len(rounds) == 1 else RuntimeError("a defect")

    task = asyncio.create_task(every(0.001, work, peer="credential"))
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    assert {peer for peer, _ in rounds} == {"credential"}
    assert len({request for _, request in rounds}) == len(rounds)
