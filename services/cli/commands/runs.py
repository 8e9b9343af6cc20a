"""``run``, ``runs``, ``logs``, ``templates``: pipelines, by hand."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli.command import Cli, LimitOption, command, group
from services.cli.options import parameters, pipeline_fields
from services.cli.output import Column, moment, pipeline, took, window, word
from services.cli.watch import fail_unless_completed, follow

app = group("List, read, watch, cancel runs.")


class Status(StrEnum):
    """The statuses of the contract."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


PipelineArgument = Annotated[
    str, typer.Argument(metavar="PROVIDER/DOMAIN/TEMPLATE", help="The pipeline; `convergence templates` lists them.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]
ParamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter of the template (a value may be JSON); repeatable."
    ),
]
_STEPS = [
    Column("step", lambda each: each.step),
    Column("status", lambda each: word(each, "status")),
    Column("rows", lambda each: each.rows, right=True),
    Column("bytes", lambda each: each.bytes, right=True),
    Column("tries", lambda each: each.tries, right=True),
    Column("attempt", lambda each: each.attempt, right=True),
    Column("began", lambda each: moment(each, "start_time")),
    Column("took", took, right=True),
    Column("error", lambda each: each.error.message, fold=True),
]
RUNS = [
    Column("run", lambda each: each.pipeline_logging_id),
    Column("pipeline", pipeline),
    Column("dates", window),
    Column("status", lambda each: word(each, "status")),
    Column("outcome", lambda each: word(each, "outcome")),
    Column("rows", lambda each: each.rows_published, right=True),
    Column("trigger", lambda each: word(each, "trigger").lower()),
    Column("began", lambda each: moment(each, "start_time")),
    Column("took", took, right=True),
]
_CHECKS = [
    Column("check", lambda each: each.check_name, fold=True),
    Column("status", lambda each: word(each, "status")),
    Column("of", lambda each: each.dimension),
    Column("expected", lambda each: each.expected, right=True),
    Column("actual", lambda each: each.actual, right=True),
    Column("severity", lambda each: each.severity),
    Column("message", lambda each: each.message, fold=True),
]
_TEMPLATES = [
    Column("pipeline", pipeline),
    Column("brings", lambda each: each.description, fold=True),
    Column("tables", lambda each: ", ".join(each.tables), fold=True),
    Column(
        "parameters", lambda each: ", ".join(f"{p.name}{'' if p.required else '?'}" for p in each.parameters), fold=True
    ),
]


def rows(run: Any) -> list[tuple[str, Any]]:
    """A run, field by field."""
    return [
        ("run", run.pipeline_logging_id),
        ("pipeline", pipeline(run)),
        ("dates", window(run)),
        ("status", word(run, "status")),
        ("outcome", word(run, "outcome")),
        ("rows", run.rows_published if word(run, "status") == "COMPLETED" else ""),
        ("in quarantine", run.rows_quarantined or ""),
        ("attempt", run.attempt if run.attempt > 1 else ""),
        ("trigger", word(run, "trigger").lower()),
        ("for", run.user_id),
        ("began", moment(run, "start_time")),
        ("took", took(run)),
        ("superseded by", run.superseded_by),
        ("error", f"{run.error.message} [{run.error.reason}]" if run.HasField("error") else ""),
    ]


def add(root: typer.Typer) -> None:
    """Registers the commands that are no group."""

    @command(
        root,
        "run",
        examples=[
            "convergence run gcp/cost/billing --date 2025-11-17 --watch",
            "convergence run aws/cost/billing --start-date 2025-11-01 --end-date 2025-11-30 --output json",
            "convergence run gcp/cost/billing --param source=@source.json --idempotency-key nightly-2025-11-17",
        ],
    )
    def run(
        cli: Cli,
        name: PipelineArgument,
        date: Annotated[
            str, typer.Option("--date", metavar="YYYY-MM-DD", help="The date to run (default: yesterday, UTC).")
        ] = "",
        start_date: Annotated[
            str, typer.Option("--start-date", metavar="YYYY-MM-DD", help="First date, instead.")
        ] = "",
        end_date: Annotated[str, typer.Option("--end-date", metavar="YYYY-MM-DD", help="Last date, included.")] = "",
        param: ParamOption = None,
        watch: Annotated[
            bool, typer.Option("--watch", "-w", help="Show its progress until it has ended; exits 1 if it fails.")
        ] = False,
        idempotency_key: Annotated[
            str, typer.Option("--idempotency-key", metavar="KEY", help="The same key is the same run.")
        ] = "",
    ) -> None:
        """Run a pipeline for a date or a range of dates."""
        started = cli.api.call(
            "pipeline_executor.RunPipeline",
            **pipeline_fields(name),
            tenant_id=cli.tenant,
            date=date or None,
            start_date=start_date or None,
            end_date=end_date or None,
            parameters=parameters(param),
            request_id=idempotency_key or uuid.uuid4().hex,
        )
        run_id = started.pipeline_logging_id
        if not watch:
            cli.show(started, rows)
            cli.print.say(f"Watch it: `convergence runs watch {run_id}`.", "dim")
            return
        cli.print.say(f"Run {run_id} of {pipeline(started)}, {window(started)}.")
        _finish(cli, follow(cli, run_id))

    @command(root, "logs", examples=["convergence logs 0d3c…", "convergence logs 0d3c… --output json"])
    def logs(cli: Cli, run_id: RunArgument) -> None:
        """Show a run's steps and its quality checks, all attempts."""
        ids = {"tenant_id": cli.tenant, "pipeline_logging_id": run_id}
        steps = cli.api.pages("pipeline_executor.ListSteps", "steps", limit=0, **ids)
        checks = cli.api.pages("pipeline_executor.ListDqResults", "dq_results", limit=0, **ids)
        if cli.print.as_json:
            cli.print.json({"steps": list(steps.steps), "dq_results": list(checks.dq_results)})
            return
        cli.print.table(steps.steps, _STEPS, empty="No steps are logged yet: they are when the attempt ends.")
        if checks.dq_results:
            cli.print.line("")
            cli.print.table(checks.dq_results, _CHECKS, empty="")

    @command(root, "templates", tenant=False, examples=["convergence templates", "convergence templates -o json"])
    def templates(cli: Cli, limit: LimitOption = 0) -> None:
        """List the pipelines that can be run."""
        cli.list("pipeline_executor.ListTemplates", "templates", _TEMPLATES, empty="No templates.", limit=limit)


@command(
    app,
    "list",
    examples=["convergence runs list --status FAILED", "convergence runs list --provider gcp --limit 0 -o json"],
)
def list_(
    cli: Cli,
    status: Annotated[
        Status | None, typer.Option("--status", case_sensitive=False, help="Only with this status.")
    ] = None,
    provider: Annotated[str, typer.Option("--provider", help="Only this provider's.")] = "",
    domain: Annotated[str, typer.Option("--domain", help="Only this domain's.")] = "",
    template: Annotated[str, typer.Option("--template", help="Only this template's.")] = "",
    limit: LimitOption = 20,
) -> None:
    """List runs, newest first."""
    cli.list(
        "pipeline_executor.ListRuns",
        "runs",
        RUNS,
        empty="No runs.",
        limit=limit,
        tenant_id=cli.tenant,
        status=status,
        provider=provider or None,
        domain=domain or None,
        template=template or None,
    )


@command(app, "get", examples=["convergence runs get 0d3c…", "convergence runs get 0d3c… --attempt 1"])
def get(
    cli: Cli,
    run_id: RunArgument,
    attempt: Annotated[int, typer.Option("--attempt", min=0, help="One attempt; 0: the newest.")] = 0,
) -> None:
    """Show a run with its steps."""
    run = cli.api.call("pipeline_executor.GetRun", tenant_id=cli.tenant, pipeline_logging_id=run_id, attempt=attempt)
    _show(cli, run)


@command(app, "watch", examples=["convergence runs watch 0d3c…", "convergence runs watch 0d3c… --output json"])
def watch(cli: Cli, run_id: RunArgument) -> None:
    """Show a run's progress until it has ended.

    Exits 1 if it fails. As JSON: one progress a line.
    """
    if cli.print.as_json:
        fail_unless_completed(cli, follow(cli, run_id, each=cli.print.json_line))
        return
    _finish(cli, follow(cli, run_id))


@command(app, "cancel", examples=["convergence runs cancel 0d3c…"])
def cancel(cli: Cli, run_id: RunArgument) -> None:
    """Cancel a run; nothing of it is published."""
    cli.show(cli.api.call("pipeline_executor.CancelRun", tenant_id=cli.tenant, pipeline_logging_id=run_id), rows)


def _show(cli: Cli, run: Any) -> None:
    cli.show(run, rows)
    if not cli.print.as_json and run.steps:
        cli.print.line("")
        cli.print.table(run.steps, _STEPS, empty="")


def _finish(cli: Cli, run: Any) -> None:
    """The run as it ended, and the exit code that says how."""
    cli.show(run, rows)
    fail_unless_completed(cli, run)
