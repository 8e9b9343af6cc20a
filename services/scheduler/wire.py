"""Between the contract's messages and the scheduler's own types, both directions; nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

from convergence.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import FieldViolation, InvalidArgument
from services.scheduler import occurrences
from services.scheduler.domain import Backfill, Catchup, Item, JobCall, Overlap, Run, Schedule, State
from services.scheduler.loop import Processed
from services.scheduler.reports import Health, Violations
from services.scheduler.schedules import parameters_text

_TIMES_SHOWN = 10
_TEXT = ("name", "cron", "timezone")
_NUMBERS = (
    "priority",
    "refresh_window_days",
    "catchup_limit",
    "date_offset_days",
    "jitter_seconds",
    "max_retries",
)


def time(value: datetime | None) -> Timestamp | None:
    """A time on the wire; None stays absent."""
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def day(name: str, text: str) -> date:
    """A date of a request; ``InvalidArgument(DATE_INVALID)``."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        message = "must be a date that exists, YYYY-MM-DD"
        raise InvalidArgument(
            "DATE_INVALID", f"{name} {message}.", field_violations=[FieldViolation(name, message)]
        ) from None


def new_schedule(request: pb.CreateScheduleRequest) -> dict[str, Any]:
    """What a request to create a schedule says, by column; what it leaves out has its default."""
    values: dict[str, Any] = {
        **pipeline(request),
        "cron": request.cron.strip(),
        "timezone": request.timezone or "UTC",
        "name": request.name,
        "parameters": parameters_text(MessageToDict(request.parameters)),
        "overlap_policy": Overlap(_policy(request.overlap_policy, pb.Schedule.OverlapPolicy, Overlap.SKIP)),
        "catchup_policy": Catchup(_policy(request.catchup_policy, pb.Schedule.CatchupPolicy, Catchup.LAST)),
    }
    return values | _given(request, *_NUMBERS, "is_active")


def changed_schedule(request: pb.UpdateScheduleRequest) -> dict[str, Any]:
    """What a request to change a schedule says, by column."""
    values = _given(request, *_TEXT, *_NUMBERS, "is_active")
    if "cron" in values:
        values["cron"] = values["cron"].strip()
    if request.HasField("parameters"):
        values["parameters"] = parameters_text(MessageToDict(request.parameters))
    if request.HasField("overlap_policy"):
        values["overlap_policy"] = Overlap(_policy(request.overlap_policy, pb.Schedule.OverlapPolicy, Overlap.SKIP))
    if request.HasField("catchup_policy"):
        values["catchup_policy"] = Catchup(_policy(request.catchup_policy, pb.Schedule.CatchupPolicy, Catchup.LAST))
    return values


def _given(request: Message, *names: str) -> dict[str, Any]:
    """Those of the fields that a request gives."""
    return {field.name: value for field, value in request.ListFields() if field.name in names}


def pipeline(request: pb.CreateScheduleRequest | pb.CreateBackfillRequest) -> dict[str, str]:
    """The pipeline a request names, in its one spelling."""
    return {
        "provider": request.provider.lower(),
        "domain": request.domain.lower(),
        "template": request.template.lower(),
    }


def parameters(request: pb.CreateBackfillRequest) -> str | None:
    """The parameters a request gives, as they are stored."""
    return parameters_text(MessageToDict(request.parameters))


def _policy(number: int, kind: Any, default: str) -> str:
    return str(kind.Name(number)) if number else default


def schedule(row: Schedule) -> pb.Schedule:
    """A schedule with its next times."""
    times = [time(each) for each in occurrences.upcoming(row, _TIMES_SHOWN)]
    message = pb.Schedule(
        config_id=row.config_id,
        tenant_id=row.tenant_id,
        name=row.name,
        provider=row.provider,
        domain=row.domain,
        template=row.template,
        cron=row.cron,
        timezone=row.timezone,
        priority=row.priority,
        overlap_policy=pb.Schedule.OverlapPolicy.Value(row.overlap_policy.value),
        catchup_policy=pb.Schedule.CatchupPolicy.Value(row.catchup_policy.value),
        catchup_limit=row.catchup_limit,
        date_offset_days=row.date_offset_days,
        refresh_window_days=row.refresh_window_days,
        jitter_seconds=row.jitter_seconds,
        max_retries=row.max_retries,
        is_active=row.is_active,
        next_run_time=time(row.next_run_time),
        next_run_times=[each for each in times if each is not None],
        create_time=time(row.created_at),
        update_time=time(row.updated_at),
    )
    ParseDict(json.loads(row.parameters or "{}"), message.parameters)
    return message


def run(row: Run | Item) -> pb.ScheduledRun:
    """A run, from its own row or from the queue's."""
    return pb.ScheduledRun(
        run_id=row.run_id,
        config_id=row.config_id or "",
        backfill_id=row.backfill_id or "",
        tenant_id=row.tenant_id,
        provider=row.provider,
        domain=row.domain,
        template=row.template,
        scheduled_for=time(row.scheduled_for),
        start_date=row.start_date.isoformat(),
        end_date=row.end_date.isoformat(),
        state=pb.ScheduledRun.State.Value(row.state.value),
        reason=row.reason or "",
        error=row.error or "",
        retry_count=row.retry_count,
        max_retries=row.max_retries,
        attempt=row.attempt,
        priority=row.priority,
        not_before=time(row.not_before),
        occurrence_count=row.occurrence_count if isinstance(row, Run) else 1,
        create_time=time(row.created_at),
        update_time=time(row.updated_at),
    )


def state(number: pb.ScheduledRun.State.ValueType) -> State | None:
    """The state a request filters by, if it does."""
    return State(pb.ScheduledRun.State.Name(number)) if number else None


def backfill(row: Backfill) -> pb.Backfill:
    """A backfill with its progress."""
    done = pb.Backfill.COMPLETED if row.pending_count == 0 else pb.Backfill.RUNNING
    return pb.Backfill(
        backfill_id=row.backfill_id,
        tenant_id=row.tenant_id,
        provider=row.provider,
        domain=row.domain,
        template=row.template,
        start_date=row.start_date.isoformat(),
        end_date=row.end_date.isoformat(),
        state=pb.Backfill.CANCELLED if row.cancelled_at else done,
        total_count=row.total_count,
        completed_count=row.completed_count,
        failed_count=row.failed_count,
        pending_count=row.pending_count,
        create_time=time(row.created_at),
    )


def processed(done: Processed) -> pb.ProcessQueueResponse:
    """What one call of the loop did."""
    return pb.ProcessQueueResponse(
        started_count=done.started,
        completed_count=done.completed,
        failed_count=done.failed,
        retried_count=done.retried,
        dead_letter_count=done.dead_letters,
        deferred_count=done.deferred,
        skipped_count=done.skipped,
        running_count=done.running,
        queued_count=done.queued,
    )


def health(found: Health) -> pb.GetStatusResponse:
    """The queue and the jobs."""
    return pb.GetStatusResponse(
        due_count=found.status.due,
        queued_by_state=dict(found.status.by_state),
        running_count=found.running,
        oldest_age_seconds=int(found.oldest.total_seconds()),
        lag_seconds=int(found.lag.total_seconds()),
        failed_last_day=found.status.failed_last_day,
        jobs=[_call(each) for each in found.calls],
    )


def _call(row: JobCall) -> pb.GetStatusResponse.JobCall:
    return pb.GetStatusResponse.JobCall(
        job=row.job, start_time=time(row.start_time), end_time=time(row.end_time), outcome=row.outcome
    )


def invariants(found: Iterable[Violations]) -> pb.CheckInvariantsResponse:
    """The invariants with their violations."""
    shown = [
        pb.CheckInvariantsResponse.Invariant(
            name=each.name, description=each.description, count=each.count, samples=each.samples
        )
        for each in found
    ]
    return pb.CheckInvariantsResponse(invariants=shown, violation_count=sum(each.count for each in shown))


def cursor(value: datetime, row_id: str) -> tuple[str, str]:
    """A sort key as a page token holds it."""
    return value.astimezone(UTC).isoformat(), row_id


def opened(parts: tuple[str, ...]) -> tuple[datetime, str] | None:
    """The sort key out of a page token; None on the first page."""
    return (datetime.fromisoformat(parts[0]), parts[1]) if parts else None
