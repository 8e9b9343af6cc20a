"""The commands, put together: ``convergence`` and ``python -m services.cli`` start here."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.commands import (
    backfill,
    compliance,
    credentials,
    doctor,
    keys,
    money,
    runs,
    scheduler,
    schedules,
    session,
    tenants,
)
from services.cli.failures import EXIT_CODES

app = typer.Typer(
    name="convergence",
    help="Cloud cost and compliance data, per tenant, on a schedule or on demand.",
    epilog=f"""\b
Start with:
  $ convergence login https://api.example.com
  $ convergence credentials add gcp --file key.json
  $ convergence run gcp/cost/billing --watch
  $ convergence costs

{EXIT_CODES}""",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help comes in half the time, fits narrow terminals and can be searched.
    rich_markup_mode=None,
    # What is not foreseen shows its trace as Python does: without the values of variables.
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"convergence {version('convergence')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Cloud cost and compliance data, per tenant, on a schedule or on demand."""


session.add(app)
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(credentials.app, name="credentials")
runs.add(app)
app.add_typer(runs.app, name="runs")
app.add_typer(schedules.app, name="schedules")
app.add_typer(backfill.app, name="backfill")
money.add(app)
compliance.add(app)
scheduler.add(app)
doctor.add(app)
app.add_typer(scheduler.queue, name="queue")
app.add_typer(scheduler.app, name="scheduler")


def main() -> None:
    """Entry point of ``convergence``."""
    app()
