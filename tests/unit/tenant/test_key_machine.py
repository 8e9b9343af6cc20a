"""Three replicas make, rotate, revoke and judge keys on a store that fails and is late; no dead key opens anything.

Invariants, after every step, on every replica and for every key that anybody was ever given: one that is accepted is
its own tenant's with its own role (I8), and has not been dead for over 15 s, nor at all where its end was answered; one
that is refused is not live; with no news for over 15 s nothing is judged (503). Readings of the store begin at least a
second apart, whatever is asked. Of a lineage at most two keys live. Hypothesis prints the seed of a failure
(``@reproduce_failure``); the faults of the store are drawn from it too.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from libs import errors
from libs.tenancy import Caller, Role
from services.tenant.keys import PACE, REFRESH, STALE, ApiKey, KeyEntry, KeyRefused, NewKey, new_key, parse
from tests.support.examples import examples
from tests.support.fakes import Clock, Faults
from tests.support.tenant_world import Disk, Killed, MemoryKeyStore, Process, Steps, stays
from tests.support.virtual_time import VirtualTimeLoop

TENANTS = ("a_tenant", "b_tenant")
REPLICAS = 3
# The last minutes of a year: midnight and the month's end come early.
START = datetime(2025, 12, 31, 23, 58, tzinfo=UTC)

replicas = st.integers(0, REPLICAS - 1)
tenants = st.sampled_from(TENANTS)
picks = st.integers(0, 100)
overlaps = st.sampled_from((0, 1, 60, 3_600)).map(lambda seconds: timedelta(seconds=seconds))
lives = st.sampled_from((None, 1, 30, 7_200))


class Readings:
    """What one replica's ring reads: the store's keys, maybe late, maybe not at all; each reading is written down."""

    def __init__(self, disk: Disk) -> None:
        self._store = MemoryKeyStore(disk)
        self._disk = disk
        self.began: list[datetime] = []
        self.held: asyncio.Event | None = None

    async def load(self, dead_since: datetime) -> Sequence[KeyEntry]:
        self.began.append(self._disk.clock())
        found = await self._store.load(dead_since)
        if self.held is not None:
            await self.held.wait()
        return found


@dataclass
class Replica:
    """One process, its readings, and when it reads next."""

    process: Process
    readings: Readings
    due: datetime
    dead_here: set[str] = field(default_factory=set)


class KeyMachine(RuleBasedStateMachine):
    """The faults are set per test; see ``_machine``."""

    faults = Faults()

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.loop = VirtualTimeLoop()
        self.clock = Clock(START)
        self.disk = Disk(self.clock)
        self.dice = random.Random(seed)
        self.replicas = [self._start() for _ in range(REPLICAS)]
        self.shown: dict[str, NewKey] = {}
        self.down_since: datetime | None = None
        self._tick()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self._all_is_well_again()
        finally:
            self.loop.close()

    # ------------------------------------------------------------ what happens

    @rule(at=replicas, tenant=tenants, role=st.sampled_from((Role.RUNNER, Role.ADMIN)), life=lives)
    def create(self, at: int, tenant: str, role: Role, life: int | None) -> None:
        end = None if life is None else self.clock() + timedelta(seconds=life)
        work = self.replicas[at].process.keys.create(
            tenant, name="", role=role, expires_at=end, created_by="me", must_stay=stays
        )
        self._answered("api_key.create", self._do(work))

    @rule(at=replicas, pick=picks, overlap=overlaps)
    def rotate(self, at: int, pick: int, overlap: timedelta) -> None:
        if (old := self._pick(pick)) is None:
            return
        key_id, replica = old.key.api_key_id, self.replicas[at]
        made = self._do(replica.process.keys.rotate(old.key.tenant_id, key_id, overlap, "me"))
        self._answered("api_key.rotate", made)
        if isinstance(made, NewKey):
            assert (made.key.role, made.key.lineage_id) == (old.key.role, old.key.lineage_id)
            stored = self.disk.keys[key_id]
            assert stored.expires_at is not None and stored.expires_at <= self.clock() + overlap
            if not overlap:
                replica.dead_here.add(key_id)

    @rule(at=replicas, pick=picks)
    def revoke(self, at: int, pick: int) -> None:
        if (key := self._pick(pick)) is None:
            return
        replica = self.replicas[at]
        done = self._do(replica.process.keys.revoke(key.key.tenant_id, key.key.api_key_id))
        if isinstance(done, ApiKey):
            assert self.disk.audit[-1].action == "api_key.revoke", "it is on record before it is answered"
            assert self.disk.keys[key.key.api_key_id].revoked_at is not None
            replica.dead_here.add(key.key.api_key_id)

    @rule(at=replicas, tenant=tenants)
    def revoke_all(self, at: int, tenant: str) -> None:
        """The tenant is offboarded."""
        if self._do(self.replicas[at].process.keys.revoke_all(tenant)) is None:
            assert not self.disk.live_keys(tenant)

    @rule(at=replicas, pick=picks)
    def meddle(self, at: int, pick: int) -> None:
        """Somebody names another tenant's key."""
        if (key := self._pick(pick)) is None:
            return
        before, (other,) = dict(self.disk.keys), (t for t in TENANTS if t != key.key.tenant_id)
        keys = self.replicas[at].process.keys
        for work in (
            keys.revoke(other, key.key.api_key_id),
            keys.rotate(other, key.key.api_key_id, timedelta(), "me"),
        ):
            assert isinstance(self._do(work), errors.NotFound | errors.Unavailable)
        assert self.disk.keys == before

    @rule(pick=picks, step=st.integers(1, 4), after=st.booleans(), what=st.sampled_from(("create", "rotate", "revoke")))
    def die(self, pick: int, step: int, after: bool, what: str) -> None:
        """A process is killed before or after any of its statements; nobody hears anything."""
        keys, old = Process(self.disk, Steps(kill_at=step, after=after)).keys, self._pick(pick)
        if what == "create":
            self._do(
                keys.create("a_tenant", name="", role=Role.RUNNER, expires_at=None, created_by="me", must_stay=stays),
                heard=False,
            )
        elif old is not None and what == "rotate":
            work = keys.rotate(old.key.tenant_id, old.key.api_key_id, timedelta(), "me")
            self._do(work, heard=False)
        elif old is not None:
            self._do(keys.revoke(old.key.tenant_id, old.key.api_key_id), heard=False)

    @rule(at=replicas)
    def restart(self, at: int) -> None:
        self._release(self.replicas[at])
        self.replicas[at] = self._start()
        self._tick()

    @rule(at=replicas)
    def answer_late(self, at: int) -> None:
        """The replica's next readings are of that moment, but their answer is long on its way."""
        if self.replicas[at].readings.held is None:
            self.replicas[at].readings.held = asyncio.Event()

    @rule(at=replicas)
    def answer_now(self, at: int) -> None:
        self._release(self.replicas[at])

    @rule(down=st.booleans())
    def store(self, down: bool) -> None:
        """The store is out of reach for everybody, or back."""
        self.disk.down = down
        self.down_since = (self.down_since or self.clock()) if down else None

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        """Time passes, and every replica reads as ``KeyRing.run`` does."""
        for _ in range(seconds):
            self.clock.advance(seconds=1)
            self._tick()

    @rule(seconds=st.sampled_from((16, 3_600, 86_400)))
    def stand_still(self, seconds: int) -> None:
        """All machines are suspended: time passes, and nobody reads."""
        self.clock.advance(seconds=seconds)

    @rule(at=replicas, count=st.integers(1, 40))
    def flood(self, at: int, count: int) -> None:
        """Well-formed keys that nobody ever made, all at once: they share one reading."""
        ring, readings = self.replicas[at].process.ring, self.replicas[at].readings
        if readings.held is not None:
            return
        before = len(readings.began)
        forged = [new_key("test").text() for _ in range(count)]
        for answer in self._all(ring.authenticate(text) for text in forged):
            assert isinstance(answer, errors.Unavailable) or (
                isinstance(answer, KeyRefused) and answer.cause == "UNKNOWN"
            )
        assert len(readings.began) - before <= 1

    # ------------------------------------------------------------ what must hold

    @invariant()
    def every_key_is_judged_rightly(self) -> None:
        if not hasattr(self, "replicas"):
            return
        for replica in self.replicas:
            for key_id, made in self.shown.items():
                self._judge(replica, key_id, made)

    @invariant()
    def the_store_is_sound(self) -> None:
        if not hasattr(self, "replicas"):
            return
        lineages: dict[str, int] = {}
        now = self.clock()
        for key in self.disk.keys.values():
            lineages[key.lineage_id] = lineages.get(key.lineage_id, 0) + key.live(now)
        assert max(lineages.values(), default=0) <= 2
        for replica in self.replicas:
            began = replica.readings.began
            assert all(later - earlier >= PACE for earlier, later in itertools.pairwise(began))

    def _judge(self, replica: Replica, key_id: str, made: NewKey) -> None:
        if replica.readings.held is not None and key_id not in replica.process.ring._entries:
            return  # It would wait for the late answer, as it should.
        before = self.clock()
        answer = self._all([replica.process.ring.authenticate(made.text)])[0]
        now = self.clock()
        stored = self.disk.keys[key_id]
        if isinstance(answer, Caller):
            assert answer == Caller(made.key.role, tenant_id=made.key.tenant_id, key_id=key_id), "I8"
            dead = min((at for at in (stored.revoked_at, stored.expires_at) if at is not None), default=None)
            ends = now + replica.process.ring.good_for(answer)  # The gateway asks no sooner.
            assert dead is None or dead > before or ends - dead <= STALE, "a dead key is accepted"
            assert key_id not in replica.dead_here, "its end was answered here"
            assert made.key.expires_at is None or made.key.expires_at > before, "its end was known from the start"
            assert self.down_since is None or before - self.down_since <= STALE, "nobody can know"
        elif isinstance(answer, KeyRefused):
            assert not stored.live(now), f"a live key is refused: {answer.cause}"
            assert self.down_since is None or before - self.down_since <= STALE, "nobody can know"
        else:
            assert isinstance(answer, errors.Unavailable) and answer.retry_after is not None
            fresh = replica.process.ring._fresh_at
            known = key_id in replica.process.ring._entries
            assert self.disk.down or fresh is None or before - fresh > STALE or not known, "it could have known"

    # ------------------------------------------------------------ helpers

    def _start(self) -> Replica:
        process, readings = Process(self.disk), Readings(self.disk)
        process.ring._store = readings  # type: ignore[assignment]
        store = process.keys._store
        process.keys._store = _Failing(store, self.faults, self.dice)  # type: ignore[assignment]
        return Replica(process, readings, self.clock())

    def _tick(self) -> None:
        """Readings that are due."""
        for replica in self.replicas:
            ring = replica.process.ring
            if self.clock() < replica.due or (ring._reading is not None and not ring._reading.done()):
                continue
            if replica.readings.held is not None:
                self._all([self._begin_reading(ring)])
                continue
            (failed,) = self._all([ring.refresh()])
            replica.due = self.clock() + (REFRESH if failed is None else timedelta())

    async def _begin_reading(self, ring: Any) -> None:
        asking = asyncio.ensure_future(ring.refresh())
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        for _ in range(5):
            await asyncio.sleep(0)

    def _release(self, replica: Replica) -> None:
        held, replica.readings.held = replica.readings.held, None
        if held is not None:

            async def let_go() -> None:
                held.set()
                for _ in range(5):
                    await asyncio.sleep(0)

            self._all([let_go()])

    def _pick(self, pick: int) -> NewKey | None:
        return list(self.shown.values())[pick % len(self.shown)] if self.shown else None

    def _answered(self, action: str, made: Any) -> None:
        if isinstance(made, NewKey):
            record = self.disk.audit[-1]
            assert (record.action, record.object_id) == (action, made.key.api_key_id), "on record before it is shown"
            parts = parse(made.text)
            assert parts is not None and parts.secret not in repr((self.disk.keys, self.disk.audit))
            self.shown[made.key.api_key_id] = made

    def _do(self, work: Coroutine[Any, Any, Any], *, heard: bool = True) -> Any:
        (answer,) = self._all([work])
        if heard and isinstance(answer, BaseException):
            assert isinstance(answer, errors.Error), answer
        return answer

    def _all(self, works: Any) -> list[Any]:
        """Runs all at once; errors of ours, and deaths, are answers."""

        async def gathered() -> list[Any]:
            return await asyncio.gather(*works, return_exceptions=True)

        answers = self.loop.run_until_complete(gathered())
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, errors.Error | Killed):
                raise answer
        return answers

    def _all_is_well_again(self) -> None:
        """With the store back, every replica knows within one reading what is so."""
        self.store(False)
        for replica in self.replicas:
            self._release(replica)
        self.wait(2 * int(REFRESH.total_seconds()))
        now = self.clock()
        for replica in self.replicas:
            for key_id, made in self.shown.items():
                (answer,) = self._all([replica.process.ring.authenticate(made.text)])
                assert isinstance(answer, Caller) == self.disk.keys[key_id].live(now)


class _Failing:
    """A key store whose writes fail before they are made, or are made and not answered."""

    def __init__(self, inner: Any, faults: Faults, dice: random.Random) -> None:
        self._inner = inner
        self._faults = faults
        self._dice = dice

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("insert", "rotate", "revoke"):
            return found

        async def write(*arguments: Any, **named: Any) -> Any:
            if self._dice.random() < self._faults.unavailable:
                raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
            result = await found(*arguments, **named)
            if self._dice.random() < self._faults.lost_reply:
                raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake lost the reply.")
            return result

        return write


def _machine(faults: Faults) -> type[KeyMachine]:
    return type("KeyMachine", (KeyMachine,), {"faults": faults})


@pytest.mark.parametrize(
    "faults",
    [Faults(), Faults(lost_reply=0.05), Faults(lost_reply=0.2, unavailable=0.1)],
    ids=["a store that works", "5 % lost replies", "20 % lost replies and failures"],
)
def test_no_dead_key_opens_anything(faults: Faults) -> None:
    run_state_machine_as_test(
        _machine(faults),
        settings=settings(
            max_examples=examples(20, 200),
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
