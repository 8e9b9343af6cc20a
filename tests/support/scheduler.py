"""The scheduler's neighbours and its store in memory, which conflict, lose replies and are killed like the real ones.

``MemoryStore`` models what BigQuery promises and no more: a statement sees a snapshot; a transaction that others
overtook is aborted whole; a single UPDATE looks again; an INSERT never conflicts and never checks a key; a reply may be
lost after the commit. Every statement takes turns of the event loop before and after its commit, so that a task that is
cancelled dies on either side of it. It passes the same suite as the real store and knows nothing of time or decisions.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from libs import errors
from libs.tenancy import TenantId, tenant_not_found
from services.scheduler.domain import (
    Allowance,
    Attempt,
    AttemptStatus,
    Backfill,
    Backlog,
    Due,
    Firing,
    Item,
    Job,
    JobCall,
    Pick,
    Run,
    Schedule,
    State,
    Status,
)
from tests.support.fakes import Clock

_ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED, State.SKIPPED)


@dataclass
class StoreFaults:
    """How likely each failure is, 0 to 1: a conflict or an outage (nothing is done), a reply lost after the commit."""

    conflict: float = 0.0
    unavailable: float = 0.0
    lost_reply: float = 0.0


class MemoryStore:
    """``Schedules``, ``Queue`` and ``Records`` in one, on plain lists: nothing keeps a key unique but the code."""

    def __init__(self, *, faults: StoreFaults | None = None, seed: int = 0) -> None:
        self.schedules: list[Schedule] = []
        self.queue_rows: list[Item] = []
        self.run_rows: list[Run] = []
        self.backfill_rows: list[Backfill] = []
        self.job_events: list[tuple[str, Job, datetime, str | None]] = []
        self.statements: Counter[str] = Counter()
        self.faults = faults or StoreFaults()
        self.random = random.Random(seed)
        self._written_by: dict[str, list[str]] = defaultdict(list)
        self._job_ids: set[str] = set()
        self._changes: Counter[str] = Counter()

    # -------------------------------------------------------------- the model of a store

    async def _turn(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            await asyncio.sleep(0)

    async def _read[R](self, name: str, read: Callable[[], R]) -> R:
        self.statements[name] += 1
        await self._turn()
        if self.random.random() < self.faults.unavailable:
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        found = read()
        await self._turn()
        return found

    async def _write[R](self, name: str, tables: Sequence[str], commit: Callable[[], R], *, transaction: bool) -> R:
        """Runs a statement, or a transaction, which is tried again a few times when others overtook it."""
        for _ in range(6):
            self.statements[name] += 1
            seen = {table: self._changes[table] for table in tables}
            await self._turn()
            if self.random.random() < self.faults.unavailable:
                raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
            overtaken = transaction and any(self._changes[table] != seen[table] for table in tables)
            if not overtaken and self.random.random() >= self.faults.conflict:
                result = commit()
                for table in tables:
                    self._changes[table] += 1
                await self._turn()
                if self.random.random() < self.faults.lost_reply:
                    raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake lost the reply.")
                return result
        raise errors.Aborted("STORE_CONFLICT", "The fake conflicted.")

    # -------------------------------------------------------------- Schedules

    async def read(self, keys: Collection[str]) -> Mapping[str, Schedule]:
        return await self._read(
            "read_schedules", lambda: {row.config_id: row for row in self.schedules if row.config_id in keys}
        )

    async def replace(self, rows: Collection[Schedule]) -> bool:
        def commit() -> int:
            return len(self._swap_schedules(rows))

        try:
            written = await self._write("replace_schedules", ["configs"], commit, transaction=False)
        except (errors.Aborted, errors.Unavailable):
            return False
        return written == len(rows)

    def _swap_schedules(self, rows: Iterable[Schedule]) -> set[str]:
        """Writes the rows whose version is still the stored one; their ids."""
        places = {(row.config_id, row.version): number for number, row in enumerate(self.schedules)}
        written = set()
        for row in rows:
            if (place := places.get((row.config_id, row.version))) is not None:
                self.schedules[place] = replace(row, version=row.version + 1)
                written.add(row.config_id)
        return written

    async def insert(self, schedule: Schedule) -> None:
        await self._once("insert_schedule", schedule.config_id, lambda: self.schedules.append(schedule))

    async def _once(self, name: str, job_id: str, commit: Callable[[], None]) -> None:
        def commit_once() -> None:
            if f"{name}/{job_id}" not in self._job_ids:
                self._job_ids.add(f"{name}/{job_id}")
                commit()

        await self._write(name, [], commit_once, transaction=False)

    async def list(self, tenant_id: TenantId, size: int, after: tuple[datetime, str] | None) -> Sequence[Schedule]:
        def read() -> list[Schedule]:
            rows = [row for row in self.schedules if row.tenant_id == tenant_id and row.deleted_at is None]
            rows.sort(key=lambda row: (row.created_at, row.config_id))
            return [row for row in rows if after is None or (row.created_at, row.config_id) > after][:size]

        return await self._read("list_schedules", read)

    async def due(self, now: datetime, limit: int, config_id: str | None = None) -> Sequence[Due]:
        def read() -> list[Due]:
            rows = [
                row
                for row in self.schedules
                if row.is_active
                and row.next_run_time is not None
                and row.next_run_time <= now
                and config_id in (None, row.config_id)
            ]
            rows.sort(key=lambda row: (row.next_run_time, row.config_id))
            waiting = Counter(item.config_id for item in self.queue_rows if item.state.waits)
            claimed = Counter(item.config_id for item in self.queue_rows if item.state is State.CLAIMED)
            return [Due(row, waiting[row.config_id], claimed[row.config_id]) for row in rows[:limit]]

        return await self._read("read_due", read)

    async def fire(self, firings: Sequence[Firing], change_id: str, now: datetime) -> Collection[str]:
        def commit() -> set[str]:
            written = self._swap_schedules(firing.schedule for firing in firings)
            self._written_by[change_id] += written
            for firing in firings:
                if firing.schedule.config_id in written:
                    self.run_rows.extend(firing.runs)
                    self.queue_rows.extend(firing.items)
            return written

        # The inserts never conflict: only the table of schedules can be overtaken.
        return await self._write("fire_schedules", ["configs"], commit, transaction=True)

    async def fired(self, change_id: str) -> Collection[str]:
        return await self._read("read_fired", lambda: set(self._written_by[change_id]))

    async def retire(self, tenant_ids: Collection[str], now: datetime) -> None:
        def commit() -> None:
            rows = [row for row in self.schedules if row.tenant_id in tenant_ids and row.deleted_at is None]
            self._swap_schedules(
                replace(row, is_active=False, next_run_time=None, deleted_at=now, updated_at=now) for row in rows
            )

        await self._write("retire_schedules", ["configs"], commit, transaction=False)

    # -------------------------------------------------------------- Queue

    async def add(self, runs: Sequence[Run], items: Sequence[Item], key: str, backfill: Backfill | None = None) -> None:
        def commit() -> None:
            known = {row.run_id for row in self.run_rows} | {row.backfill_id for row in self.backfill_rows}
            self.run_rows.extend(run for run in runs if run.run_id not in known)
            self.queue_rows.extend(item for item in items if item.run_id not in known)
            self.backfill_rows.extend([backfill] if backfill and backfill.backfill_id not in known else [])

        await self._once("add_runs", key, commit)

    async def items(self, pick: Pick, limit: int = 1_000) -> Sequence[Item]:
        def matches(row: Item) -> bool:
            return (
                (not pick.states or row.state in pick.states)
                and (not pick.run_ids or row.run_id in pick.run_ids)
                and (not pick.config_ids or row.config_id in pick.config_ids)
                and (not pick.backfill_ids or row.backfill_id in pick.backfill_ids)
                and (not pick.tenant_ids or row.tenant_id in pick.tenant_ids)
                and (not pick.lease_id or row.lease_id == pick.lease_id)
                and (pick.ready_at is None or row.not_before <= pick.ready_at)
                and (pick.expired_at is None or row.expires_at <= pick.expired_at)
            )

        return await self._read(
            "read_items", lambda: sorted(filter(matches, self.queue_rows), key=lambda row: row.run_id)[:limit]
        )

    async def backlog(self, now: datetime) -> Sequence[Backlog]:
        def read() -> list[Backlog]:
            rows: dict[str, list[Item]] = defaultdict(list)
            for item in self.queue_rows:
                rows[item.tenant_id].append(item)
            return [_backlog(TenantId(tenant_id), rows[tenant_id], now) for tenant_id in sorted(rows)]

        return await self._read("read_backlog", read)

    async def claim(
        self, slots: Mapping[str, int], size: int, *, lease_id: str, now: datetime, until: datetime, asked: datetime
    ) -> Sequence[Item]:
        def commit() -> int:
            chosen = self._choose(slots, now, asked)[:size]
            return len(
                self._swap_items(
                    (
                        replace(
                            row, state=State.CLAIMED, reason=None, lease_id=lease_id, lease_until=until, started_at=None
                        )
                        for row in chosen
                    ),
                    now,
                )
            )

        try:
            claimed = await self._write("claim_runs", ["queue"], commit, transaction=False)
        except errors.Ambiguous:
            claimed = size
        return await self.items(Pick(lease_id=lease_id), size) if claimed else []

    def _choose(self, slots: Mapping[str, int], now: datetime, asked: datetime) -> list[Item]:
        """Free rows in claim order, none above its tenant's slots; written to be unlike the SQL."""
        claimed, taken, serials = Counter[str](), Counter[str](), set[str]()
        for row in self.queue_rows:
            if row.state is State.CLAIMED:
                claimed[row.tenant_id] += 1
                taken[row.tenant_id] += row.started_at is None or row.started_at > asked
                serials.add(row.serial_id)
        turns: list[tuple[int, datetime, str, Item]] = []
        granted = Counter[str]()
        for row in sorted(self.queue_rows, key=lambda row: (row.rank_at, row.run_id)):
            due = row.state is State.DEFERRED or (row.state is State.QUEUED and row.not_before <= now)
            if not due or row.expires_at <= now or row.stop is not None or row.serial_id in serials:
                continue
            serials.add(row.serial_id)
            if taken[row.tenant_id] + granted[row.tenant_id] >= slots.get(row.tenant_id, 0):
                continue
            granted[row.tenant_id] += 1
            turns.append((claimed[row.tenant_id] + granted[row.tenant_id], row.rank_at, row.run_id, row))
        return [row for *_, row in sorted(turns, key=lambda turn: turn[:3])]

    def _swap_items(self, rows: Iterable[Item], now: datetime) -> dict[str, Item]:
        """Writes the rows whose version is still the stored one; those, by run id."""
        places = {(row.run_id, row.version): number for number, row in enumerate(self.queue_rows)}
        written = {}
        for row in rows:
            if (place := places.get((row.run_id, row.version))) is not None:
                self.queue_rows[place] = written[row.run_id] = replace(row, version=row.version + 1, updated_at=now)
        return written

    async def apply(self, items: Sequence[Item], change_id: str, now: datetime) -> Collection[str]:
        if len({item.run_id for item in items}) != len(items):
            raise AssertionError("a run twice in one batch: BigQuery fails the whole statement")

        def commit() -> set[str]:
            written = self._swap_items(items, now)
            for number, run in enumerate(self.run_rows):
                if run.run_id in written and run.state not in _ENDED:
                    self.run_rows[number] = _shown(run, written[run.run_id], now)
                    self._written_by[change_id].append(run.run_id)
            self.queue_rows = [row for row in self.queue_rows if row.state not in _ENDED]
            return set(self._written_by[change_id])

        return await self._write("apply_items", ["queue", "runs"], commit, transaction=True)

    async def applied(self, items: Sequence[Item], change_id: str) -> Collection[str]:
        return await self._read("read_applied", lambda: set(self._written_by[change_id]))

    # -------------------------------------------------------------- Records

    async def run(self, tenant_id: TenantId, run_id: str) -> Run | None:
        rows = self.run_rows
        return await self._read(
            "read_run", lambda: next((r for r in rows if r.tenant_id == tenant_id and r.run_id == run_id), None)
        )

    async def runs(
        self, tenant_id: TenantId, config_id: str, size: int, before: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        def read() -> list[Run]:
            rows = [row for row in self.run_rows if row.tenant_id == tenant_id and row.config_id == config_id]
            return _page(rows, lambda row: (row.scheduled_for, row.run_id), before)[:size]

        return await self._read("list_runs", read)

    async def queue(self, state: State | None, size: int, after: int) -> Sequence[tuple[int, Item]]:
        def read() -> list[tuple[int, Item]]:
            rows = [row for row in self.queue_rows if row.state is not State.DEAD_LETTER]
            turns, order = Counter[str](), []
            for row in sorted(rows, key=lambda row: (row.state is not State.CLAIMED, row.rank_at, row.run_id)):
                turns[row.tenant_id] += 1
                order.append((row.state is not State.CLAIMED, turns[row.tenant_id], row.rank_at, row.run_id, row))
            places = enumerate((turn[-1] for turn in sorted(order, key=lambda turn: turn[:-1])), 1)
            return [(n, row) for n, row in places if n > after and state in (None, row.state)][:size]

        return await self._read("list_queue", read)

    async def dead_letters(self, size: int, before: tuple[datetime, str] | None) -> Sequence[Item]:
        def read() -> list[Item]:
            rows = [row for row in self.queue_rows if row.state is State.DEAD_LETTER]
            return _page(rows, lambda row: (row.updated_at, row.run_id), before)[:size]

        return await self._read("list_dead_letters", read)

    async def backfills(
        self, tenant_id: TenantId, size: int, before: tuple[datetime, str] | None, backfill_id: str | None = None
    ) -> Sequence[Backfill]:
        def read() -> list[Backfill]:
            rows = [
                replace(
                    row,
                    completed_count=self._count(row, (State.COMPLETED,)),
                    failed_count=self._count(row, (*_ENDED[1:], State.DEAD_LETTER)),
                )
                for row in self.backfill_rows
                if row.tenant_id == tenant_id and backfill_id in (None, row.backfill_id)
            ]
            return _page(rows, lambda row: (row.created_at, row.backfill_id), before)[:size]

        return await self._read("list_backfills", read)

    def _count(self, backfill: Backfill, states: Collection[State]) -> int:
        return sum(run.backfill_id == backfill.backfill_id and run.state in states for run in self.run_rows)

    async def cancel_backfill(self, tenant_id: TenantId, backfill_id: str, now: datetime) -> None:
        def commit() -> None:
            self.backfill_rows = [
                replace(row, cancelled_at=row.cancelled_at or now)
                if (row.tenant_id, row.backfill_id) == (tenant_id, backfill_id)
                else row
                for row in self.backfill_rows
            ]

        await self._write("cancel_backfill", ["backfills"], commit, transaction=False)

    async def note_call(self, call_id: str, job: Job, at: datetime, outcome: str | None, counts: str | None) -> None:
        event = (call_id, job, at, outcome)
        await self._write("append_job_calls", [], lambda: self.job_events.append(event), transaction=False)

    async def calls(self, since: datetime) -> Sequence[JobCall]:
        def read() -> list[JobCall]:
            found: dict[Job, JobCall] = {}
            for call_id, job, at, outcome in self.job_events:
                if outcome is None and at >= since:
                    ends = [event for event in self.job_events if event[0] == call_id and event[3] is not None]
                    end = ends[0] if ends else None
                    found[job] = JobCall(job.value, at, end[2] if end else None, (end[3] or "") if end else "")
            return [found[job] for job in sorted(found)]

        return await self._read("read_job_calls", read)

    async def status(self, now: datetime) -> Status:
        def read() -> Status:
            due = [row.next_run_time for row in self.schedules if row.is_active and row.next_run_time]
            due = [time for time in due if time <= now]
            rows = self.queue_rows
            ready = [
                max(row.not_before, row.enqueued_at)
                for row in rows
                if row.state is State.QUEUED and row.not_before <= now
            ]
            day_ago = now - timedelta(days=1)
            return Status(
                due=len(due),
                due_since=min(due, default=None),
                by_state=dict(Counter(row.state.value for row in rows)),
                ready_since=min(ready, default=None),
                failed_last_day=sum(r.state is State.DEAD_LETTER and r.updated_at >= day_ago for r in rows),
            )

        return await self._read("read_status", read)

    async def violations(self, late: datetime, settled: datetime, stale_lease: datetime) -> Mapping[str, Sequence[str]]:
        return await self._read("read_invariants", lambda: self._violations(late, settled, stale_lease))

    def _violations(self, late: datetime, settled: datetime, stale_lease: datetime) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        active = [row for row in self.schedules if row.is_active]
        runs = {run.run_id: run for run in self.run_rows}
        queued = {item.run_id for item in self.queue_rows}
        claimed = [item for item in self.queue_rows if item.state is State.CLAIMED]
        found["overdue_schedules"] = [r.config_id for r in active if r.next_run_time and r.next_run_time <= late]
        found["sleeping_schedules"] = [row.config_id for row in active if row.next_run_time is None]
        found["duplicate_schedules"] = _doubles(row.config_id for row in self.schedules)
        found["duplicate_runs"] = _doubles(run.run_id for run in self.run_rows)
        found["duplicate_queue_rows"] = _doubles(item.run_id for item in self.queue_rows)
        found["stranded_runs"] = [
            run.run_id
            for run in self.run_rows
            if run.state not in _ENDED and run.updated_at <= settled and run.run_id not in queued
        ]
        found["orphaned_queue_rows"] = [
            item.run_id
            for item in self.queue_rows
            if item.updated_at <= settled and (item.run_id not in runs or runs[item.run_id].state in _ENDED)
        ]
        found["expired_leases"] = [
            item.run_id
            for item in claimed
            if item.started_at is None and (item.lease_until is None or item.lease_until <= stale_lease)
        ]
        found["shared_serial_ids"] = _doubles(item.serial_id for item in claimed)
        found["too_many_retries"] = [item.run_id for item in self.queue_rows if item.retry_count > item.max_retries]
        return {name: ids for name, ids in found.items() if ids}

    async def delete_before(self, before: datetime) -> int:
        def commit() -> int:
            size = self._size()
            self.queue_rows = [
                row for row in self.queue_rows if row.state is not State.DEAD_LETTER or row.updated_at >= before
            ]
            queued = {row.run_id for row in self.queue_rows}
            self.run_rows = [
                row
                for row in self.run_rows
                if not (
                    row.created_at < before
                    and row.updated_at < before
                    and row.state in (*_ENDED, State.DEAD_LETTER)
                    and row.run_id not in queued
                )
            ]
            kept = {row.backfill_id for row in self.run_rows}
            self.backfill_rows = [r for r in self.backfill_rows if r.created_at >= before or r.backfill_id in kept]
            self.job_events = [event for event in self.job_events if event[2] >= before]
            self.schedules = [r for r in self.schedules if r.deleted_at is None or r.deleted_at >= before]
            return size - self._size()

        return await self._write("delete_old_records", ["configs", "queue", "runs"], commit, transaction=False)

    def _size(self) -> int:
        tables: tuple[list[Any], ...] = (
            self.queue_rows,
            self.run_rows,
            self.backfill_rows,
            self.job_events,
            self.schedules,
        )
        return sum(map(len, tables))


def _doubles(ids: Iterable[str]) -> list[str]:
    return sorted(key for key, count in Counter(ids).items() if count > 1)


def _backlog(tenant_id: TenantId, rows: Sequence[Item], now: datetime) -> Backlog:
    fresh = [row for row in rows if row.expires_at > now]
    return Backlog(
        tenant_id,
        ready=sum(row.state is State.QUEUED and row.not_before <= now for row in fresh),
        deferred=sum(row.state is State.DEFERRED for row in fresh),
        claimed=sum(row.state is State.CLAIMED for row in rows),
        expired=sum(row.state.waits and row.expires_at <= now for row in rows),
        waiting=sum(row.state.waits for row in rows),
    )


def _page[R](
    rows: Iterable[R], key: Callable[[R], tuple[datetime, str]], before: tuple[datetime, str] | None
) -> list[R]:
    ordered = sorted(rows, key=key, reverse=True)
    return [row for row in ordered if before is None or key(row) < before]


def _shown(run: Run, item: Item, now: datetime) -> Run:
    return replace(
        run,
        state=item.state,
        reason=item.reason,
        error=item.error,
        retry_count=item.retry_count,
        attempt=item.attempt,
        not_before=item.not_before,
        started_at=item.started_at or run.started_at,
        ended_at=now if item.state in _ENDED else None,
        updated_at=now,
    )


@dataclass
class Quota:
    """One tenant's limits and what it used of them."""

    concurrent: int = 3
    daily: int = 1_000_000
    monthly: int = 1_000_000
    active: bool = True
    used_today: int = 0
    manual: int = 0
    """Slots that runs outside of the scheduler take."""


class FakeTenants:
    """Tenant's side: limits, and grants by attempt; the executor's fake reserves and settles here."""

    def __init__(self, now: Clock) -> None:
        self.now = now
        self.quotas: dict[str, Quota] = defaultdict(Quota)
        self.grants: dict[tuple[str, int], str] = {}
        self.live: set[tuple[str, int]] = set()
        self.leaving: list[TenantId] = []
        self.gone: set[str] = set()
        self.asked = 0
        self.down = False

    def in_use(self, tenant_id: str) -> int:
        """Slots taken."""
        return self.quotas[tenant_id].manual + sum(self.grants[key] == tenant_id for key in self.live)

    def window(self) -> datetime:
        """When the day's quota opens again."""
        midnight = self.now().replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight + timedelta(days=1)

    async def allowances(self, tenant_ids: Sequence[str]) -> Mapping[str, Allowance]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise errors.Unavailable("DEPENDENCY_UNAVAILABLE", "The fake is down.")
        return {tenant_id: self._allowance(tenant_id) for tenant_id in tenant_ids}

    def _allowance(self, tenant_id: str) -> Allowance:
        quota = self.quotas[tenant_id]
        if not quota.active or tenant_id in self.gone:
            return Allowance(active=False)
        daily = max(0, quota.daily - quota.used_today)
        return Allowance(
            active=True,
            free_slots=max(0, quota.concurrent - self.in_use(tenant_id)),
            daily_remaining=daily,
            monthly_remaining=quota.monthly,
            window=None if daily else self.window(),
        )

    async def check_exists(self, tenant_id: TenantId) -> None:
        await asyncio.sleep(0)
        if tenant_id in self.gone:
            raise tenant_not_found()

    async def check_staying(self, tenant_id: TenantId) -> None:
        await self.check_exists(tenant_id)
        if tenant_id in self.leaving:
            raise errors.FailedPrecondition("TENANT_OFFBOARDING", "The tenant is being offboarded.")

    async def reset_daily_quotas(self) -> int:
        await asyncio.sleep(0)
        stale = [quota for quota in self.quotas.values() if quota.used_today]
        for quota in stale:
            quota.used_today = 0
        return len(stale)

    async def offboarding(self) -> Sequence[TenantId]:
        await asyncio.sleep(0)
        return list(self.leaving)

    async def confirm_offboarding(self, tenant_id: TenantId) -> None:
        await asyncio.sleep(0)
        self.leaving.remove(tenant_id)
        self.gone.add(tenant_id)

    def reserve(self, tenant_id: str, key: tuple[str, int]) -> None:
        """Grants an attempt once; raises what tenant raises."""
        quota = self.quotas[tenant_id]
        if key in self.grants:
            return
        if not quota.active:
            raise errors.FailedPrecondition("SUBSCRIPTION_INACTIVE", "The tenant is suspended.")
        if quota.used_today >= quota.daily:
            raise self._exhausted("DAILY_RUNS", self.window() - self.now())
        if self.in_use(tenant_id) >= quota.concurrent:
            raise self._exhausted("CONCURRENT_RUNS", timedelta(seconds=60))
        self.grants[key] = tenant_id
        self.live.add(key)
        quota.used_today += 1

    def _exhausted(self, quota_id: str, retry_after: timedelta) -> errors.ResourceExhausted:
        violation = errors.QuotaViolation("tenant", quota_id, 1, "")
        return errors.ResourceExhausted(
            "QUOTA_EXCEEDED", "No more.", retry_after=retry_after, quota_violations=[violation]
        )


class FakeExecutor:
    """Executes nothing: attempts run until a test ends them, or as ``script`` says when they start."""

    def __init__(self, tenants: FakeTenants, *, seed: int = 0) -> None:
        self.tenants = tenants
        self.rows: dict[tuple[str, int], Attempt] = {}
        self.tenant_of: dict[str, str] = {}
        self.starts: Counter[tuple[str, int]] = Counter()
        self.executed: Counter[tuple[str, int]] = Counter()
        self.cancels: list[str] = []
        self.order: list[str] = []
        self.script: Callable[[Item], Attempt | errors.Error | None] = lambda item: None
        self.capacity = 1_000_000
        self.lost_reply = 0.0
        self.down = False
        self.window = 0
        self.random = random.Random(seed)

    def running(self) -> list[tuple[str, int]]:
        """Attempts that have not ended."""
        return [
            key for key, row in self.rows.items() if row.status in (AttemptStatus.RUNNING, AttemptStatus.CANCELLING)
        ]

    def end(self, key: tuple[str, int], status: AttemptStatus, reason: str = "", *, retryable: bool = False) -> None:
        """Ends an attempt and settles its grant."""
        self.rows[key] = replace(self.rows[key], status=status, reason=reason, message=reason, retryable=retryable)
        self.tenants.live.discard(key)

    async def start(self, item: Item) -> Attempt:
        key = (item.run_id, item.attempt)
        self.starts[key] += 1
        await asyncio.sleep(0)
        if self.down:
            raise errors.Unavailable("DEPENDENCY_UNAVAILABLE", "The fake is down.")
        if key not in self.rows:
            self._begin(item, key)
        await asyncio.sleep(0)
        if self.random.random() < self.lost_reply:
            raise errors.Unavailable("DEADLINE_EXCEEDED", "The fake lost the reply.")
        return self.rows[key]

    def _begin(self, item: Item, key: tuple[str, int]) -> None:
        for (run_id, attempt), row in self.rows.items():
            if run_id == item.run_id and attempt < item.attempt:
                if row.status is AttemptStatus.COMPLETED:
                    raise errors.FailedPrecondition("RUN_COMPLETED", "It has ended well.")
                if row.status in (AttemptStatus.RUNNING, AttemptStatus.CANCELLING):
                    raise errors.FailedPrecondition("ATTEMPT_RUNNING", "It has not ended.")
        if len(self.running()) >= self.capacity:
            raise errors.Unavailable("EXECUTOR_FULL", "No more runs here.")
        told = self.script(item)
        if isinstance(told, errors.Error):
            raise told
        self.tenants.reserve(item.tenant_id, key)
        self.tenant_of[item.run_id] = item.tenant_id
        self.executed[key] += 1
        self.order.append(item.run_id)
        self.rows[key] = Attempt(item.run_id, item.attempt, AttemptStatus.RUNNING)
        if told is not None:
            self.rows[key] = told
            if told.status is not AttemptStatus.RUNNING:
                self.tenants.live.discard(key)

    async def refresh_window(self, provider: str, domain: str, template: str) -> int:
        await asyncio.sleep(0)
        if template == "nowhere":
            raise errors.NotFound("TEMPLATE_NOT_FOUND", "There is no such template.")
        return self.window

    async def attempts(self, items: Sequence[Item]) -> Mapping[str, Attempt]:
        await asyncio.sleep(0)
        if self.down:
            raise errors.Unavailable("DEPENDENCY_UNAVAILABLE", "The fake is down.")
        keys = [(item.run_id, item.attempt) for item in items]
        return {key[0]: self.rows[key] for key in keys if key in self.rows}

    async def cancel(self, item: Item) -> Attempt:
        await asyncio.sleep(0)
        self.cancels.append(item.run_id)
        mine = [key for key in self.running() if key[0] == item.run_id]
        if not mine:
            raise errors.NotFound("RUN_NOT_FOUND", "Run not found.")
        self.rows[mine[-1]] = replace(self.rows[mine[-1]], status=AttemptStatus.CANCELLING)
        return self.rows[mine[-1]]
