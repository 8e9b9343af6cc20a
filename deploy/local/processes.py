"""The local stack's processes: started with a log, told from a stranger with the same pid, stopped for sure."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for all time: a pid is given again, a pid with its start time is not."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Returns the process's identity, or ``None`` if there is no such process (or only its corpse)."""
        started = _start_time(pid)
        return cls(pid, started) if started else None

    def alive(self) -> bool:
        """True while exactly this process runs."""
        return _start_time(self.pid) == self.started

    def send(self, signum: int) -> None:
        """Sends a signal to exactly this process; does nothing once it has ended."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def start(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process whose output is appended to ``log``; it ends when the thread that started it does (Linux)."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # Safe here: the supervisor has one thread and loads no gRPC.
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )


def stop(processes: Sequence[Identity], *, grace: float) -> None:
    """Ends the processes: SIGTERM to all, SIGKILL to those left after ``grace`` seconds; returns when none is left."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + grace
    killed = False
    while True:
        left = [process for process in processes if process.alive()]
        if not left:
            return
        if not killed and time.monotonic() > deadline:
            killed = True
            for process in left:
                process.send(signal.SIGKILL)
        time.sleep(0.05)


def tail(path: Path, lines: int = 15) -> str:
    """Returns the last lines of a log, or nothing if it is not there."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start_time(pid: int) -> str:
    """Start time as the system says it; empty for a process that has ended."""
    if Path("/proc/self/stat").exists():
        try:
            # The name in parentheses may hold spaces; state is the first field after it, start time the twentieth.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()
