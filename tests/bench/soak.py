"""``make soak``: ten minutes of steady reads through the gateway of a whole stack; no error, and flat memory.

``SOAK_SECONDS`` (default 600) and ``SOAK_RATE`` (default 60 a second, below a tenant's limit) change the load. Most
reads are answered from memory, one in 120 from the store. Exits 1 if a request failed, or if a process holds more at
the end than it did once it was warm: by the median of the last fifth of the samples against that of the second.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.bench import edge, report
from tests.support.stack import ROOT, Stack, Tenant, running

SECONDS = int(os.environ.get("SOAK_SECONDS", "600"))
RATE = int(os.environ.get("SOAK_RATE", "60"))
SAVED = ROOT / "build" / "soak.json"
SCRIPT = Path(__file__).with_name("soak.js")
PROCESSES = ("gateway", "tenant", "credential", "pipeline_executor", "scheduler")
# What may come on top without being a leak: allocators give back in steps.
_SLACK, _SLACK_MIB = 1.05, 8.0
_SAMPLE_SECONDS = 2.0


def paths(tenant: Tenant) -> list[str]:
    """What is read, in turns: mostly from memory; a list of the store every other second, for the emulator's sake."""
    own = tenant.tenant_id
    quick = ["/api/v1/whoami", "/api/v1/pipelines/templates"] * 59 + ["/api/v1/whoami"]
    return [*quick, f"/api/v1/pipelines/runs/{own}", *quick, f"/api/v1/scheduler/customer/{own}/pipelines"]


def measure(stack: Stack) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """The load's figures, each process's memory, and what is wrong with them."""
    tenant = stack.onboard()
    pids = {name: stack.process(name).pid for name in PROCESSES}
    samples: dict[str, list[float]] = {name: [] for name in pids}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            for name, pid in pids.items():
                samples[name].append(_mib(pid))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            load = edge.k6(
                SCRIPT, Path(folder), URL=stack.rest, KEY=tenant.key, PATHS=paths(tenant), RATE=RATE, SECONDS=SECONDS
            )
    finally:
        done.set()
        watcher.join()
    codes = {name: round(load.pop(name)) for name in list(load) if name.startswith("status_")}
    told = ", ".join(f"{number} {name.removeprefix('status_')}" for name, number in codes.items() if number)
    wrong = [f"{load['failed']:.0f} of {load['requests']:.0f} requests failed ({told})"] if load["failed"] else []
    wrong += [f"{load['dropped']:.0f} requests were not sent in time"] if load["dropped"] else []
    memory = []
    for name, found in samples.items():
        fifth = max(1, len(found) // 5)
        warm, last = statistics.median(found[fifth : 2 * fifth] or found), statistics.median(found[-fifth:])
        flat = last <= warm * _SLACK + _SLACK_MIB
        memory.append({"process": name, "warm_mib": round(warm, 1), "end_mib": round(last, 1), "flat": flat})
        wrong += [] if flat else [f"{name} grew from {warm:.0f} to {last:.0f} MiB"]
        if stack.process(name).pid != pids[name]:
            wrong.append(f"{name} was restarted")
    return [{"read": "steady mix", **{name: round(value, 2) for name, value in load.items()}}], memory, wrong


def _mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    """Runs the soak on a stack of its own."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        print(f"soak: {RATE} reads a second for {SECONDS} s …", file=sys.stderr, flush=True)
        load, memory, wrong = measure(stack)
    report.show("The load", load)
    report.show("Memory", memory)
    report.save(SAVED, {"The load": load, "Memory": memory})
    print(f"soak: {'; '.join(wrong) or 'no error, memory is flat'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
