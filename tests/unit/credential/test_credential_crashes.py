"""The process is killed before and after every step of every use case; another one finds a whole credential.

Whatever was interrupted: there is one row at most, what it holds opens for its own tenant and shows what was put in
before or what was being put in, a secret is handed out only if its opening is on the trail, and doing it again works.
"""

from collections.abc import Awaitable, Callable

import pytest

from libs import errors
from services.credential.domain import Credentials
from services.credential.states import Credential, Provider, Status, Verdict, credential_id
from services.credential.upkeep import Upkeep
from tests.support.credential import MemoryCredentialStore
from tests.support.tenant_world import Steps, stepping, survive
from tests.unit.credential.test_credential_domain import ACME, CANARY, GLOBEX, World, draft
from tests.unit.credential.test_credential_upkeep import DueStore

CID = credential_id(ACME, Provider.GCP, "default")
# More than any use case takes; those beyond its end kill nobody.
STEPS = range(1, 13)


class Process:
    """One process whose every call outside is a step."""

    def __init__(self, world: World, steps: Steps) -> None:
        store: MemoryCredentialStore = DueStore(now=world.clock, table=world.store.table, attempts=world.store.attempts)
        self.credentials = Credentials(
            store=stepping(store, steps),
            cipher=stepping(world.cipher, steps),
            tenants=stepping(world.tenants, steps),
            trail=stepping(world.trail, steps),
            validators={Provider.GCP: world.google, Provider.AWS: world.amazon},
            now=world.clock,
        )
        self.upkeep = Upkeep(
            credentials=self.credentials,
            store=stepping(store, steps),
            cipher=stepping(world.cipher, steps),
            leaving=stepping(world.tenants, steps),
            trail=stepping(world.trail, steps),
            now=world.clock,
        )

    async def post(self, secret: str) -> Credential:
        with draft(secret) as it:
            return (await self.credentials.create(ACME, it.draft, name="", source=None)).credential

    async def opened(self) -> str:
        opened = await self.credentials.open(ACME, Provider.GCP, "", {"run_id": "r1"})
        with opened.secret:
            return opened.secret.fields()["private_key"]


type Deed = Callable[[Process], Awaitable[object]]
# What is done, whether there is a credential before, and which secrets may be in force after it was interrupted.
DEEDS: dict[str, tuple[Deed, bool, set[str]]] = {
    "post the first": (lambda p: p.post("new"), False, {"new", ""}),
    "post another": (lambda p: p.post("new"), True, {"old", "new"}),
    "change the source": (lambda p: p.credentials.update_source(ACME, CID, {"dataset_id": "d"}), True, {"old"}),
    "validate": (lambda p: p.credentials.validate(ACME, CID), True, {"old"}),
    "open": (lambda p: p.opened(), True, {"old"}),
    "delete": (lambda p: p.credentials.delete(ACME, CID), True, {"old", ""}),
    "tidy": (lambda p: p.upkeep.tidy(), True, {"old"}),
    "shred": (lambda p: p.upkeep.offboard(), True, {"old", ""}),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", DEEDS)
async def test_a_death_at_any_step_leaves_a_whole_credential(name: str, after: bool) -> None:
    died = 0
    for step in STEPS:
        deed, existing, allowed = DEEDS[name]
        world = await _world(existing=existing)
        if name == "shred":
            world.tenants.offboarding.add(ACME)
        world.cipher.key_version = "kek/2"  # So that there is something to re-wrap.
        world.google.verdict = Verdict(Status.PENDING, "busy") if name == "validate" else world.google.verdict
        before = len(world.trail.events)
        steps = Steps(kill_at=step, after=after)
        answer = await survive(deed(Process(world, steps)))
        died += steps.dead
        _check_whole(world, allowed)
        if name == "open" and answer is not None:
            assert [event.action for event in world.trail.events[before:]] == ["credential.open"]
        if not steps.dead:
            assert answer is not None

        # Another process: what is there opens, and the deed can be done again.
        fresh = Process(world, Steps())
        await _check_opens(fresh, allowed)
        assert await deed(fresh) is not None
        _check_whole(world, allowed - _gone(name))
        await _check_opens(fresh, allowed - _gone(name))
        assert await world.opened(GLOBEX) == f"{CANARY}-theirs", "nobody else has noticed"
        assert CANARY not in repr(world.trail.events)
    assert died >= 2, "no step was found to die at"


def _gone(name: str) -> set[str]:
    """What cannot be in force any more once the deed was done."""
    return {"delete": {"old"}, "shred": {"old"}, "post the first": {""}, "post another": {"old"}}.get(name, set())


async def _world(*, existing: bool) -> World:
    world = World()
    await world.post(GLOBEX, "theirs")
    if existing:
        await world.post(ACME, "old")
    return world


def _check_whole(world: World, allowed: set[str]) -> None:
    rows = [row for row in world.store.table.rows.values() if row.tenant_id == ACME]
    assert len(rows) <= 1
    if not rows:
        assert "" in allowed
    for row in rows:
        assert (row.status is Status.REVOKED) == (not row.secrets)
        assert row.secrets or "" in allowed


async def _check_opens(process: Process, allowed: set[str]) -> None:
    try:
        assert (await process.opened()).removeprefix(f"{CANARY}-") in allowed
    except (errors.NotFound, errors.FailedPrecondition):
        assert "" in allowed
