"""``backfill``: runs over past dates."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import typer

from services.cli import charts
from services.cli.command import Cli, LimitOption, YesOption, command, group
from services.cli.commands.runs import ParamOption, PipelineArgument
from services.cli.failures import Exit
from services.cli.options import parameters, pipeline_fields
from services.cli.output import Column, Printer, moment, pipeline, window, word

app = group("Runs over a range of past dates.")

BackfillArgument = Annotated[str, typer.Argument(metavar="BACKFILL_ID", help="The backfill.")]
_POLL_SECONDS = 5.0
_COLUMNS = [
    Column("backfill", lambda each: each.backfill_id),
    Column("pipeline", pipeline),
    Column("dates", window),
    Column("state", lambda each: word(each, "state")),
    Column("done", lambda each: f"{each.completed_count}/{each.total_count}", right=True),
    Column("failed", lambda each: each.failed_count, right=True),
    Column("waiting", lambda each: each.pending_count, right=True),
    Column("created", lambda each: moment(each, "create_time")),
]


@command(
    app,
    "start",
    examples=[
        "convergence backfill start gcp/cost/billing --start-date 2025-10-01 --end-date 2025-10-31",
        "convergence backfill start aws/cost/billing --start-date 2025-11-01 --end-date 2025-11-07 --watch",
    ],
)
def start(
    cli: Cli,
    name: PipelineArgument,
    start_date: Annotated[str, typer.Option("--start-date", metavar="YYYY-MM-DD", help="First date.")],
    end_date: Annotated[str, typer.Option("--end-date", metavar="YYYY-MM-DD", help="Last date, included.")],
    param: ParamOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it has ended.")] = False,
    idempotency_key: Annotated[
        str, typer.Option("--idempotency-key", metavar="KEY", help="The same key is the same backfill.")
    ] = "",
) -> None:
    """Queue one run a date over a range of dates.

    They have low priority: schedules go first.
    """
    made = cli.api.call(
        "scheduler.CreateBackfill",
        **pipeline_fields(name),
        tenant_id=cli.tenant,
        start_date=start_date,
        end_date=end_date,
        parameters=parameters(param),
        request_id=idempotency_key or uuid.uuid4().hex,
    )
    _show(cli, _follow(cli, made) if watch else made)
    if not watch:
        cli.print.say(f"Watch it: `convergence backfill status {made.backfill_id} --watch`.", "dim")


@command(app, "list", examples=["convergence backfill list", "convergence backfill list -o json"])
def list_(cli: Cli, limit: LimitOption = 20) -> None:
    """List the backfills, newest first."""
    cli.list("scheduler.ListBackfills", "backfills", _COLUMNS, empty="No backfills.", limit=limit, tenant_id=cli.tenant)


@command(app, "status", examples=["convergence backfill status 51aa…", "convergence backfill status 51aa… --watch"])
def status(
    cli: Cli,
    backfill_id: BackfillArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until it has ended.")] = False,
) -> None:
    """Show how far a backfill is."""
    found = cli.api.call("scheduler.GetBackfill", tenant_id=cli.tenant, backfill_id=backfill_id)
    _show(cli, _follow(cli, found) if watch else found)


@command(app, "cancel", examples=["convergence backfill cancel 51aa… --yes"])
def cancel(cli: Cli, backfill_id: BackfillArgument, yes: YesOption = False) -> None:
    """Cancel all runs of a backfill that have not ended."""
    cli.confirm(f"Cancel backfill {backfill_id}?", yes=yes)
    _show(cli, cli.api.call("scheduler.CancelBackfill", tenant_id=cli.tenant, backfill_id=backfill_id))


def _show(cli: Cli, backfill: Any) -> None:
    cli.show(
        backfill,
        lambda each: [
            *((column.head, column.value(each)) for column in _COLUMNS),
            ("progress", _progress(cli.print, each)),
        ],
    )


def _progress(printer: Printer, backfill: Any) -> str:
    ended = backfill.total_count - backfill.pending_count
    share = 100 * ended // max(1, backfill.total_count)
    return f"{charts.gauge(ended, max(1, backfill.total_count), 24, unicode=printer.unicode)} {share} %"


def _follow(cli: Cli, backfill: Any) -> Any:
    """Asks every few seconds until the backfill has ended, and shows what changed."""
    said = ""
    try:
        with cli.print.err.status("") as spinner:
            while word(backfill, "state") == "RUNNING":
                told = f"{_progress(cli.print, backfill)}  {backfill.failed_count} failed"
                spinner.update(told)
                if told != said and not cli.print.err.is_terminal:
                    cli.print.say(told)
                said = told
                time.sleep(_POLL_SECONDS)
                backfill = cli.api.call("scheduler.GetBackfill", tenant_id=cli.tenant, backfill_id=backfill.backfill_id)
    except KeyboardInterrupt:
        cli.print.say(f"The backfill goes on: `convergence backfill status {backfill.backfill_id} --watch`.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    return backfill
