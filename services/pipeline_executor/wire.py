"""Runs, steps and checks between this context's own shapes and its contract's messages, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as pb
from google.protobuf import json_format, struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from libs.tenancy import TenantId
from services.pipeline_executor.compliance import Change, ComplianceQuestion, ComplianceRequest, Group
from services.pipeline_executor.costs import Cost, CostQuestion, CostRequest, Quarantined
from services.pipeline_executor.domain import (
    Check,
    Key,
    Outcome,
    Run,
    RunError,
    RunStatus,
    Spec,
    Step,
    StepStatus,
    Trigger,
    View,
)
from services.pipeline_executor.templates import Pipeline


def encode_view(view: View) -> pb.Run:
    """A run with its steps."""
    message = encode_run(view.run)
    message.steps.extend(encode_step(step) for step in view.steps)
    if view.rows_quarantined is not None:
        message.rows_quarantined = view.rows_quarantined
    return message


def encode_run(run: Run) -> pb.Run:
    """A run without its steps."""
    message = pb.Run(
        pipeline_logging_id=run.key.run_id,
        tenant_id=run.key.tenant_id,
        provider=run.spec.provider,
        domain=run.spec.domain,
        template=run.spec.template,
        start_date=run.spec.start_date.isoformat(),
        end_date=run.spec.end_date.isoformat(),
        status=pb.Run.Status.Value(run.status.value),
        trigger=pb.Run.Trigger.Value(run.trigger.value),
        user_id=run.user_id,
        start_time=_timestamp(run.start_time),
        end_time=_timestamp(run.end_time),
        rows_published=run.rows_published,
        error=_encode_error(run.error),
        attempt=run.key.attempt,
        superseded_by=run.superseded_by,
    )
    if run.outcome:
        message.outcome = pb.Run.Outcome.Value(run.outcome.value)
    return message


def encode_step(step: Step) -> pb.Step:
    """One step."""
    return pb.Step(
        step=step.name,
        step_type=step.type,
        status=pb.Step.Status.Value(step.status.value),
        start_time=_timestamp(step.start_time),
        end_time=_timestamp(step.end_time),
        rows=step.rows or 0,
        bytes=step.bytes or 0,
        tries=step.tries,
        error=_encode_error(step.error),
        attempt=step.attempt,
    )


def encode_check(check: Check) -> pb.DqResult:
    """One quality result."""
    return pb.DqResult(
        check_name=check.name,
        check_type=check.type,
        severity=check.severity,
        status=pb.DqResult.Status.Value(check.status),
        dimension=check.dimension,
        expected=check.expected or "",
        actual=check.actual or "",
        message=check.message,
        check_time=_timestamp(check.check_time),
        attempt=check.attempt,
    )


def encode_progress(view: View) -> pb.RunProgress:
    """A run at one moment."""
    return pb.RunProgress(run=encode_view(view), percent=view.percent, rows_read=view.rows_read)


def encode_template(pipeline: Pipeline) -> pb.Template:
    """A template."""
    return pb.Template(
        provider=pipeline.provider,
        domain=pipeline.domain,
        template=pipeline.template,
        description=pipeline.description,
        tables=pipeline.tables,
        parameters=[
            pb.Template.Parameter(name=item.name, type=item.type, required=item.required, description=item.description)
            for item in pipeline.parameters
        ],
        steps=[step.name for step in pipeline.steps],
        refresh_window_days=pipeline.refresh_window_days,
    )


def decode_progress(message: pb.RunProgress) -> View:
    """What another executor says of a run; only what a watcher is shown, its parameters are not among it."""
    return View(
        _decode_run(message.run),
        tuple(_decode_step(step, position) for position, step in enumerate(message.run.steps)),
        message.percent,
        message.rows_read,
        message.run.rows_quarantined if message.run.HasField("rows_quarantined") else None,
    )


def decode_struct(message: struct_pb2.Struct) -> Mapping[str, Any]:
    """A JSON object."""
    return json_format.MessageToDict(message)


def _decode_run(message: pb.Run) -> Run:
    return Run(
        key=Key(TenantId(message.tenant_id), message.pipeline_logging_id, message.attempt),
        spec=Spec(
            message.provider,
            message.domain,
            message.template,
            date.fromisoformat(message.start_date),
            date.fromisoformat(message.end_date),
        ),
        status=RunStatus(pb.Run.Status.Name(message.status)),
        trigger=Trigger(pb.Run.Trigger.Name(message.trigger)),
        owner="",
        fingerprint="",
        start_time=message.start_time.ToDatetime(UTC),
        user_id=message.user_id if message.HasField("user_id") else None,
        outcome=Outcome(pb.Run.Outcome.Name(message.outcome)) if message.outcome else None,
        end_time=_time(message, "end_time"),
        rows_published=message.rows_published,
        superseded_by=message.superseded_by,
        error=_decode_error(message),
    )


def decode_cost_request(tenant_id: TenantId, request: pb.QueryCostsRequest) -> CostRequest:
    """A question about costs."""
    return CostRequest(
        tenant_id=tenant_id,
        start_date=request.start_date,
        end_date=request.end_date,
        group_by=tuple(request.group_by),
        metric=request.metric,
        currency=request.currency,
        provider=request.provider,
        service=request.service,
        account=request.account,
        region=request.region,
        charge_category=request.charge_category,
        tag=request.tag,
        compare=request.compare,
    )


def decode_compliance_request(tenant_id: TenantId, request: pb.QueryComplianceRequest) -> ComplianceRequest:
    """A question about compliance."""
    return ComplianceRequest(
        tenant_id=tenant_id,
        group_by=tuple(request.group_by),
        changed_since=request.changed_since,
        start_date=request.start_date,
        end_date=request.end_date,
        provider=request.provider,
        severity=request.severity,
        standard=request.standard,
        account=request.account,
        status=request.status,
        resource=request.resource,
    )


def encode_group(question: ComplianceQuestion, group: Group) -> pb.QueryComplianceResponse.Compliance:
    """One group of findings."""
    return pb.QueryComplianceResponse.Compliance(
        dimensions=dict(zip(question.group_by, group.values, strict=True)),
        passed=group.passed,
        failed=group.failed,
        muted=group.muted,
        exempt=group.exempt,
        undecided=group.undecided,
        pass_rate=group.pass_rate,
    )


def encode_change(change: Change) -> pb.QueryComplianceResponse.Change:
    """One finding that changed."""
    return pb.QueryComplianceResponse.Change(
        finding_uid=change.finding_uid,
        kind=pb.QueryComplianceResponse.Change.Kind.Value(change.kind),
        date=change.day.isoformat(),
        status=change.status,
        previous_status=change.previous_status,
        provider=change.provider,
        source=change.source,
        severity=change.severity,
        check=change.check,
        title=change.title,
        account=change.account,
        region=change.region,
        resource=change.resource,
        standards=change.standards,
        requirements=change.requirements,
        first_seen=change.first_seen.isoformat(),
        current=change.current,
    )


def bound_of(question: CostQuestion | ComplianceQuestion) -> dict[str, str]:
    """What a page token of the question is good for: all of it but the tenant, which is in the scope."""
    return {name: str(getattr(question, name)) for name in question.__dataclass_fields__ if name != "tenant_id"}


def encode_cost(question: CostQuestion, cost: Cost) -> pb.QueryCostsResponse.Cost:
    """One group; the window before only where it was asked for."""
    message = pb.QueryCostsResponse.Cost(
        dimensions=dict(zip(question.group_by, cost.values, strict=True)),
        currency=cost.currency,
        cost=format(cost.cost, "f"),
    )
    if question.compare:
        message.previous_cost = format(cost.previous_cost, "f")
        message.change = format(cost.cost - cost.previous_cost, "f")
    return message


def encode_quarantined(found: Quarantined) -> pb.QueryCostsResponse.Quarantined:
    """Rows that no sum holds."""
    return pb.QueryCostsResponse.Quarantined(
        provider=found.provider, currency=found.currency, rows=found.rows, cost=format(found.cost, "f")
    )


def _decode_step(message: pb.Step, position: int) -> Step:
    return Step(
        attempt=message.attempt,
        position=position,
        name=message.step,
        type=message.step_type,
        status=StepStatus(pb.Step.Status.Name(message.status)),
        tries=message.tries,
        rows=message.rows,
        bytes=message.bytes,
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
        error=_decode_error(message),
    )


def _encode_error(error: RunError | None) -> pb.RunError | None:
    if error is None:
        return None
    return pb.RunError(reason=error.reason, message=error.message, retryable=error.retryable)


def _decode_error(message: pb.Run | pb.Step) -> RunError | None:
    if not message.HasField("error"):
        return None
    return RunError(message.error.reason, message.error.message, message.error.retryable)


def _timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message


def _time(message: pb.Run | pb.Step, name: str) -> datetime | None:
    value: Timestamp = getattr(message, name)
    return value.ToDatetime(UTC) if message.HasField(name) else None  # type: ignore[arg-type]
