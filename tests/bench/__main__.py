"""Measures: the edge, tracing, a run of many rows, statements of quotas and the scheduler, findings, reports of AWS.

``make bench`` prints a table per section and writes all of them to ``build/bench.json``. ``BENCH`` (a list of section
names) picks some. Nothing is asserted about speed: figures of two machines do not compare, ratios within one run do.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import compliance, data, edge, quota_statements, report, runs, scheduler_statements, traced
from tests.support.stack import ROOT, running

SAVED = ROOT / "build" / "bench.json"


def at_the_edge() -> dict[str, report.Results]:
    """A read through the gateway of a whole stack."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        return {"An authenticated read at the edge": edge.measure(stack, stack.onboard())}


def many_rows() -> dict[str, report.Results]:
    """A run on a whole stack."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        return {"A run": runs.measure(stack, stack.onboard())}


def quotas() -> dict[str, report.Results]:
    """Reservations, by group commit and one by one."""
    with quota_statements.emulator() as endpoint:
        return {"Reservations: BigQuery statements by variant": asyncio.run(quota_statements.measure(endpoint))}


def schedules() -> dict[str, report.Results]:
    """Trigger and drain, all at once and row by row."""
    with quota_statements.emulator() as endpoint:
        results = asyncio.run(scheduler_statements.measure(endpoint))
        return {"Trigger and drain: BigQuery statements by variant": results}


def findings() -> dict[str, report.Results]:
    """A scan of many findings, and one of the day after."""
    return {"Compliance findings": compliance.measure()}


SECTIONS: dict[str, Callable[[], dict[str, report.Results]]] = {
    "edge": at_the_edge,
    "tracing": lambda: {"A read, traced and not": traced.measure()},
    "run": many_rows,
    "quotas": quotas,
    "schedules": schedules,
    "compliance": findings,
    "data": data.measure,
}


def main() -> None:
    """Runs the sections that are asked for; prints each when it is done."""
    asked = [name.strip() for name in os.environ.get("BENCH", ",".join(SECTIONS)).split(",")]
    if unknown := set(asked) - set(SECTIONS):
        sys.exit(f"BENCH: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    done: dict[str, report.Results] = {}
    for number, name in enumerate(asked, 1):
        print(f"[{number}/{len(asked)}] measuring {name} …", file=sys.stderr, flush=True)
        for title, results in SECTIONS[name]().items():
            report.show(title, results)
            done[title] = results
    report.save(SAVED, done)
    print(f"bench: {len(done)} sections measured, saved to {SAVED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
