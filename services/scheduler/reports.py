"""How the scheduler is: what is due and queued, when its jobs ran last, and what must never be.

Called by the servicer; ``Journal`` also wraps the jobs themselves. The invariant: a report is read from the tables
only, and writing down that a job ran never makes the job fail.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from libs import logs, metrics
from libs.errors import Error
from services.scheduler.domain import Job, JobCall, Policy, Records, State, Status

_log = logs.get(__name__)
_SAMPLES = 5
_GAUGE_SECONDS, _INVARIANTS_EVERY = 60.0, 15
# What a statement wrote and its neighbour has not yet.
_SETTLED = timedelta(minutes=2)
# The queue is worked on every five minutes.
_STALE_LEASE = timedelta(minutes=12)

INVARIANTS: Mapping[str, str] = {
    "overdue_schedules": "An active schedule has been due for longer than a trigger needs to come.",
    "sleeping_schedules": "An active schedule has no next time.",
    "duplicate_schedules": "Two schedules have one id.",
    "duplicate_runs": "Two runs have one id: an occurrence was created twice.",
    "duplicate_queue_rows": "Two queue rows have one run.",
    "stranded_runs": "A run has not ended, but nothing in the queue will end it.",
    "orphaned_queue_rows": "A queue row's run has ended, or does not exist.",
    "expired_leases": "A claim ran out, and nobody took the run back.",
    "shared_serial_ids": "Two runs of one schedule are claimed, though overlaps are not allowed.",
    "too_many_retries": "A run was retried more often than it may be.",
    "unknown_states": "A row is in a state that does not exist.",
}


@dataclass(frozen=True, slots=True)
class Violations:
    """How often an invariant is violated, with some ids."""

    name: str
    description: str
    count: int
    samples: Sequence[str]


@dataclass(frozen=True, slots=True)
class Health:
    """The queue and the jobs at one moment."""

    status: Status
    calls: Sequence[JobCall]
    running: int
    oldest: timedelta
    lag: timedelta


class Reports:
    """Reads the state of things."""

    def __init__(self, records: Records, *, now: Callable[[], datetime], policy: Policy) -> None:
        self._records = records
        self._now = now
        self._policy = policy

    async def health(self) -> Health:
        """The queue and the last call of each job."""
        now = self._now()
        status, calls = await asyncio.gather(self._records.status(now), self._records.calls(now - self._policy.keep))
        nothing = timedelta(0)
        return Health(
            status,
            calls,
            running=status.by_state.get(State.CLAIMED, 0),
            oldest=max(nothing, now - status.ready_since) if status.ready_since else nothing,
            lag=max(nothing, now - status.due_since) if status.due_since else nothing,
        )

    async def invariants(self) -> list[Violations]:
        """Every invariant with its violations; all zero when healthy."""
        now = self._now()
        found = await self._records.violations(now - self._policy.grace, now - _SETTLED, now - _STALE_LEASE)
        return [
            Violations(name, text, len(found.get(name, ())), list(found.get(name, ()))[:_SAMPLES])
            for name, text in INVARIANTS.items()
        ]


class Gauges:
    """Publishes the figures of the queue every minute, and every quarter of an hour what must never be."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    async def run(self) -> None:
        """Reads for as long as the process lives; a failed reading leaves the last figures, and their time tells."""
        for turn in itertools.count():
            await asyncio.sleep(_GAUGE_SECONDS)
            try:
                await self.read()
                if turn % _INVARIANTS_EVERY == 0:
                    await self.check()
            except Error as error:
                _log.warning("queue_not_read", reason=error.reason)

    async def read(self) -> None:
        """Publishes the queue as it is now."""
        health = await self._reports.health()
        for state in State:
            metrics.QUEUE_RUNS.labels(state.value).set(health.status.by_state.get(state, 0))
        metrics.QUEUE_AGE.set(health.oldest.total_seconds())
        metrics.SCHEDULE_LAG.set(health.lag.total_seconds())
        metrics.QUEUE_READ.set_to_current_time()

    async def check(self) -> None:
        """Publishes how often each invariant is violated."""
        for violations in await self._reports.invariants():
            metrics.INVARIANT_VIOLATIONS.labels(violations.name).set(violations.count)


class Journal:
    """Writes down each call of a job: that it began, how it ended, what it did."""

    def __init__(self, records: Records, *, now: Callable[[], datetime]) -> None:
        self._records = records
        self._now = now

    async def run[R](self, job: Job, work: Callable[[], Awaitable[R]], counts: Callable[[R], Mapping[str, int]]) -> R:
        """Does the work and returns or raises what it does."""
        call_id = uuid.uuid4().hex
        began = asyncio.create_task(self._note(call_id, job, None, None))
        try:
            result = await work()
        except BaseException as error:
            await began
            outcome = error.reason if isinstance(error, Error) else type(error).__name__
            metrics.JOBS_ENDED.labels(job.value, outcome).inc()
            await self._note(call_id, job, outcome, None)
            raise
        await began
        metrics.JOBS_ENDED.labels(job.value, "OK").inc()
        metrics.JOB_ENDED_AT.labels(job.value).set_to_current_time()
        done = counts(result)
        _log.info("job_done", job=job.value, **done)
        await self._note(call_id, job, "OK", json.dumps(done))
        return result

    async def _note(self, call_id: str, job: Job, outcome: str | None, counts: str | None) -> None:
        try:
            await self._records.note_call(call_id, job, self._now(), outcome, counts)
        except Error as error:
            _log.warning("job_call_not_noted", job=job.value, reason=error.reason)
