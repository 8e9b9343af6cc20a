"""``schedules``: when a tenant's pipelines run by themselves."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli.command import Cli, LimitOption, YesOption, command, group
from services.cli.commands.runs import ParamOption, PipelineArgument
from services.cli.options import parameters, pipeline_fields
from services.cli.output import Column, at, moment, pipeline, window, word

app = group("When pipelines run by themselves.")


class Overlap(StrEnum):
    """The overlap policies of the contract."""

    SKIP = "SKIP"
    QUEUE_ONE = "QUEUE_ONE"
    ALLOW = "ALLOW"


class Catchup(StrEnum):
    """The catch-up policies of the contract."""

    LAST = "LAST"
    ALL = "ALL"
    NONE = "NONE"


ScheduleArgument = Annotated[str, typer.Argument(metavar="CONFIG_ID", help="The schedule.")]
CronOption = Annotated[str | None, typer.Option("--cron", help="Five fields or an @alias, at most once an hour.")]
ZoneOption = Annotated[str | None, typer.Option("--timezone", metavar="ZONE", help="IANA zone the cron is read in.")]
PriorityOption = Annotated[int | None, typer.Option("--priority", min=1, max=10, help="1 (last) to 10 (first).")]
NameOption = Annotated[str | None, typer.Option("--name", help="What to call it.")]
OverlapOption = Annotated[
    Overlap | None, typer.Option("--overlap", case_sensitive=False, help="While the run before still runs.")
]
CatchupOption = Annotated[
    Catchup | None, typer.Option("--catchup", case_sensitive=False, help="What to do with missed occurrences.")
]
CatchupLimitOption = Annotated[int | None, typer.Option("--catchup-limit", help="At most so many under ALL.")]
RefreshOption = Annotated[
    int | None,
    typer.Option(
        "--refresh-days", help="Days before the date that run again, for restated bills (0-31; new: the template's)."
    ),
]
OffsetOption = Annotated[int | None, typer.Option("--date-offset", help="The run's date, in days before (0-31).")]
JitterOption = Annotated[int | None, typer.Option("--jitter-seconds", help="Spread starts over so long (0-1800).")]
RetriesOption = Annotated[int | None, typer.Option("--max-retries", help="How often a failed run is tried again.")]
_COLUMNS = [
    Column("schedule", lambda each: each.config_id),
    Column("name", lambda each: each.name),
    Column("pipeline", pipeline),
    Column("cron", lambda each: each.cron),
    Column("zone", lambda each: each.timezone),
    Column("state", lambda each: "ACTIVE" if each.is_active else "PAUSED"),
    Column("next (UTC)", lambda each: moment(each, "next_run_time") if each.is_active else ""),
]
RUN_COLUMNS = [
    Column("run", lambda each: each.run_id),
    Column("pipeline", pipeline),
    Column("dates", window),
    Column("state", lambda each: word(each, "state")),
    Column("due (UTC)", lambda each: moment(each, "scheduled_for")),
    Column("tries", lambda each: f"{each.retry_count}/{each.max_retries}", right=True),
    Column("not before", lambda each: moment(each, "not_before")),
    Column("reason", lambda each: each.reason, fold=True),
    Column("error", lambda each: each.error, fold=True),
]


def rows(schedule: Any) -> list[tuple[str, Any]]:
    """A schedule, field by field."""
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(schedule.parameters.items()))
    return [
        *((column.head, column.value(schedule)) for column in _COLUMNS),
        ("priority", schedule.priority),
        ("overlap", word(schedule, "overlap_policy")),
        ("catch-up", f"{word(schedule, 'catchup_policy')} (at most {schedule.catchup_limit})"),
        ("date", f"{schedule.date_offset_days} days before"),
        ("refreshes", f"{schedule.refresh_window_days} days" if schedule.refresh_window_days else ""),
        ("jitter", f"{schedule.jitter_seconds} s" if schedule.jitter_seconds else ""),
        ("retries", schedule.max_retries),
        ("parameters", parameters),
        ("changed", moment(schedule, "update_time")),
    ]


def run_rows(run: Any) -> list[tuple[str, Any]]:
    """A scheduled run, field by field."""
    return [
        *((column.head, column.value(run)) for column in RUN_COLUMNS),
        ("tenant", run.tenant_id),
        ("schedule", run.config_id),
        ("backfill", run.backfill_id),
    ]


@command(app, "list", examples=["convergence schedules list", "convergence schedules list -o json"])
def list_(cli: Cli, limit: LimitOption = 100) -> None:
    """List the schedules."""
    cli.list(
        "scheduler.ListSchedules",
        "pipelines",
        _COLUMNS,
        empty="No schedules yet: `convergence schedules create` makes one.",
        limit=limit,
        tenant_id=cli.tenant,
    )


@command(
    app,
    "create",
    examples=[
        "convergence schedules create gcp/cost/billing --cron '0 6 * * *' --timezone Europe/Berlin",
        "convergence schedules create aws/cost/billing --cron @daily --refresh-days 3 --name bills",
    ],
)
def create(
    cli: Cli,
    name_of_pipeline: PipelineArgument,
    cron: Annotated[str, typer.Option("--cron", help="Five fields or an @alias, at most once an hour.")],
    timezone: ZoneOption = None,
    name: NameOption = None,
    priority: PriorityOption = None,
    overlap: OverlapOption = None,
    catchup: CatchupOption = None,
    catchup_limit: CatchupLimitOption = None,
    refresh_days: RefreshOption = None,
    date_offset: OffsetOption = None,
    jitter_seconds: JitterOption = None,
    max_retries: RetriesOption = None,
    param: ParamOption = None,
    paused: Annotated[bool, typer.Option("--paused", help="It does not fire until it is resumed.")] = False,
    idempotency_key: Annotated[
        str, typer.Option("--idempotency-key", metavar="KEY", help="The same key is the same schedule.")
    ] = "",
) -> None:
    """Create a schedule.

    It fires at its next time, never at once.
    """
    made = cli.api.call(
        "scheduler.CreateSchedule",
        **pipeline_fields(name_of_pipeline),
        tenant_id=cli.tenant,
        cron=cron,
        timezone=timezone,
        name=name,
        priority=priority,
        overlap_policy=overlap,
        catchup_policy=catchup,
        catchup_limit=catchup_limit,
        refresh_window_days=refresh_days,
        date_offset_days=date_offset,
        jitter_seconds=jitter_seconds,
        max_retries=max_retries,
        parameters=parameters(param),
        is_active=False if paused else None,
        request_id=idempotency_key or uuid.uuid4().hex,
    )
    cli.show(made, rows)


@command(app, "get", examples=["convergence schedules get 7b1e…"])
def get(cli: Cli, config_id: ScheduleArgument) -> None:
    """Show a schedule."""
    cli.show(cli.api.call("scheduler.GetSchedule", tenant_id=cli.tenant, config_id=config_id), rows)


@command(app, "update", examples=["convergence schedules update 7b1e… --cron '30 5 * * *' --priority 8"])
def update(
    cli: Cli,
    config_id: ScheduleArgument,
    cron: CronOption = None,
    timezone: ZoneOption = None,
    name: NameOption = None,
    priority: PriorityOption = None,
    overlap: OverlapOption = None,
    catchup: CatchupOption = None,
    catchup_limit: CatchupLimitOption = None,
    refresh_days: RefreshOption = None,
    date_offset: OffsetOption = None,
    jitter_seconds: JitterOption = None,
    max_retries: RetriesOption = None,
    param: ParamOption = None,
) -> None:
    """Change a schedule; what is left out stays.

    A changed cron never fires for the past.
    """
    changes = {
        "cron": cron,
        "timezone": timezone,
        "name": name,
        "priority": priority,
        "overlap_policy": overlap,
        "catchup_policy": catchup,
        "catchup_limit": catchup_limit,
        "refresh_window_days": refresh_days,
        "date_offset_days": date_offset,
        "jitter_seconds": jitter_seconds,
        "max_retries": max_retries,
        "parameters": parameters(param),
    }
    if all(value is None for value in changes.values()):
        raise typer.BadParameter("say what to change, such as --cron or --priority")
    cli.show(cli.api.call("scheduler.UpdateSchedule", tenant_id=cli.tenant, config_id=config_id, **changes), rows)


@command(app, "pause", examples=["convergence schedules pause 7b1e…"])
def pause(cli: Cli, config_id: ScheduleArgument) -> None:
    """Pause a schedule."""
    cli.show(cli.api.call("scheduler.PauseSchedule", tenant_id=cli.tenant, config_id=config_id), rows)


@command(app, "resume", examples=["convergence schedules resume 7b1e…"])
def resume(cli: Cli, config_id: ScheduleArgument) -> None:
    """Resume a schedule at its next time.

    What it missed stays missed.
    """
    cli.show(cli.api.call("scheduler.ResumeSchedule", tenant_id=cli.tenant, config_id=config_id), rows)


@command(app, "run", examples=["convergence schedules run 7b1e…"])
def run(cli: Cli, config_id: ScheduleArgument) -> None:
    """Queue one run now, for its usual date."""
    cli.show(
        cli.api.call("scheduler.RunSchedule", tenant_id=cli.tenant, config_id=config_id, request_id=uuid.uuid4().hex),
        run_rows,
    )


@command(app, "delete", examples=["convergence schedules delete 7b1e… --yes"])
def delete(cli: Cli, config_id: ScheduleArgument, yes: YesOption = False) -> None:
    """Delete a schedule.

    Its queued runs are cancelled, running ones end.
    """
    cli.confirm(f"Delete schedule {config_id}?", yes=yes)
    cli.show(cli.api.call("scheduler.DeleteSchedule", tenant_id=cli.tenant, config_id=config_id), rows)


@command(app, "next", examples=["convergence schedules next 7b1e…"])
def next_(cli: Cli, config_id: ScheduleArgument) -> None:
    """Show the next ten times of a schedule."""
    schedule = cli.api.call("scheduler.GetSchedule", tenant_id=cli.tenant, config_id=config_id)
    if cli.print.as_json:
        cli.print.json({"next_run_times": _times(schedule)})
        return
    if not schedule.next_run_times:
        cli.print.say("It does not fire: it is paused." if not schedule.is_active else "It never fires again.")
    for time in schedule.next_run_times:
        cli.print.line(f"{at(time)} UTC")


@command(app, "runs", examples=["convergence schedules runs 7b1e… --limit 10"])
def runs(cli: Cli, config_id: ScheduleArgument, limit: LimitOption = 20) -> None:
    """List the runs of a schedule, newest first."""
    cli.list(
        "scheduler.ListScheduledRuns",
        "runs",
        RUN_COLUMNS,
        empty="It has not run yet.",
        limit=limit,
        tenant_id=cli.tenant,
        config_id=config_id,
    )


@command(app, "cancel-run", examples=["convergence schedules cancel-run 0d3c…"])
def cancel_run(cli: Cli, run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]) -> None:
    """Cancel a run of a schedule or backfill."""
    cli.show(cli.api.call("scheduler.CancelScheduledRun", tenant_id=cli.tenant, run_id=run_id), run_rows)


def _times(schedule: Any) -> list[str]:
    return [time.ToJsonString() for time in schedule.next_run_times]
