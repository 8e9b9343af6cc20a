"""What tenants do with their schedules: create, read, change, pause, resume, delete, run now.

Called by the servicer. The invariants: an edit is a pure decision on the row as it is, swapped by version; it never
fires for the past, and never swallows what is due already; every change is audited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from libs import caller
from libs.errors import Aborted, FieldViolation, InvalidArgument
from libs.ledger import Ledger
from libs.tenancy import TenantId
from services.scheduler import cron, occurrences
from services.scheduler.domain import (
    Executor,
    Pick,
    Policy,
    Queue,
    Records,
    Run,
    Schedule,
    Schedules,
    State,
    Tenants,
    Trigger,
    id_from_key,
    retire,
    run_id_of,
    schedule_not_found,
)
from services.scheduler.runs import change_all, let_go_of, while_it_stays
from services.scheduler.trail import Trail
from services.scheduler.trigger import Triggers

_MAX_PARAMETERS = 16_000
_MOST_REFRESHED_DAYS = 31
_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a schedule: its new values by column; ``delete`` ends it."""

    tenant_id: TenantId
    values: Mapping[str, Any] = field(default_factory=dict)
    delete: bool = False


@dataclass(frozen=True, slots=True)
class Edited:
    """The schedule after an edit; ``due`` if what is due must be fired first, and nothing was changed."""

    schedule: Schedule
    due: bool = False


def decide(schedule: Schedule | None, edit: Edit, now: datetime) -> tuple[Schedule | None, Edited]:
    """The row after an edit; pure. Only what the tenant has, and has not deleted, can be edited."""
    if schedule is None or schedule.tenant_id != edit.tenant_id:
        raise schedule_not_found()
    if schedule.deleted_at is not None:
        if edit.delete:
            return schedule, Edited(schedule)
        raise schedule_not_found()
    if edit.delete:
        after = replace(schedule, is_active=False, next_run_time=None, deleted_at=now, updated_at=now)
        return after, Edited(after)
    after = replace(schedule, **edit.values)
    if after == schedule:
        return schedule, Edited(schedule)
    retimed = (after.cron, after.timezone, after.is_active) != (
        schedule.cron,
        schedule.timezone,
        schedule.is_active,
    )
    if retimed:
        if schedule.next_run_time is not None and schedule.next_run_time <= now:
            return schedule, Edited(schedule, due=True)
        cron.parse(after.cron, after.timezone)
        after = replace(after, next_run_time=occurrences.next_time(after, now) if after.is_active else None)
    if after.is_active != schedule.is_active:
        after = replace(after, paused_at=None if after.is_active else now)
    after = replace(after, updated_at=now)
    return after, Edited(after)


class Calendar:
    """The use cases on schedules; one per process."""

    def __init__(
        self,
        schedules: Schedules,
        queue: Queue,
        records: Records,
        executor: Executor,
        tenants: Tenants,
        triggers: Triggers,
        trail: Trail,
        *,
        now: Callable[[], datetime],
        policy: Policy,
    ) -> None:
        self._schedules = schedules
        self._queue = queue
        self._records = records
        self._executor = executor
        self._tenants = tenants
        self._triggers = triggers
        self._trail = trail
        self._now = now
        self._policy = policy
        self._ledger: Ledger[Schedule, Edit, Edited] = Ledger(schedules, decide, now=now)

    async def create(self, tenant_id: TenantId, values: Mapping[str, Any], key: str | None) -> Schedule:
        """Makes a schedule that fires at its next time; with an idempotency key once. Where nothing is said of it, it
        refreshes as many days as its template's source still changes.

        Raises ``InvalidArgument`` (CRON_INVALID, TIMEZONE_UNKNOWN, PIPELINE_INVALID, PARAMETERS_TOO_LONG,
        IDEMPOTENCY_KEY_REUSED), ``NotFound`` (TENANT_NOT_FOUND, TEMPLATE_NOT_FOUND).
        """
        now = self._now()
        check_pipeline(values["provider"], values["domain"], values["template"])
        window = await self._executor.refresh_window(values["provider"], values["domain"], values["template"])
        schedule = Schedule(
            config_id=id_from_key(tenant_id, "schedule", key),
            tenant_id=tenant_id,
            created_at=now,
            updated_at=now,
            created_by=caller.current().key_id,
            fingerprint=fingerprint(values),
            **{"refresh_window_days": min(window, _MOST_REFRESHED_DAYS), **values},
        )
        cron.parse(schedule.cron, schedule.timezone)
        due = occurrences.next_time(schedule, now) if schedule.is_active else None
        schedule = replace(schedule, version=1, next_run_time=due, paused_at=None if schedule.is_active else now)
        await self._tenants.check_staying(tenant_id)
        if key is not None and (found := await self._existing(schedule)):
            return found
        await self._schedules.insert(schedule)
        if key is not None:
            # Another request with this key may have been first.
            schedule = await self._existing(schedule) or schedule
        note = self._trail.note("schedule.create", tenant_id, "schedule", schedule.config_id, cron=schedule.cron)
        await while_it_stays(self._tenants, tenant_id, note, lambda: self._schedules.retire([tenant_id], self._now()))
        return schedule

    async def _existing(self, wanted: Schedule) -> Schedule | None:
        found = (await self._schedules.read([wanted.config_id])).get(wanted.config_id)
        if found is not None and found.fingerprint != wanted.fingerprint:
            raise key_reused()
        return found

    async def get(self, tenant_id: TenantId, config_id: str) -> Schedule:
        """Raises ``NotFound(SCHEDULE_NOT_FOUND)``."""
        found = (await self._schedules.read([config_id])).get(config_id)
        if found is None or found.tenant_id != tenant_id or found.deleted_at is not None:
            raise schedule_not_found()
        return found

    async def list(self, tenant_id: TenantId, size: int, after: tuple[datetime, str] | None) -> Sequence[Schedule]:
        """The tenant's schedules by creation."""
        return await self._schedules.list(tenant_id, size, after)

    async def update(self, tenant_id: TenantId, config_id: str, values: Mapping[str, Any]) -> Schedule:
        """Changes what is given. What is due already is fired first, or skipped visibly if the schedule is paused.

        Raises ``NotFound``, ``InvalidArgument`` as ``create``.
        """
        if "cron" in values or "timezone" in values:
            known = await self.get(tenant_id, config_id)
            cron.parse(values.get("cron", known.cron), values.get("timezone", known.timezone))
        pausing = values.get("is_active") is False
        edit = Edit(tenant_id, values)
        for _ in range(5):
            edited = await self._ledger.ask(config_id, edit)
            if not edited.due:
                action = "pause" if pausing else "resume" if values == {"is_active": True} else "update"
                await self._trail.note(f"schedule.{action}", tenant_id, "schedule", config_id, fields=sorted(values))
                return edited.schedule
            await self._triggers.fire_one(config_id, skip_as="PAUSED" if pausing else None)
        raise Aborted("SCHEDULE_CHANGED", "The schedule kept changing; try again.")

    async def delete(self, tenant_id: TenantId, config_id: str) -> Schedule:
        """Ends a schedule: its waiting runs are cancelled, running ones may end. Idempotent."""
        edited = await self._ledger.ask(config_id, Edit(tenant_id, delete=True))
        pick = Pick(states=(State.QUEUED, State.DEFERRED, State.CLAIMED), config_ids=[config_id])
        await change_all(self._queue, pick, retire, self._now)
        await self._trail.note("schedule.delete", tenant_id, "schedule", config_id)
        return edited.schedule

    async def run_now(self, tenant_id: TenantId, config_id: str, key: str | None) -> Run:
        """Queues one run for the schedule's usual date; with an idempotency key once."""
        schedule = await self.get(tenant_id, config_id)
        await self._tenants.check_staying(tenant_id)
        now = self._now()
        run_id = id_from_key(tenant_id, f"run/{config_id}", key)
        if key is not None and (found := await self._records.run(tenant_id, run_id)):
            return found
        run, item = occurrences.occurrence(schedule, now, now, self._policy)
        run = replace(run, run_id=run_id, trigger=Trigger.MANUAL, not_before=now, created_by=caller.current().key_id)
        alone = item.serial_id == run_id_of(config_id, now)
        item = replace(
            item,
            run_id=run_id,
            trigger=Trigger.MANUAL,
            not_before=now,
            serial_id=run_id if alone else item.serial_id,
        )
        await self._queue.add([run], [item], run_id)
        if key is not None:
            run = await self._records.run(tenant_id, run_id) or run
        note = self._trail.note("schedule.run", tenant_id, "schedule", config_id, run_id=run_id)
        await while_it_stays(self._tenants, tenant_id, note, lambda: let_go_of(self._queue, tenant_id, self._now))
        return run

    async def runs(
        self, tenant_id: TenantId, config_id: str, size: int, before: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        """A schedule's runs, newest first; those of a deleted one are still there."""
        found = (await self._schedules.read([config_id])).get(config_id)
        if found is None or found.tenant_id != tenant_id:
            raise schedule_not_found()
        return await self._records.runs(tenant_id, config_id, size, before)

    async def close(self) -> None:
        """Returns when all edits are answered."""
        await self._ledger.close()


def check_pipeline(provider: str, domain: str, template: str) -> None:
    """Raises ``InvalidArgument(PIPELINE_INVALID)`` for what can name no pipeline."""
    wrong = [
        FieldViolation(name, "must be lower case letters, digits and _")
        for name, value in (("provider", provider), ("domain", domain), ("template", template))
        if not value or not set(value) <= _WORD
    ]
    if wrong:
        raise InvalidArgument(
            "PIPELINE_INVALID",
            f"{', '.join(violation.field for violation in wrong)} must be lower case letters, digits and _.",
            field_violations=wrong,
        )


def parameters_text(parameters: Mapping[str, Any]) -> str | None:
    """The parameters as they are stored; ``InvalidArgument(PARAMETERS_TOO_LONG)`` above 16 kB."""
    if not parameters:
        return None
    text = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    if len(text) > _MAX_PARAMETERS:
        raise InvalidArgument(
            "PARAMETERS_TOO_LONG",
            "parameters are longer than 16 kB as JSON.",
            field_violations=[FieldViolation("parameters", "are longer than 16 kB as JSON")],
        )
    return text


def fingerprint(values: Mapping[str, Any]) -> str:
    """A hash of what was asked for."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def key_reused() -> InvalidArgument:
    """The refusal of an idempotency key that stands for something else."""
    return InvalidArgument(
        "IDEMPOTENCY_KEY_REUSED", "This idempotency key was used for a different request; use another one."
    )
