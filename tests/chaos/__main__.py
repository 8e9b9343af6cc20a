"""``python -m tests.chaos`` (``make chaos``): rolling restarts, overload and chaos on a stack of its own.

``CHAOS_SECONDS`` (default 900) is how long faults are made, ``CHAOS_SEED`` which ones (by chance unless given; it is
printed), ``CHAOS_TENANTS`` (5) how many work meanwhile, ``CHAOS=rolling,overload,chaos`` which phases. The report goes
to ``build/chaos.json``; the last lines say what happened, and the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import driver, faults
from tests.support.stack import ROOT

_PHASES = ("rolling", "overload", "chaos")


def main() -> int:
    """Runs what the environment asks for."""
    seconds = float(os.environ.get("CHAOS_SECONDS", "900"))
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    phases = [phase for phase in os.environ.get("CHAOS", ",".join(_PHASES)).split(",") if phase]
    if unknown := set(phases) - set(_PHASES):
        print(f"CHAOS names phases of {', '.join(_PHASES)}; not {', '.join(unknown)}", file=sys.stderr)
        return 2
    tenants = int(os.environ.get("CHAOS_TENANTS", "5"))
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    say(f"CHAOS_SEED={seed} repeats this schedule")
    plan = faults.plan(seed, seconds)
    report = asyncio.run(driver.run(folder, seed=seed, phases=phases, plan=plan, tenants=tenants, say=say))
    output = ROOT / "build" / "chaos.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    print(report, flush=True)
    for text in report.wrong:
        print(f"WRONG: {text}")
    if report.wrong:
        print(f"logs, requests and data are kept in {folder}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
