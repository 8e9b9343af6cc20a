"""The life of one attempt in the process that executes it: admit, reserve, record, work, end, log, settle.

An ``Execution`` is one task that outlives the call that started it. What it may rely on: whoever does not stand in the
grant never executes; the row, not this task, says what the attempt has become; and whatever is left half-done here,
at any line, the reaper of any process completes once the lease has run out. Hence the rule of this module: a grant is
settled only when the row is known to have ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from libs import errors, logs, metrics, tracing
from libs.audit import AuditRecord
from libs.bigquery import Warehouse
from services.pipeline_executor.domain import (
    INTERRUPTED,
    LEASE_LOST,
    Credentials,
    Ending,
    Grant,
    GrantState,
    Key,
    Outcome,
    Quotas,
    Run,
    RunError,
    RunStatus,
    RunStore,
    Spec,
    Step,
    StepStatus,
    Tenants,
    Trigger,
    View,
    view_of,
)
from services.pipeline_executor.engine import RunResult
from services.pipeline_executor.journal import Journal
from services.pipeline_executor.leases import Lease, Leases
from services.pipeline_executor.providers import check_source
from services.pipeline_executor.publisher import Publications, Publisher, TenantLocks
from services.pipeline_executor.run_context import RunContext, Secret, SourceEndpoints
from services.pipeline_executor.templates import Pipeline
from services.pipeline_executor.watch import Progress

REFUNDED = "ATTEMPT_REFUNDED"
_RECORD_SECONDS = 120.0
_OTHERS_RECORD_SECONDS = 8.0
_START_RETRY = timedelta(seconds=10)
_END_SECONDS = 90.0
_BOOKKEEPING_SECONDS = 45.0
_FIRST_PAUSE = 0.2
_LAST_PAUSE = 5.0

_log = logs.get(__name__)


class Engine(Protocol):
    """Walks a pipeline's steps."""

    async def run(self, pipeline: Pipeline, context: RunContext) -> RunResult:
        """Runs every step and cleans up; to cancel, cancel the task."""
        ...


class Audit(Protocol):
    """The audit trail."""

    async def append(self, record: AuditRecord) -> None:
        """Durable when it returns."""
        ...


class Stop(Enum):
    """Why an attempt is stopped from outside; the value is the error its row ends with."""

    CANCEL = None
    LEASE_LOST = LEASE_LOST
    INTERRUPTED = INTERRUPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """An attempt to start. ``keyed``: the run's id follows from what was asked, so that it may be asked for again."""

    key: Key
    spec: Spec
    pipeline: Pipeline
    trigger: Trigger
    fingerprint: str
    keyed: bool
    user_id: str | None = None
    config_id: str = ""
    request_id: str = ""
    audit: AuditRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every execution of this process works with."""

    owner: Callable[[], str]
    now: Callable[[], datetime]
    store: RunStore
    publications: Publications
    quotas: Quotas
    tenants: Tenants
    credentials: Credentials
    engine: Engine
    leases: Leases
    locks: TenantLocks
    audit: Audit
    warehouse: Warehouse
    staging_dir: Path
    source_endpoints: SourceEndpoints


class Execution:
    """One attempt, from the moment it is asked for. ``started`` gets the answer to that question."""

    def __init__(self, launch: Launch, tools: Tools) -> None:
        self.launch = launch
        self.started: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        self.started.add_done_callback(_retrieve)
        self._tools = tools
        self.progress = Progress(self._row(RunStatus.PENDING))
        self.lease: Lease | None = None
        self._stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()

    @property
    def key(self) -> Key:
        """The attempt."""
        return self.launch.key

    def stop(self, why: Stop) -> None:
        """Asks it to stop; the first reason counts."""
        if not self._stop.done():
            self._stop.set_result(why)

    async def live(self) -> None:
        """Lives through the attempt; never raises."""
        try:
            ids = {"tenant_id": self.key.tenant_id, "run_id": self.key.run_id, "attempt": str(self.key.attempt)}
            with logs.bound(**ids), tracing.span("run", pipeline=self.launch.pipeline.id) as span:
                span.set(**ids)
                await self._live()
        except errors.Error as failure:
            _log.info("run_not_started", reason=failure.reason)
            self._refuse(failure)
        except Exception:
            _log.exception("execution_failed")
            self._refuse(errors.Internal("EXECUTION_FAILED", "The run could not be started."))
        finally:
            self.progress.end()
            self._refuse(errors.Unavailable("EXECUTION_STOPPED", "This executor is shutting down; try again."))

    async def _live(self) -> None:
        source = await self._admit()
        self._check_stop()
        sent = asyncio.get_running_loop().time()
        grant = await self._reserve()
        if grant is None:
            return
        if grant.state is not GrantState.LIVE or grant.owner != self._tools.owner():
            self._answer(await self._found(grant))
            return
        self.lease = self._tools.leases.hold(self.key, sent, grant.until, lambda: self.stop(Stop.LEASE_LOST))
        try:
            run = await self._record(grant)
            if run is None:
                return
            self.progress.run(run)
            self._answer(view_of(run, ()))
            _log.info("run_started", pipeline=self.launch.pipeline.id)
            await self._execute(run, self.lease, source)
        finally:
            self._tools.leases.release(self.key)

    # ---------------------------------------------------------------- before there is a row

    async def _admit(self) -> Mapping[str, Any]:
        """Refuses what can be refused before anything is reserved; returns where the data lie."""
        pipeline, tenant_id = self.launch.pipeline, self.key.tenant_id
        source, ensured = await asyncio.gather(
            self._tools.credentials.source(tenant_id, pipeline.credential_provider),
            self._tools.tenants.ensure_dataset(tenant_id, pipeline.provider),
            return_exceptions=True,
        )
        # That a tenant is not there says more than that it has no credential.
        for found in (ensured, source) if isinstance(ensured, errors.NotFound) else (source, ensured):
            if isinstance(found, BaseException):
                raise found
        assert isinstance(source, Mapping)
        return check_source(
            pipeline.provider, pipeline.datasets, {**source, **self.launch.spec.parameters.get("source", {})}
        )

    async def _reserve(self) -> Grant | None:
        try:
            return await self._tools.quotas.reserve(self.key, self._tools.owner(), self.launch.fingerprint)
        except errors.Unavailable as failure:
            self._refuse(failure)
            if not self.launch.keyed:
                # Nobody will ask for this run again, so what may have been reserved need not wait for the reaper.
                await self._settle(GrantState.REFUNDED, seconds=0)
            return None

    async def _found(self, grant: Grant) -> View:
        """The answer where the attempt is somebody else's, or has ended.

        What has a grant and no row may never get one: its owner may be dead. The scheduler, who asks again, hears of it
        as PENDING; a client would believe in a run that nobody finds, and waits a moment for the row instead.
        """
        if grant.state is GrantState.REFUNDED:
            raise _refunded()
        until = asyncio.get_running_loop().time() + _OTHERS_RECORD_SECONDS
        pause = _Pause()
        while True:
            rows = await self._tools.store.attempts(self.key.tenant_id, [self.key.run_id])
            if run := next((run for run in rows if run.key == self.key), None):
                return view_of(run, ())
            if grant.state is not GrantState.LIVE:
                raise _refunded()
            if self.launch.trigger is not Trigger.MANUAL:
                return view_of(dataclasses.replace(self._row(RunStatus.PENDING), owner=grant.owner), ())
            if asyncio.get_running_loop().time() > until:
                raise errors.Unavailable(
                    "RUN_STARTING",
                    "Another process has begun to start this run; ask again with the same Idempotency-Key.",
                    retry_after=_START_RETRY,
                )
            await pause()

    async def _record(self, grant: Grant) -> Run | None:
        """Makes the row; None if another row stands in its place, which is the answer then."""
        run = dataclasses.replace(self._row(RunStatus.RUNNING), reservation_day=grant.day)
        if self._stop.done() or self.lease is None or not self.lease.valid:
            await self._settle(GrantState.REFUNDED)
            self._check_stop()
            raise errors.Unavailable("RESERVATION_LATE", "The reservation took too long; try again.")
        try:
            made, _ = await asyncio.gather(self._insert(run), self._audit())
        except errors.Ambiguous:
            raise  # Whether there is a row is for the reaper to find out.
        except errors.Error:
            await self._settle(GrantState.REFUNDED)
            raise
        if made:
            return run
        rows = await self._tools.store.attempts(self.key.tenant_id, [self.key.run_id])
        there = next((run for run in rows if run.key == self.key), None)
        if there is None:
            # Withdrawn by a reaper: an earlier reservation of the same attempt, long forgotten.
            await self._settle(GrantState.REFUNDED)
            raise _refunded()
        if there.owner == run.owner and there.status is RunStatus.RUNNING:
            return there
        if there.status.ended:
            await self._settle(GrantState.SETTLED)
        self._answer(view_of(there, ()))
        return None

    async def _insert(self, run: Run) -> bool:
        """Inserts the row until it is known to be in or not to be.

        After one try nobody knows the outcome of, no later failure proves that there is no row.
        """
        until = asyncio.get_running_loop().time() + _RECORD_SECONDS
        unknown: errors.Ambiguous | None = None
        pause = _Pause()
        while True:
            try:
                return await self._tools.store.insert(run)
            except errors.Error as failure:
                unknown = failure if isinstance(failure, errors.Ambiguous) else unknown
                if unknown is None:
                    raise
                if self._stop.done() or asyncio.get_running_loop().time() > until:
                    raise unknown from failure
            await pause()

    async def _audit(self) -> None:
        if self.launch.audit is not None:
            try:
                await self._tools.audit.append(self.launch.audit)
            except errors.Error as failure:
                _log.error("audit_record_lost", reason=failure.reason, action=self.launch.audit.action)

    # ---------------------------------------------------------------- the work

    async def _execute(self, run: Run, lease: Lease, source: Mapping[str, Any]) -> None:
        publisher = Publisher(
            run, lease, self._tools.publications, self._tools.store, self._tools.locks.of(self.key.tenant_id)
        )
        ended = await self._work(run, publisher, self._context(run, publisher, source))
        if ended is None:
            _log.error("run_left_to_the_reaper")
            return
        self.progress.run(ended)
        quarantined = view_of(ended, self.progress.steps).rows_quarantined or 0
        _count(ended, quarantined)
        _log.info(
            "run_ended",
            status=ended.status.value,
            outcome=ended.outcome.value if ended.outcome else "",
            rows=ended.rows_published,
            rows_quarantined=quarantined,
            reason=ended.error.reason if ended.error else "",
        )
        await asyncio.gather(self._log_steps(ended), self._settle(GrantState.SETTLED))

    def _context(self, run: Run, publisher: Publisher, source: Mapping[str, Any]) -> RunContext:
        provider = self.launch.pipeline.credential_provider

        async def open_credential() -> Secret:
            return Secret(await self._tools.credentials.open(self.key, provider))

        return RunContext(
            tenant_id=self.key.tenant_id,
            user_id=run.user_id,
            pipeline_logging_id=self.key.run_id,
            attempt=self.key.attempt,
            start_date=run.spec.start_date,
            end_date=run.spec.end_date,
            parameters=self.launch.pipeline.check_parameters(run.spec.parameters),
            source=source,
            open_credential=open_credential,
            warehouse=self._tools.warehouse,
            publisher=publisher,
            journal=Journal(run, self.progress, self._tools.store),
            staging_dir=self._tools.staging_dir / f"{self.key.run_id}-{self.key.attempt}",
            now=self._tools.now,
            source_endpoints=self._tools.source_endpoints,
        )

    async def _work(self, run: Run, publisher: Publisher, context: RunContext) -> Run | None:
        """Works until it is done or stopped; the row as it ended, None if that could not be found out."""
        if self._stop.done():
            return await self._end(_stopped(run, self._stop.result(), self._tools.now()))
        work = asyncio.create_task(self._tools.engine.run(self.launch.pipeline, context))
        work.add_done_callback(_retrieve)
        try:
            either: set[asyncio.Future[Any]] = {work, self._stop}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                # The row first: it keeps what still moves from being published.
                ending = _stopped(run, self._stop.result(), self._tools.now())
                ended, _ = await asyncio.gather(self._end(ending), asyncio.wait({work}))
                return ended
        finally:
            if not work.done():
                work.cancel()
        if publisher.run.status.ended:
            return publisher.run
        return await self._end(_worked(run, work, self._tools.now()))

    async def _end(self, ending: Ending) -> Run | None:
        """Ends the attempt unless it has ended, and reads what it has become."""
        until = asyncio.get_running_loop().time() + _END_SECONDS
        pause = _Pause()
        while True:
            try:
                await self._tools.store.end(self.key.tenant_id, [ending])
                rows = await self._tools.store.attempts(self.key.tenant_id, [self.key.run_id])
                run = next((run for run in rows if run.key == self.key), None)
                if run is not None and run.status.ended:
                    return run
            except errors.Error as failure:
                _log.warning("run_not_ended", reason=failure.reason)
                if not (failure.retryable or isinstance(failure, errors.Aborted)):
                    return None
            if asyncio.get_running_loop().time() > until:
                return None
            await pause()

    # ---------------------------------------------------------------- bookkeeping

    async def _log_steps(self, run: Run) -> None:
        steps = final_steps(run, self.progress.steps)
        for step in steps:
            self.progress.step(step)
        if steps:
            await self._keep_trying("step_logs_lost", lambda: self._tools.store.append_steps(run, steps))

    async def _settle(self, state: GrantState, *, seconds: float = _BOOKKEEPING_SECONDS) -> None:
        await self._keep_trying(
            "grant_left_to_the_reaper", lambda: self._tools.quotas.settle(self.key, state), seconds=seconds
        )

    async def _keep_trying(
        self, what: str, call: Callable[[], Awaitable[None]], *, seconds: float = _BOOKKEEPING_SECONDS
    ) -> None:
        """Bookkeeping: tried for a while, given up with a line in the log, never a reason to do any work again."""
        until = asyncio.get_running_loop().time() + seconds
        pause = _Pause()
        while True:
            try:
                return await call()
            except errors.Error as failure:
                temporary = failure.retryable or isinstance(failure, errors.Aborted)
                if not temporary or asyncio.get_running_loop().time() >= until:
                    _log.error(what, reason=failure.reason)
                    return
            await pause()

    # ---------------------------------------------------------------- small things

    def _row(self, status: RunStatus) -> Run:
        launch = self.launch
        return Run(
            key=launch.key,
            spec=launch.spec,
            status=status,
            trigger=launch.trigger,
            owner=self._tools.owner(),
            fingerprint=launch.fingerprint,
            start_time=self._tools.now(),
            user_id=launch.user_id,
            config_id=launch.config_id,
            request_id=launch.request_id,
        )

    def _check_stop(self) -> None:
        if self._stop.done():
            raise errors.Unavailable("EXECUTOR_DRAINING", "This executor is shutting down; try again.")

    def _answer(self, view: View) -> None:
        if not self.started.done():
            self.started.set_result(view)

    def _refuse(self, failure: errors.Error) -> None:
        if not self.started.done():
            self.started.set_exception(failure)


def final_steps(run: Run, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps as they are logged: of a run whose data are in, no step failed, whatever was heard of its last one."""
    if run.status is not RunStatus.COMPLETED:
        return steps
    return tuple(
        dataclasses.replace(step, status=StepStatus.COMPLETED, error=None)
        if step.status in (StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.RUNNING)
        else step
        for step in steps
    )


def _stopped(run: Run, why: Stop, now: datetime) -> Ending:
    if why is Stop.CANCEL:
        return Ending(key=run.key, status=RunStatus.CANCELLED, end_time=now)
    return Ending(key=run.key, status=RunStatus.FAILED, end_time=now, error=why.value)


def _count(ended: Run, quarantined: int) -> None:
    """What is counted of an attempt that has ended."""
    provider, domain = ended.spec.provider, ended.spec.domain
    what = ended.error.reason if ended.error else ended.outcome.value if ended.outcome else ""
    metrics.RUNS_ENDED.labels(provider, domain, ended.status.value, what).inc()
    metrics.ROWS_PUBLISHED.labels(provider, domain).inc(ended.rows_published)
    metrics.ROWS_QUARANTINED.labels(provider, domain).inc(quarantined)
    if ended.end_time is not None:
        metrics.RUN_SECONDS.labels(provider, domain).observe((ended.end_time - ended.start_time).total_seconds())


def _worked(run: Run, work: asyncio.Task[RunResult], now: datetime) -> Ending:
    failure = asyncio.CancelledError() if work.cancelled() else work.exception()
    if failure is None:
        outcome = Outcome(work.result().outcome)
        return Ending(key=run.key, status=RunStatus.COMPLETED, end_time=now, outcome=outcome)
    if not isinstance(failure, errors.Error):
        _log.error("engine_failed", exc_info=failure)
        failure = errors.Internal("RUN_FAILED", "The run failed unexpectedly.")
    error = LEASE_LOST if failure.reason == LEASE_LOST.reason else RunError.of(failure)
    return Ending(key=run.key, status=RunStatus.FAILED, end_time=now, error=error)


def _refunded() -> errors.Aborted:
    return errors.Aborted(REFUNDED, "This attempt was given back before it began; start the next one.")


class _Pause:
    """Ever longer jittered pauses."""

    def __init__(self) -> None:
        self._bound = _FIRST_PAUSE

    async def __call__(self) -> None:
        await asyncio.sleep(random.uniform(self._bound / 2, self._bound))
        self._bound = min(_LAST_PAUSE, self._bound * 2)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Marks a future's error as seen: nobody may be there to await it."""
    if not future.cancelled():
        future.exception()
