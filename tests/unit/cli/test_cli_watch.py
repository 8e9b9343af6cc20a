"""Following a run: what is shown of it, how it ends, and that losing or leaving the stream ends only the watching."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as pb
from google.protobuf import json_format
from rich.console import Console

from libs import errors
from services.cli import charts, watch
from tests.support.cli import Gateway, Terminal

BEGAN, ENDED = "2025-11-18T06:00:00Z", "2025-11-18T06:00:02.5Z"


def progress(status: str, percent: int, *steps: tuple[str, str, int]) -> dict[str, Any]:
    shown = [
        {"step": name, "status": state, "rows": rows, "start_time": BEGAN}
        | ({"end_time": ENDED} if state in ("COMPLETED", "FAILED") else {})
        for name, state, rows in steps
    ]
    return {
        "run": {"pipeline_logging_id": "0d3c", "status": status, "steps": shown},
        "percent": percent,
        "rows_read": 304,
    }


STREAM = [
    progress("RUNNING", 0, ("extract", "PENDING", 0), ("load", "PENDING", 0)),
    progress("RUNNING", 10, ("extract", "RUNNING", 0), ("load", "PENDING", 0)),
    progress("RUNNING", 10, ("extract", "RUNNING", 100), ("load", "PENDING", 0)),
    progress("RUNNING", 50, ("extract", "COMPLETED", 304), ("load", "RUNNING", 0)),
    progress("COMPLETED", 100, ("extract", "COMPLETED", 304), ("load", "COMPLETED", 304)),
]
DONE = {"pipeline_logging_id": "0d3c", "provider": "gcp", "status": "COMPLETED", "outcome": "PUBLISHED"}
FAILED = {**DONE, "status": "FAILED", "error": {"reason": "SOURCE_MISSING", "message": "No table.", "retryable": True}}


@pytest.fixture
def pipelines(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setattr(watch, "_PAUSE_SECONDS", 0.0)
    gateway.answers["pipeline_executor.RunPipeline"] = {**DONE, "status": "RUNNING"}
    gateway.answers["pipeline_executor.WatchRun"] = lambda request: iter(STREAM)
    gateway.answers["pipeline_executor.GetRun"] = DONE
    return gateway


def test_away_from_a_terminal_each_change_is_a_line(pipelines: Gateway, acme: Terminal) -> None:
    done = acme.run("run", "gcp/cost/billing", "--watch")
    assert done.exit_code == 0 and "PUBLISHED" in done.stdout
    assert done.stderr.splitlines()[1:] == [
        "extract RUNNING",
        "extract COMPLETED  304 rows  2.5 s",
        "load RUNNING",
        "load COMPLETED  304 rows  2.5 s",
    ]
    assert "extract" not in done.stdout


def test_as_json_the_end_is_one_document_or_each_progress_a_line(pipelines: Gateway, acme: Terminal) -> None:
    assert acme.json("run", "gcp/cost/billing", "--watch")["status"] == "COMPLETED"
    lines = acme.run("runs", "watch", "0d3c", "--output", "json").stdout.splitlines()
    assert [json.loads(line)["percent"] for line in lines] == [0, 10, 10, 50, 100]


def test_a_run_that_fails_is_exit_one(pipelines: Gateway, acme: Terminal) -> None:
    pipelines.answers["pipeline_executor.GetRun"] = FAILED
    done = acme.run("runs", "watch", "0d3c")
    assert done.exit_code == 1
    assert "No table. [SOURCE_MISSING]" in done.stdout and "run it again" in done.stderr
    assert acme.run("run", "gcp/cost/billing").exit_code == 0, "it was started, which is all that was asked"


def test_a_broken_stream_is_taken_up_again(pipelines: Gateway, acme: Terminal) -> None:
    rounds = iter([2, 3, 5])

    def stream(request: dict[str, Any]) -> Iterator[Any]:
        seen = next(rounds)
        yield from STREAM[:seen]
        if seen < len(STREAM):
            yield errors.Unavailable("DRAINING", "This process is ending.")

    pipelines.answers["pipeline_executor.WatchRun"] = stream
    done = acme.run("runs", "watch", "0d3c")
    assert done.exit_code == 0
    assert done.stderr.splitlines().count("extract COMPLETED  304 rows  2.5 s") == 1
    assert len(pipelines.asked("pipeline_executor.WatchRun")) == 3


def test_a_stream_that_never_holds_is_given_up(pipelines: Gateway, acme: Terminal) -> None:
    pipelines.answers["pipeline_executor.WatchRun"] = lambda request: iter([errors.Unavailable("X", "Gone.")])
    assert acme.run("runs", "watch", "0d3c").exit_code == 6
    pipelines.answers["pipeline_executor.WatchRun"] = lambda request: iter([])
    done = acme.run("runs", "watch", "0d3c")
    assert done.exit_code == 6 and "convergence runs get 0d3c" in done.stderr
    pipelines.answers["pipeline_executor.WatchRun"] = lambda request: iter([errors.NotFound("RUN_NOT_FOUND", "None.")])
    assert acme.run("runs", "watch", "0d3c").exit_code == 4


def test_ctrl_c_ends_the_watching_and_not_the_run(
    pipelines: Gateway, acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, progress: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch._Lines, "__call__", interrupted)
    done = acme.run("runs", "watch", "0d3c", "--profile", "default")
    assert done.exit_code == 130
    assert "The run goes on. Watch it again: `convergence runs watch 0d3c --profile default`" in done.stderr
    assert not pipelines.asked("pipeline_executor.CancelRun")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_a_bar_a_step_within_its_width(width: int) -> None:
    moment = json_format.ParseDict(STREAM[3], pb.RunProgress())
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(watch.render(moment, 7.0, width))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert len(lines) == 3
        assert lines[0].split()[0] == "extract" and "304 rows" in lines[0] and "2.5 s" in lines[0]
        assert "50 % running" in lines[2] and "7 s" in lines[2]


def test_a_backfill_is_watched_to_its_end(gateway: Gateway, acme: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.cli.commands import backfill

    monkeypatch.setattr(backfill, "_POLL_SECONDS", 0.0)
    left = iter([8, 8, 3, 0])

    def state(request: dict[str, Any]) -> dict[str, Any]:
        pending = next(left)
        return {
            "backfill_id": "51aa",
            "state": "RUNNING" if pending else "COMPLETED",
            "total_count": 8,
            "pending_count": pending,
            "failed_count": 1 if not pending else 0,
        }

    gateway.answers["scheduler.GetBackfill"] = state
    done = acme.run("backfill", "status", "51aa", "--watch")
    assert done.exit_code == 0 and "100 %" in done.stdout
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["0", "62"]


def test_charts() -> None:
    assert charts.bar(Decimal(5), Decimal(10), 4) == "██"
    assert charts.bar(1, 1000, 4) == "▏", "what is there shows"
    assert charts.bar(-1, 10, 4) == charts.bar(1, 0, 4) == ""
    assert charts.bar(5, 10, 4, unicode=False) == "##"
    assert charts.gauge(9, 6, 4) == "████" and charts.gauge(0, 6, 4) == "░░░░"
    assert charts.sparkline([0, 1, 2, 8]) == "▁▂▃█"
    assert charts.sparkline([-4, 0, 4]) == "▁▅█" and charts.sparkline([0, 0]) == "▁▁" and charts.sparkline([]) == ""
    assert charts.fold([1, 2, 3, 4, 5], 2) == [6, 9] and charts.fold([1], 2) == [1]
