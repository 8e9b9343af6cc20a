"""What every adapter of the scheduler's store must do; run on the emulator and on ``MemoryStore``."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from libs.tenancy import TenantId
from services.scheduler import occurrences
from services.scheduler.domain import (
    Backfill,
    Due,
    Item,
    Job,
    Pick,
    Policy,
    Run,
    Schedule,
    State,
    Stop,
    Trigger,
)

NOW = datetime(2025, 11, 17, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = Policy()
_NUMBERS = itertools.count(1)


def schedule(tenant_id: str = "acme", **values: Any) -> Schedule:
    """An hourly schedule that is due at noon."""
    number = next(_NUMBERS)
    return Schedule(
        **{
            "config_id": str(uuid.uuid4()),
            "tenant_id": TenantId(tenant_id),
            "version": 1,
            "provider": "gcp",
            "domain": "cost",
            "template": "billing",
            "cron": "0 * * * *",
            "next_run_time": NOW.replace(minute=0, second=0, microsecond=0),
            "created_at": NOW - timedelta(days=1) + timedelta(seconds=number),
            "updated_at": NOW - timedelta(days=1),
            **values,
        }
    )


def queued(tenant_id: str = "acme", **values: Any) -> tuple[Run, Item]:
    """A run and its queue row, ready at noon."""
    run, item = occurrences.occurrence(
        schedule(tenant_id, overlap_policy=values.pop("overlap_policy", "ALLOW")), NOW - HOUR, NOW, POLICY
    )
    shared = {name: value for name, value in values.items() if name in Run.__dataclass_fields__}
    return replace(run, **shared), replace(item, **values)


class StoreSuite(ABC):
    """Subclass it in a test module and give ``make``."""

    @abstractmethod
    async def make(self) -> Any:
        """An empty store: ``Schedules``, ``Queue`` and ``Records`` as one object."""

    async def filled(self, *pairs: tuple[Run, Item]) -> Any:
        store = await self.make()
        await store.add([run for run, _ in pairs], [item for _, item in pairs], str(uuid.uuid4()))
        return store

    # ------------------------------------------------------------------ schedules

    async def test_a_schedule_comes_back_as_it_was_written(self) -> None:
        store = await self.make()
        full = schedule(
            name='quote " and \\ back',
            timezone="Europe/Berlin",
            last_scheduled_for=NOW - HOUR,
            priority=9,
            parameters='{"a":[1,{"b":"ü"}]}',
            catchup_limit=7,
            date_offset_days=0,
            refresh_window_days=3,
            jitter_seconds=60,
            max_retries=0,
            fingerprint="f",
            created_by="key_1",
        )
        bare = schedule()
        for row in (full, bare):
            await store.insert(row)
            await store.insert(row)
        assert await store.read([full.config_id, bare.config_id, "absent"]) == {
            full.config_id: full,
            bare.config_id: bare,
        }

    async def test_a_schedule_is_swapped_by_version(self) -> None:
        store = await self.make()
        row = schedule()
        await store.insert(row)
        paused = replace(row, is_active=False, next_run_time=None, paused_at=NOW, updated_at=NOW, name="new")
        assert await store.replace([paused])
        assert not await store.replace([replace(row, name="late")])
        assert (await store.read([row.config_id]))[row.config_id] == replace(paused, version=2)

    async def test_schedules_are_listed_by_creation_a_page_at_a_time(self) -> None:
        store = await self.make()
        rows = [schedule() for _ in range(5)]
        await asyncio.gather(*(store.insert(row) for row in (*rows, schedule("other"), schedule(deleted_at=NOW))))
        first = await store.list(TenantId("acme"), 3, None)
        rest = await store.list(TenantId("acme"), 3, (first[-1].created_at, first[-1].config_id))
        assert [row.config_id for row in (*first, *rest)] == [row.config_id for row in rows]

    async def test_what_is_due_and_how_many_of_its_runs_have_not_ended(self) -> None:
        store = await self.make()
        longest, due = schedule(next_run_time=NOW - 2 * HOUR), schedule()
        others = [schedule(next_run_time=NOW + HOUR), schedule(is_active=False), schedule(next_run_time=None)]
        await asyncio.gather(*(store.insert(row) for row in (due, longest, *others)))
        pairs = [queued(config_id=due.config_id, state=state) for state in (State.QUEUED, State.DEFERRED)]
        pairs.append(queued(config_id=due.config_id, state=State.CLAIMED))
        await store.add([run for run, _ in pairs], [item for _, item in pairs], str(uuid.uuid4()))
        assert await store.due(NOW, 10) == [Due(longest), Due(due, waiting=2, claimed=1)]
        assert await store.due(NOW, 1) == [Due(longest)]
        assert await store.due(NOW, 1, due.config_id) == [Due(due, waiting=2, claimed=1)]
        assert await store.due(NOW, 1, others[0].config_id) == []

    async def test_firing_advances_and_creates_or_does_nothing(self) -> None:
        store = await self.make()
        rows = [schedule(), schedule(next_run_time=NOW - 50 * HOUR), schedule()]
        await asyncio.gather(*(store.insert(row) for row in rows))
        firings = [occurrences.fire(due, NOW, POLICY) for due in await store.due(NOW, 10)]
        edited = replace(rows[2], priority=7)
        assert await store.replace([edited])
        assert await store.fire(firings, "change-1", NOW) == {rows[0].config_id, rows[1].config_id}
        assert await store.fired("change-1") == {rows[0].config_id, rows[1].config_id}
        # Neither somebody else nor the same change once more makes another run of what has been fired.
        assert await store.fire(firings, "change-2", NOW) == set()
        await store.fire(firings, "change-1", NOW)
        by_config = {firing.schedule.config_id: firing for firing in firings}
        for row in rows[:2]:
            firing = by_config[row.config_id]
            stored = (await store.read([row.config_id]))[row.config_id]
            assert stored == replace(firing.schedule, version=2)
            found = await store.runs(row.tenant_id, row.config_id, 100, None)
            assert sorted(found, key=str) == sorted(firing.runs, key=str)
            assert list(await store.items(Pick(config_ids=[row.config_id]))) == list(firing.items)
        assert await store.runs(edited.tenant_id, edited.config_id, 100, None) == []
        assert await store.items(Pick(config_ids=[edited.config_id])) == []

    async def test_of_concurrent_triggers_one_creates_each_occurrence(self) -> None:
        store = await self.make()
        rows = [schedule() for _ in range(6)]
        await asyncio.gather(*(store.insert(row) for row in rows))
        firings = [occurrences.fire(due, NOW, POLICY) for due in await store.due(NOW, 10)]
        won = await asyncio.gather(
            *(store.fire(firings[n:], f"change-{n}", NOW) for n in range(3)), return_exceptions=True
        )
        written = [config_id for each in won if not isinstance(each, BaseException) for config_id in each]
        items = await store.items(Pick())
        assert len(written) == len(set(written)) == len(items) == len({item.run_id for item in items})

    async def test_retiring_a_tenants_schedules(self) -> None:
        store = await self.make()
        mine, other = schedule(), schedule("other")
        await store.insert(mine)
        await store.insert(other)
        for _ in range(2):
            await store.retire(["acme"], NOW)
        rows = await store.read([mine.config_id, other.config_id])
        assert rows[other.config_id] == other
        assert rows[mine.config_id] == replace(
            mine, version=2, is_active=False, next_run_time=None, deleted_at=NOW, updated_at=NOW
        )

    # ------------------------------------------------------------------ queue

    async def test_runs_are_added_once_for_one_key(self) -> None:
        store = await self.make()
        pairs = [queued(parameters='{"x":"ü"}', stop=Stop.AFTER, error="e", reason="r"), queued()]
        backfill = Backfill(
            backfill_id=str(uuid.uuid4()),
            tenant_id=TenantId("acme"),
            provider="gcp",
            domain="cost",
            template="billing",
            start_date=date(2025, 11, 1),
            end_date=date(2025, 11, 2),
            total_count=2,
            created_at=NOW,
        )
        key = str(uuid.uuid4())
        # The same again, also by one who does not know the first one's job: the emulator forgets one that a kill met.
        for each in (key, key, str(uuid.uuid4())):
            await store.add([run for run, _ in pairs], [item for _, item in pairs], each, backfill)
        items = await store.items(Pick())
        assert list(items) == sorted((item for _, item in pairs), key=lambda item: item.run_id)
        for run, _ in pairs:
            assert await store.run(run.tenant_id, run.run_id) == run
            assert await store.run(TenantId("other"), run.run_id) is None
        assert await store.backfills(TenantId("acme"), 10, None) == [backfill]

    async def test_picking_rows(self) -> None:
        ready = queued(state=State.QUEUED, not_before=NOW, config_id="c1")
        later = queued("other", not_before=NOW + HOUR, backfill_id="b1")
        old = queued("other", state=State.DEFERRED, expires_at=NOW, lease_id="l1")
        store = await self.filled(ready, later, old)

        async def picked(**values: Any) -> set[str]:
            return {item.run_id for item in await store.items(Pick(**values))}

        assert await picked() == {ready[1].run_id, later[1].run_id, old[1].run_id}
        assert await picked(states=[State.DEFERRED]) == {old[1].run_id}
        assert await picked(run_ids=[ready[1].run_id, "absent"]) == {ready[1].run_id}
        assert await picked(config_ids=["c1"]) == {ready[1].run_id}
        assert await picked(backfill_ids=["b1"]) == {later[1].run_id}
        assert await picked(tenant_ids=["other"]) == {later[1].run_id, old[1].run_id}
        assert await picked(lease_id="l1") == {old[1].run_id}
        assert await picked(ready_at=NOW, states=[State.QUEUED]) == {ready[1].run_id}
        assert await picked(expired_at=NOW) == {old[1].run_id}
        assert len(await store.items(Pick(), 2)) == 2

    async def test_the_backlog_of_each_tenant(self) -> None:
        store = await self.filled(
            queued("a1a"),
            queued("a1a", not_before=NOW + HOUR),
            queued("a1a", state=State.CLAIMED),
            queued("a1a", expires_at=NOW),
            queued("b1b", state=State.DEFERRED, not_before=NOW + HOUR),
            queued("b1b", state=State.DEAD_LETTER),
        )
        first, second = await store.backlog(NOW)
        assert (first.tenant_id, first.ready, first.deferred, first.claimed, first.expired, first.waiting) == (
            "a1a", 1, 0, 1, 1, 3,
        )  # fmt: skip
        assert (second.tenant_id, second.ready, second.deferred, second.waiting) == ("b1b", 0, 1, 1)

    async def claim(self, store: Any, slots: dict[str, int], size: int = 100, **values: Any) -> list[Item]:
        given = {"lease_id": uuid.uuid4().hex, "now": NOW, "until": NOW + POLICY.lease, "asked": NOW, **values}
        return list(await store.claim(slots, size, **given))

    async def test_a_claim_takes_what_is_ready_and_leases_it(self) -> None:
        ready, deferred = queued(), queued(state=State.DEFERRED, not_before=NOW + HOUR)
        store = await self.filled(
            ready,
            deferred,
            queued(not_before=NOW + HOUR),
            queued(expires_at=NOW),
            queued(stop=Stop.NOW),
            queued(state=State.DEAD_LETTER),
            queued(state=State.CLAIMED, started_at=NOW - HOUR),
            queued("unasked"),
        )
        claimed = await self.claim(store, {"acme": 9}, lease_id="lease-1")
        assert {item.run_id for item in claimed} == {ready[1].run_id, deferred[1].run_id}
        for item in claimed:
            assert (item.state, item.lease_id, item.version) == (State.CLAIMED, "lease-1", 2)
            assert (item.lease_until, item.started_at) == (NOW + POLICY.lease, None)
        assert await self.claim(store, {"acme": 9}) == []

    async def test_tenants_take_turns_then_the_rank_decides(self) -> None:
        flood = [queued("flood", rank_at=NOW - (100 - n) * HOUR) for n in range(6)]
        small = [queued("small", rank_at=NOW + n * HOUR) for n in range(2)]
        store = await self.filled(*flood, *small)
        claimed = await self.claim(store, {"flood": 5, "small": 5}, 4)
        assert {item.run_id for item in claimed} == {item.run_id for _, item in (*flood[:2], *small)}
        again = await self.claim(store, {"flood": 7, "small": 7}, 3)
        assert {item.run_id for item in again} == {item.run_id for _, item in flood[2:5]}

    async def test_slots_count_what_the_tenant_cannot_have_counted(self) -> None:
        store = await self.filled(
            queued(state=State.CLAIMED, started_at=None, lease_until=NOW + HOUR),
            queued(state=State.CLAIMED, started_at=NOW + timedelta(seconds=1)),
            # What had started by the time the tenant was asked, it has counted already.
            queued(state=State.CLAIMED, started_at=NOW),
            queued(state=State.CLAIMED, started_at=NOW - HOUR),
            *(queued() for _ in range(4)),
        )
        assert await self.claim(store, {"acme": 2}) == []
        assert len(await self.claim(store, {"acme": 3})) == 1
        assert len(await self.claim(store, {"acme": 5})) == 2

    async def test_of_one_schedule_one_run_is_claimed_at_a_time(self) -> None:
        same = [queued(serial_id="config-1", rank_at=NOW + n * HOUR) for n in range(3)]
        store = await self.filled(*same)
        [first] = await self.claim(store, {"acme": 9})
        assert first.run_id == same[0][1].run_id
        assert await self.claim(store, {"acme": 9}) == []
        assert await store.apply([replace(first, state=State.COMPLETED)], "c", NOW) == {first.run_id}
        [second] = await self.claim(store, {"acme": 9})
        assert second.run_id == same[1][1].run_id

    async def test_claims_at_once_share_nothing(self) -> None:
        store = await self.filled(*(queued(tenant) for tenant in ("a1a", "b1b", "c1c") for _ in range(4)))
        slots = {"a1a": 4, "b1b": 3, "c1c": 1}
        parts = await asyncio.gather(*(self.claim(store, slots, 3) for _ in range(5)), return_exceptions=True)
        claimed = [item for part in parts if not isinstance(part, BaseException) for item in part]
        assert len({item.run_id for item in claimed}) == len(claimed)
        assert all(count <= slots[tenant] for tenant, count in Counter(item.tenant_id for item in claimed).items())

    async def test_a_change_is_fenced_by_the_version_and_shown_in_the_run(self) -> None:
        one, two = queued(), queued()
        store = await self.filled(one, two)
        claimed = {item.run_id: item for item in await self.claim(store, {"acme": 2})}
        begun = replace(claimed[one[1].run_id], started_at=NOW, lease_id=None, lease_until=None)
        stale = replace(one[1], state=State.DEFERRED)
        assert await store.apply([begun], "change-1", NOW) == {begun.run_id}
        assert await store.apply([stale, replace(claimed[two[1].run_id], reason="why")], "change-2", NOW) == {
            two[1].run_id
        }
        assert await store.applied([begun], "change-1") == {begun.run_id}
        [found] = await store.items(Pick(run_ids=[begun.run_id]))
        assert found == replace(begun, version=3, updated_at=NOW)
        run = await store.run(begun.tenant_id, begun.run_id)
        assert (run.state, run.started_at, run.ended_at) == (State.CLAIMED, NOW, None)

    async def test_a_run_that_ended_leaves_the_queue_and_is_never_changed_again(self) -> None:
        run, item = queued()
        store = await self.filled((run, item))
        done = replace(item, state=State.COMPLETED, reason="PUBLISHED", started_at=NOW - HOUR, attempt=2)
        assert await store.apply([done], "c1", NOW) == {run.run_id}
        assert await store.items(Pick()) == []
        for late in (replace(done, version=2, state=State.CANCELLED), replace(item, state=State.DEFERRED)):
            assert await store.apply([late], "c2", NOW + HOUR) == set()
        stored = await store.run(run.tenant_id, run.run_id)
        assert (stored.state, stored.reason, stored.attempt, stored.ended_at, stored.updated_at) == (
            State.COMPLETED, "PUBLISHED", 2, NOW, NOW,
        )  # fmt: skip

    async def test_a_dead_letter_stays_in_the_queue_and_may_be_queued_again(self) -> None:
        run, item = queued()
        store = await self.filled((run, item))
        await store.apply([replace(item, state=State.DEAD_LETTER, reason="BROKEN", error="text")], "c1", NOW)
        [letter] = await store.dead_letters(10, None)
        assert (letter.state, letter.reason, letter.error) == (State.DEAD_LETTER, "BROKEN", "text")
        stored = await store.run(run.tenant_id, run.run_id)
        assert (stored.state, stored.error, stored.ended_at) == (State.DEAD_LETTER, "text", None)
        assert await store.apply([replace(letter, state=State.QUEUED, error=None)], "c2", NOW) == {run.run_id}
        assert (await store.run(run.tenant_id, run.run_id)).state is State.QUEUED
        assert await store.dead_letters(10, None) == []

    # ------------------------------------------------------------------ records

    async def test_runs_are_listed_newest_first_a_page_at_a_time(self) -> None:
        pairs = [queued(config_id="c1", scheduled_for=NOW - n * HOUR) for n in range(5)]
        store = await self.filled(*pairs, queued(config_id="c2"), queued("other", config_id="c1"))
        first = await store.runs(TenantId("acme"), "c1", 3, None)
        rest = await store.runs(TenantId("acme"), "c1", 3, (first[-1].scheduled_for, first[-1].run_id))
        assert [run.run_id for run in (*first, *rest)] == [run.run_id for run, _ in pairs]

    async def test_the_queue_is_listed_in_claim_order(self) -> None:
        running = queued("flood", state=State.CLAIMED, rank_at=NOW)
        flood = [queued("flood", rank_at=NOW - (9 - n) * HOUR) for n in range(3)]
        small = queued("small", rank_at=NOW + HOUR, state=State.DEFERRED)
        store = await self.filled(*flood, small, running, queued(state=State.DEAD_LETTER))
        rows = await store.queue(None, 10, 0)
        assert [place for place, _ in rows] == [1, 2, 3, 4, 5]
        assert [item.run_id for _, item in rows] == [
            item.run_id for _, item in (running, small, flood[0], flood[1], flood[2])
        ]
        assert await store.queue(None, 2, 3) == rows[3:]
        assert await store.queue(State.DEFERRED, 10, 0) == [rows[1]]

    async def test_dead_letters_are_listed_newest_first_a_page_at_a_time(self) -> None:
        pairs = [queued(state=State.DEAD_LETTER, updated_at=NOW - n * HOUR) for n in range(3)]
        store = await self.filled(*pairs, queued())
        first = await store.dead_letters(2, None)
        rest = await store.dead_letters(2, (first[-1].updated_at, first[-1].run_id))
        assert [item.run_id for item in (*first, *rest)] == [item.run_id for _, item in pairs]

    async def test_a_backfill_counts_its_runs(self) -> None:
        store = await self.make()
        backfill = Backfill(
            backfill_id=str(uuid.uuid4()),
            tenant_id=TenantId("acme"),
            provider="gcp",
            domain="cost",
            template="billing",
            parameters="{}",
            start_date=date(2025, 11, 1),
            end_date=date(2025, 11, 4),
            total_count=4,
            fingerprint="f",
            created_at=NOW,
            created_by="key_1",
        )
        pairs = [queued(backfill_id=backfill.backfill_id, trigger=Trigger.BACKFILL) for _ in range(4)]
        await store.add([run for run, _ in pairs], [item for _, item in pairs], backfill.backfill_id, backfill)
        ends = (State.COMPLETED, State.CANCELLED, State.DEAD_LETTER)
        await store.apply([replace(item, state=end) for (_, item), end in zip(pairs, ends, strict=False)], "c1", NOW)
        await store.cancel_backfill(TenantId("acme"), backfill.backfill_id, NOW)
        await store.cancel_backfill(TenantId("acme"), backfill.backfill_id, NOW + HOUR)
        expected = replace(backfill, completed_count=1, failed_count=2, cancelled_at=NOW)
        assert await store.backfills(TenantId("acme"), 10, None) == [expected]
        assert await store.backfills(TenantId("acme"), 10, None, backfill.backfill_id) == [expected]
        assert await store.backfills(TenantId("acme"), 10, (NOW, backfill.backfill_id)) == []
        assert await store.backfills(TenantId("other"), 10, None, backfill.backfill_id) == []

    async def test_the_last_call_of_each_job(self) -> None:
        store = await self.make()
        await store.note_call("1", Job.TRIGGER, NOW - HOUR, None, None)
        await store.note_call("1", Job.TRIGGER, NOW - HOUR / 2, "OK", '{"queued":1}')
        await store.note_call("2", Job.TRIGGER, NOW, None, None)
        await store.note_call("3", Job.PROCESS_QUEUE, NOW, None, None)
        await store.note_call("3", Job.PROCESS_QUEUE, NOW + HOUR, "STORE_UNAVAILABLE", None)
        process, trigger = await store.calls(NOW - timedelta(days=90))
        assert (trigger.job, trigger.start_time, trigger.end_time, trigger.outcome) == ("trigger", NOW, None, "")
        assert (process.job, process.start_time, process.end_time, process.outcome) == (
            "process-queue", NOW, NOW + HOUR, "STORE_UNAVAILABLE",
        )  # fmt: skip

    async def test_status(self) -> None:
        store = await self.filled(
            queued(not_before=NOW - 3 * HOUR, enqueued_at=NOW - 2 * HOUR),
            queued(not_before=NOW + HOUR),
            queued(state=State.CLAIMED),
            queued(state=State.DEAD_LETTER, updated_at=NOW - HOUR),
            queued(state=State.DEAD_LETTER, updated_at=NOW - 30 * HOUR),
        )
        await store.insert(schedule(next_run_time=NOW - HOUR))
        await store.insert(schedule(next_run_time=NOW + HOUR))
        status = await store.status(NOW)
        assert (status.due, status.due_since) == (1, NOW - HOUR)
        assert status.by_state == {"QUEUED": 2, "CLAIMED": 1, "DEAD_LETTER": 2}
        assert (status.ready_since, status.failed_last_day) == (NOW - 2 * HOUR, 1)
        empty = await (await self.make()).status(NOW)
        assert (empty.due, empty.due_since, empty.by_state, empty.ready_since) == (0, None, {}, None)

    async def test_invariants(self) -> None:
        late, settled = NOW - HOUR, NOW
        healthy = [queued(), queued(state=State.CLAIMED, started_at=NOW), queued(state=State.DEAD_LETTER)]
        store = await self.filled(*healthy)
        await store.insert(schedule())
        assert await store.violations(late, settled, NOW) == {}
        overdue, sleeping = schedule(next_run_time=late), schedule(next_run_time=None)
        await store.insert(overdue)
        await store.insert(sleeping)
        stranded, orphan, double = queued(), queued(), queued()
        expired = queued(state=State.CLAIMED, lease_until=NOW, retry_count=4, max_retries=3, serial_id="s")
        beside = queued(state=State.CLAIMED, started_at=NOW, serial_id="s")
        pairs = [double, double, expired, beside]
        runs = [stranded[0], *(run for run, _ in pairs)]
        await store.add(runs, [orphan[1], *(item for _, item in pairs)], str(uuid.uuid4()))
        found = await store.violations(late, settled, NOW)
        assert {name: sorted(ids) for name, ids in found.items() if name != "shared_serial_ids"} == {
            "overdue_schedules": [overdue.config_id],
            "sleeping_schedules": [sleeping.config_id],
            "duplicate_runs": [double[0].run_id],
            "duplicate_queue_rows": [double[0].run_id],
            "stranded_runs": [stranded[0].run_id],
            "orphaned_queue_rows": [orphan[1].run_id],
            "expired_leases": [expired[0].run_id],
            "too_many_retries": [expired[0].run_id],
        }
        assert len(found["shared_serial_ids"]) == 1

    async def test_only_what_ended_long_ago_is_deleted(self) -> None:
        old, new = NOW - timedelta(days=100), NOW - timedelta(days=10)
        store = await self.make()
        gone = [
            queued(state=State.COMPLETED, created_at=old, updated_at=old),
            queued(state=State.DEAD_LETTER, created_at=old, updated_at=old),
        ]
        kept = [
            queued(created_at=old, updated_at=old),
            queued(state=State.CLAIMED, created_at=old, updated_at=old),
            queued(state=State.COMPLETED, created_at=old, updated_at=new),
            queued(state=State.DEAD_LETTER, created_at=old, updated_at=new),
        ]
        items = [item for _, item in (*gone, *kept) if item.state is not State.COMPLETED]
        await store.add([run for run, _ in (*gone, *kept)], items, str(uuid.uuid4()))
        await store.insert(schedule(deleted_at=old))
        live = schedule(created_at=old, updated_at=old)
        await store.insert(live)
        await store.note_call("1", Job.TRIGGER, old, None, None)
        # Two runs, one dead letter's queue row, one schedule, one call.
        assert await store.delete_before(NOW - timedelta(days=90)) == 5
        assert await store.delete_before(NOW - timedelta(days=90)) == 0
        for run, _ in gone:
            assert await store.run(run.tenant_id, run.run_id) is None
        for run, _ in kept:
            assert await store.run(run.tenant_id, run.run_id) == run
        assert len(await store.items(Pick())) == 3
        assert list(await store.read([live.config_id])) == [live.config_id]
