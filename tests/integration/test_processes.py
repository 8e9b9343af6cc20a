"""Processes of the local stack: known by pid and start time, ended for sure, gone with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import processes
from deploy.local.processes import Identity
from tests.support.stack import until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def start(code: str, log: Path) -> subprocess.Popen[bytes]:
    return processes.start([sys.executable, "-c", code], env=dict(os.environ), cwd=log.parent, log=log)


def test_a_pid_given_again_is_another_process(tmp_path: Path) -> None:
    child = start("import time; time.sleep(60)", tmp_path / "log")
    known = Identity.of(child.pid)
    assert known is not None
    assert known.alive()
    stranger = Identity(child.pid, "another start time")
    assert not stranger.alive()
    processes.stop([stranger], grace=0)
    assert known.alive()
    processes.stop([known], grace=5)
    assert not known.alive()
    assert child.wait() == -signal.SIGTERM


def test_who_does_not_listen_is_killed(tmp_path: Path) -> None:
    child = start(STUBBORN, tmp_path / "log")
    until(lambda: processes.tail(tmp_path / "log"), lambda text: "ready" in text, timeout=10, what="it ignores SIGTERM")
    known = Identity.of(child.pid)
    assert known is not None
    processes.stop([known], grace=0.1)
    assert child.wait() == -signal.SIGKILL


def test_a_corpse_is_not_alive(tmp_path: Path) -> None:
    child = start("", tmp_path / "log")
    known = Identity.of(child.pid)
    until(lambda: known is None or not known.alive(), bool, timeout=10, what="it has ended, unreaped")
    assert child.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_children_end_with_the_supervisor(tmp_path: Path) -> None:
    parent = (
        "import os, sys, time; from pathlib import Path; from deploy.local import processes; "
        "child = processes.start(['sleep', '60'], env=os.environ, cwd=Path('.'), log=Path('log')); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=tmp_path, env=env) as supervisor:
        assert supervisor.stdout is not None
        child = Identity.of(int(supervisor.stdout.readline()))
        assert child is not None
        supervisor.kill()
    until(child.alive, lambda alive: not alive, timeout=10, what="the child has ended too")
