"""The use cases of runs: start one for a client or the scheduler, read, list and cancel.

Called by the servicer with decoded values. Starting refuses everything that can be refused before anything is
reserved; the rest of an attempt's life is in ``execution``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

from libs import caller, errors, logs
from libs.audit import AuditRecord
from libs.tenancy import TenantId, tenant_not_found
from services.pipeline_executor import domain
from services.pipeline_executor.domain import (
    Check,
    Key,
    Owners,
    Run,
    RunFilter,
    RunStatus,
    RunStore,
    Spec,
    Step,
    Trigger,
    View,
    view_of,
)
from services.pipeline_executor.execution import REFUNDED, Audit, Launch
from services.pipeline_executor.executions import Executions
from services.pipeline_executor.templates import Pipeline, Templates
from services.pipeline_executor.watch import Watch

_MOST_REFUNDS = 10
_CANCEL_TRIES = 5
_TENANTS_AT_ONCE = 16

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a client asks to run, as it wrote it."""

    tenant_id: TenantId
    provider: str
    domain: str
    template: str
    date: str = ""
    start_date: str = ""
    end_date: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """The attempt that the scheduler asks to start."""

    key: Key
    provider: str
    domain: str
    template: str
    start_date: str
    end_date: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trigger: Trigger = Trigger.SCHEDULED
    config_id: str = ""
    user_id: str | None = None


class Runs:
    """One per process; safe for any number of callers."""

    def __init__(
        self,
        *,
        templates: Templates,
        executions: Executions,
        store: RunStore,
        watch: Watch,
        owners: Owners,
        audit: Audit,
        now: Callable[[], datetime],
    ) -> None:
        self._templates = templates
        self._executions = executions
        self._store = store
        self._watch = watch
        self._owners = owners
        self._audit = audit
        self._now = now
        self._notices: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- start

    async def run(self, request: RunRequest) -> View:
        """Starts a run for the current caller, or finds the one that its idempotency key means.

        Raises ``InvalidArgument``, ``NotFound`` (template, tenant), ``FailedPrecondition`` (credential, state),
        ``ResourceExhausted`` and ``Unavailable``; none of them leaves anything reserved.
        """
        tenant_id, key = request.tenant_id, request.idempotency_key
        pipeline = self._templates.get(request.provider, request.domain, request.template)
        dates = domain.parse_dates(request.date, request.start_date, request.end_date)
        spec = self._spec(pipeline, dates, request.parameters)
        asked = domain.fingerprint(pipeline.provider, pipeline.domain, pipeline.template, dates, request.parameters)
        run_id = domain.run_id_of(tenant_id, key) if key else str(uuid.uuid4())
        if key and (found := domain.newest(await self._store.attempts(tenant_id, [run_id]))):
            domain.check_fingerprint(found, asked)
            return await self._watch.glance(found)
        launch = Launch(
            key=Key(tenant_id, run_id, 1),
            spec=spec,
            pipeline=pipeline,
            trigger=Trigger.MANUAL,
            fingerprint=asked,
            keyed=bool(key),
            user_id=caller.current().user_id,
            request_id=caller.request_id(),
            audit=self._record("pipeline.run", tenant_id, run_id, pipeline=pipeline.id, **_window(spec)),
        )
        for attempt in range(1, _MOST_REFUNDS + 1):
            try:
                return await self._executions.launch(replace(launch, key=Key(tenant_id, run_id, attempt)))
            except errors.Aborted as failure:
                if failure.reason != REFUNDED:
                    raise
        raise errors.Unavailable("RUN_NOT_STARTED", "The run could not be started under this idempotency key.")

    async def start(self, request: StartRequest) -> View:
        """Starts one attempt for the scheduler, or finds it. Errors as ``run``, ``Aborted(ATTEMPT_REFUNDED)`` for one
        that was given back, ``FailedPrecondition`` (ATTEMPT_RUNNING, RUN_COMPLETED) because of an earlier one."""
        key = request.key
        pipeline = self._templates.get(request.provider, request.domain, request.template)
        dates = domain.parse_dates("", request.start_date, request.end_date)
        spec = self._spec(pipeline, dates, request.parameters)
        asked = domain.fingerprint(pipeline.provider, pipeline.domain, pipeline.template, dates, request.parameters)
        attempts = await self._store.attempts(key.tenant_id, [key.run_id])
        if found := next((run for run in attempts if run.key == key), None):
            domain.check_fingerprint(found, asked)
            return view_of(found, ())
        domain.check_may_start(key.attempt, attempts)
        return await self._executions.launch(
            Launch(
                key=key,
                spec=spec,
                pipeline=pipeline,
                trigger=request.trigger,
                fingerprint=asked,
                keyed=True,
                user_id=request.user_id,
                config_id=request.config_id,
                request_id=caller.request_id(),
            )
        )

    def _spec(self, pipeline: Pipeline, dates: tuple[date, date] | None, parameters: Mapping[str, Any]) -> Spec:
        first, last = domain.resolve_dates(dates, now=self._now(), max_days=pipeline.max_days)
        if not isinstance(parameters.get("source", {}), Mapping):
            violation = errors.FieldViolation("parameters.source", "must be an object.")
            raise errors.InvalidArgument(
                "PARAMETERS_INVALID", "parameters.source must be an object.", field_violations=[violation]
            )
        pipeline.check_parameters(parameters)
        return Spec(pipeline.provider, pipeline.domain, pipeline.template, first, last, parameters)

    # ---------------------------------------------------------------- read

    async def get(self, tenant_id: TenantId, run_id: str, attempt: int) -> View:
        """One attempt with its steps, the newest if ``attempt`` is 0; ``NotFound``."""
        attempts = await self._attempts(tenant_id, run_id)
        run = next((run for run in attempts if run.key.attempt == attempt), None) if attempt else None
        run = domain.newest(attempts) if not attempt else run
        if run is None:
            raise domain.run_not_found()
        return await self._watch.glance(run)

    async def list_runs(
        self, tenant_id: TenantId, wanted: RunFilter, size: int, after: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        """A page of runs, the newest first."""
        return await self._store.list_runs(tenant_id, wanted, size, after)

    async def steps(self, tenant_id: TenantId, run_id: str, size: int, after: tuple[int, int] | None) -> Sequence[Step]:
        """A page of the logged steps of all attempts of a run."""
        attempts = await self._attempts(tenant_id, run_id)
        return await self._store.steps(attempts[0].key.run_id, attempts, size, after)

    async def checks(
        self, tenant_id: TenantId, run_id: str, size: int, after: tuple[int, str, str] | None
    ) -> Sequence[Check]:
        """A page of the quality results of all attempts of a run."""
        attempts = await self._attempts(tenant_id, run_id)
        return await self._store.checks(attempts[0].key.run_id, attempts, size, after)

    async def batch(self, keys: Collection[Key]) -> Sequence[View]:
        """Attempts of many tenants, in the order asked, without steps; what does not exist is left out.

        One read per tenant, and none for what this process executes.
        """
        found = {key: view for key in keys if key.attempt and (view := self._executions.holds(key))}
        by_tenant: dict[TenantId, set[str]] = defaultdict(set)
        for key in keys:
            if key not in found:
                by_tenant[key.tenant_id].add(key.run_id)
        places = asyncio.Semaphore(_TENANTS_AT_ONCE)

        async def read(tenant_id: TenantId, run_ids: set[str]) -> Sequence[Run]:
            async with places:
                try:
                    return await self._store.attempts(tenant_id, run_ids)
                except errors.NotFound:
                    return ()

        for runs in await asyncio.gather(*(read(tenant_id, ids) for tenant_id, ids in by_tenant.items())):
            for run in runs:
                found[run.key] = view_of(run, ())
                found[replace_attempt(run.key)] = view_of(run, ())  # Oldest first: the newest one stays.
        return [found[key] for key in keys if key in found]

    async def _attempts(self, tenant_id: TenantId, run_id: str) -> Sequence[Run]:
        attempts = await self._store.attempts(tenant_id, [domain.check_run_id(run_id)])
        if not attempts:
            raise domain.run_not_found()
        return attempts

    # ---------------------------------------------------------------- cancel

    async def cancel(self, tenant_id: TenantId, run_id: str) -> View:
        """Asks a run's newest attempt to stop; nothing of it is published after this returns. Idempotent.

        Raises ``FailedPrecondition(RUN_ENDED)`` once it has ended.
        """
        for _ in range(_CANCEL_TRIES):
            run = domain.newest(await self._attempts(tenant_id, run_id))
            assert run is not None
            if not domain.check_may_cancel(run):
                return view_of(run, ())
            if await self._store.cancel(run.key, self._now()):
                self._notify(run)
                await self._append(self._record("pipeline.cancel", tenant_id, run.key.run_id))
                return view_of(replace(run, status=RunStatus.CANCELLING), ())
        raise errors.Aborted("RUN_CHANGED", "The run kept changing; try again.")

    def _notify(self, run: Run) -> None:
        if self._executions.cancel(run.key):
            return
        with caller.detached():
            notice = asyncio.create_task(self._tell(run))
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _tell(self, run: Run) -> None:
        try:
            await self._owners.cancelled(run.owner, run.key)
        except errors.Error as failure:
            _log.info("owner_not_told", run_id=run.key.run_id, reason=failure.reason)

    # ---------------------------------------------------------------- audit

    def _record(self, action: str, tenant_id: TenantId, run_id: str, **details: str) -> AuditRecord:
        who = caller.current()
        return AuditRecord(
            time=self._now(),
            tenant_id=tenant_id,
            action=action,
            object_type="run",
            object_id=run_id,
            actor_key_id=who.key_id,
            user_id=who.user_id,
            role=who.role.value if who.role else "",
            peer=who.peer,
            request_id=caller.request_id(),
            source_ip=who.source_ip,
            details=details,
        )

    async def _append(self, record: AuditRecord) -> None:
        try:
            await self._audit.append(record)
        except errors.Error as failure:
            _log.error("audit_record_lost", reason=failure.reason, action=record.action)


def tenant_of(text: str) -> TenantId:
    """The tenant a request names; one that cannot exist is answered as one that does not."""
    try:
        return TenantId.parse(text)
    except errors.InvalidArgument:
        raise tenant_not_found() from None


def replace_attempt(key: Key) -> Key:
    """The key that means a run's newest attempt."""
    return Key(key.tenant_id, key.run_id, 0)


def _window(spec: Spec) -> dict[str, str]:
    return {"start_date": spec.start_date.isoformat(), "end_date": spec.end_date.isoformat()}
