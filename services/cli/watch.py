"""Follows a run to its end: a live bar for each step on a terminal, a line for each change elsewhere.

Progress goes to stderr. Watching changes nothing: whoever stops, or loses the connection, may watch again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from services.cli.command import Cli
from services.cli.failures import Exit, Failure
from services.cli.output import Printer, clean, took, word

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
_STEP_ENDED = frozenset({"COMPLETED", "FAILED", "SKIPPED", "CANCELLED"})
_RECONNECTS = 5
_PAUSE_SECONDS = 1.0


def follow(
    cli: Cli, run_id: str, *, each: Callable[[Any], None] | None = None, sleep: Callable[[float], None] = time.sleep
) -> Any:
    """Returns the run once it has ended. ``each`` gets every progress instead of it being shown."""
    tenant = cli.tenant
    try:
        with _shown(cli.print) if each is None else _nothing() as show:
            for progress in _progress(cli, tenant, run_id, sleep):
                (each or show)(progress)
    except KeyboardInterrupt:
        mine = f" --profile {cli.profile_name}" if cli.profile_name else ""
        cli.print.say(
            f"The run goes on. Watch it again: `convergence runs watch {run_id}{mine}`; "
            f"stop it: `convergence runs cancel {run_id}{mine}`."
        )
        raise typer.Exit(Exit.INTERRUPTED) from None
    return cli.api.call("pipeline_executor.GetRun", tenant_id=tenant, pipeline_logging_id=run_id)


def fail_unless_completed(cli: Cli, run: Any) -> None:
    """Exits 1 for a run that ended badly; its answer is on stdout already."""
    if word(run, "status") == "COMPLETED":
        return
    if run.HasField("error"):
        again = "Another attempt may succeed: run it again." if run.error.retryable else ""
        raise Failure(run.error.message, reason=run.error.reason, advice=again)
    raise Failure(f"The run ended {word(run, 'status')}.")


def _progress(cli: Cli, tenant: str, run_id: str, sleep: Callable[[float], None]) -> Iterator[Any]:
    """What the server streams, asked for again where the stream breaks off."""
    left = _RECONNECTS
    while True:
        last = None
        try:
            for last in cli.api.stream("pipeline_executor.WatchRun", tenant_id=tenant, pipeline_logging_id=run_id):
                left = _RECONNECTS
                yield last
            if last is not None and word(last.run, "status") in ENDED:
                return
        except Failure as failure:
            if failure.exit_code is not Exit.UNAVAILABLE or not left:
                raise
        if not left:
            raise Failure(
                "The stream ends before the run does.",
                exit_code=Exit.UNAVAILABLE,
                advice=f"The run goes on: `convergence runs get {run_id}`.",
            )
        left -= 1
        sleep(_PAUSE_SECONDS)


@contextmanager
def _nothing() -> Iterator[Callable[[Any], None]]:
    yield lambda progress: None


@contextmanager
def _shown(printer: Printer) -> Iterator[Callable[[Any], None]]:
    if not printer.err.is_terminal:
        yield _Lines(printer)
        return
    from rich.live import Live

    began = time.monotonic()
    with Live(console=printer.err, refresh_per_second=8) as live:
        yield lambda progress: live.update(render(progress, time.monotonic() - began, printer.err.width))


class _Lines:
    """A line for each step that began or ended, and none twice."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._said: dict[str, str] = {}

    def __call__(self, progress: Any) -> None:
        for step in progress.run.steps:
            status = word(step, "status")
            if status == "PENDING" or self._said.get(step.step) == status:
                continue
            self._said[step.step] = status
            rows = f"{step.rows:,} rows" if step.rows and status in _STEP_ENDED else ""
            self._printer.say("  ".join(filter(None, [f"{step.step} {status}", rows, took(step)])))


def render(progress: Any, seconds: float, width: int) -> Any:
    """A run's progress as a table of bars; ``width`` is the terminal's."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    length = 24 if width >= 72 else max(4, width // 6)
    table = Table.grid(padding=(0, 2))
    for step in progress.run.steps:
        status = word(step, "status")
        done = status in _STEP_ENDED
        style = {"FAILED": "red", "CANCELLED": "yellow", "SKIPPED": "dim"}.get(status, "green")
        shown = ProgressBar(
            total=1 if done or status == "PENDING" else None,
            completed=1 if done else 0,
            width=length,
            pulse=status == "RUNNING",
            finished_style=style,
        )
        rows = f"{step.rows:,} rows" if step.rows else ""
        cells: list[Any] = [Text(clean(step.step)), shown, Text(status.lower(), style if done else "dim"), Text(rows)]
        table.add_row(*cells, Text(took(step), "dim"))
    whole = ProgressBar(total=100, completed=progress.percent, width=length, complete_style="bold cyan")
    status = word(progress.run, "status").lower()
    read = f"{progress.rows_read:,} read" if progress.rows_read else ""
    table.add_row(
        Text("in all", "bold"), whole, Text(f"{progress.percent} % {status}"), Text(read), Text(f"{seconds:.0f} s")
    )
    return table
