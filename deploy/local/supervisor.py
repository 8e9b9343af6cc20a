"""The supervisor of a local stack: starts everything in order, restarts what dies, stops exactly what it started.

``deploy.local.stack`` runs it detached (``up``) or in the foreground (``run``). It has one thread, because a process
that asks to end with its parent ends with the thread that started it, and loads no gRPC, because it forks.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from deploy.local import processes
from deploy.local.layout import HOST, SERVICES, STORAGE_ACCOUNT, Folder, Layout, StackError
from deploy.local.processes import Identity

_BOOT_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE, _SETTLED = 0.5, 30.0, 60.0
_STOP_GRACE = 10.0
_LOG_BYTES = 20_000_000


@dataclass(slots=True)
class Child:
    """One process the supervisor keeps alive."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    identity: Identity | None = None
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float | None = None
    restarts: int = 0

    def start(self, cwd: Path) -> None:
        """Starts the process, in the data folder, where no stray settings file lies."""
        self.process = processes.start(self.command, env=self.env, cwd=cwd, log=self.log)
        self.identity = Identity.of(self.process.pid)
        self.started, self.due = time.monotonic(), None


class _Stop(Exception):
    """A signal asked the supervisor to end while it was starting."""


@dataclass(slots=True)
class Supervisor:
    """Runs one stack from its start to its end."""

    layout: Layout
    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    stopping: bool = False
    ready: bool = False

    def run(self) -> None:
        """Starts the stack and keeps it until SIGTERM or SIGINT; leaves no process behind however it ends."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._write_state()
        try:
            self._boot()
            self._watch()
        except _Stop:
            pass
        finally:
            self._stop_all()

    # --- start -------------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        began = time.monotonic()
        layout, ports = self.layout, self.layout.ports
        layout.write_secrets()
        self.say("starting BigQuery emulator, key service and object stores")
        tools = layout.tool_environment()
        self._add("bigquery", layout.bigquery_command(), tools)
        self._add("kms", layout.kms_command(), tools)
        self._add("objects", layout.objects_command(), tools)
        datasets = f"http://{HOST}:{ports.bigquery_rest}/bigquery/v2/projects/{layout.project_id}/datasets"
        self._until_http(datasets, "bigquery")
        self._until_listens(ports.kms, "kms")

        self.say("setting up the central dataset")
        self._tool("setup-bigquery", "deploy.setup_bigquery_datasets")
        self.say("starting tenant, credential, pipeline_executor, scheduler")
        for service in SERVICES:
            self._add(service, [sys.executable, "-m", f"services.{service}"], layout.service_environment(service))
        self.say("seeding the sample customers' billing exports")
        self._tool("sample-data", "deploy.local.sample_data", str(layout.objects_folder), STORAGE_ACCOUNT)
        self._until("the object stores listen", lambda: _listens(ports.objects), "objects")
        for service in SERVICES:
            self._until_listens(ports.public[service], service)

        self.say("starting the gateway")
        self._add("gateway", layout.gateway_command(), tools)
        self._until_http(f"http://{HOST}:{ports.gateway}/health", "gateway")
        self.ready = True
        self._write_state()
        self.say(f"ready after {time.monotonic() - began:.1f} s")

    def _add(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        child = Child(name, command, env, self.layout.folder.logs / f"{name}.log")
        self.children.append(child)
        child.start(self.layout.folder.path)
        self._write_state()

    def _tool(self, name: str, module: str, *arguments: str) -> None:
        """Runs a tool of the stack to its end; a failure is the stack's."""
        log = self.layout.folder.logs / f"{name}.log"
        tool = Child(name, [sys.executable, "-m", module, *arguments], self.layout.tool_environment(), log)
        self.children.append(tool)
        tool.start(self.layout.folder.path)
        self._write_state()
        assert tool.process is not None
        while tool.process.poll() is None:
            self._check_boot(except_for=name)
            time.sleep(0.05)
        self.children.remove(tool)
        self._write_state()
        if tool.process.returncode:
            raise StackError(f"{name} failed; the end of {log}:\n{processes.tail(log)}")

    def _until_http(self, url: str, name: str) -> None:
        self._until(f"{url} answers 200", lambda: _http_ok(url), name)

    def _until_listens(self, port: int, name: str) -> None:
        self._until(f"{name} listens", lambda: _listens(port), name)

    def _until(self, what: str, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + _BOOT_SECONDS
        while not condition():
            self._check_boot()
            if time.monotonic() > deadline:
                log = self.layout.folder.logs / f"{name}.log"
                raise StackError(f"waited {_BOOT_SECONDS:.0f} s until {what}; the end of {log}:\n{processes.tail(log)}")
            time.sleep(0.05)

    def _check_boot(self, except_for: str = "") -> None:
        if self.stopping:
            raise _Stop
        for child in self.children:
            if child.name != except_for and child.process and child.process.poll() is not None:
                raise StackError(
                    f"{child.name} ended at its start ({_ending(child.process.returncode)}); the end of {child.log}:\n"
                    f"{processes.tail(child.log)}"
                )

    # --- run ---------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self.stopping:
            for child in self.children:
                self._keep(child)
            time.sleep(0.1)

    def _keep(self, child: Child) -> None:
        now = time.monotonic()
        if child.due is not None:
            if now >= child.due:
                child.start(self.layout.folder.path)
                child.restarts += 1
                self._write_state()
                self.say(f"{child.name} runs again as pid {child.process.pid if child.process else '?'}")
        elif child.process and child.process.poll() is not None:
            if now - child.started > _SETTLED:
                child.pause = _FIRST_PAUSE
            child.due = now + child.pause
            self.say(
                f"{child.name} (pid {child.process.pid}) ended ({_ending(child.process.returncode)}) after "
                f"{now - child.started:.0f} s; it is started again in {child.pause:g} s"
            )
            child.pause = min(child.pause * 2, _LONGEST_PAUSE)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        self.stopping = True

    # --- state and end -----------------------------------------------------------------------------------------------

    def _write_state(self) -> None:
        own = Identity.of(os.getpid())
        running = {child.name: child.identity for child in self.children if child.identity}
        pids = [{"name": name, "pid": one.pid, "started": one.started} for name, one in running.items()]
        supervisor = {"pid": own.pid, "started": own.started} if own else {}
        _write(self.layout.folder.pids_file, {"supervisor": supervisor, "processes": pids})
        if not self.ready:
            return
        addresses = {
            name: {
                "address": f"{HOST}:{self.layout.ports.public[name]}",
                "internal_address": f"{HOST}:{self.layout.ports.internal[name]}",
            }
            for name in SERVICES
        }
        described = self.layout.describe() | {
            "supervisor": supervisor,
            "processes": {
                child.name: {
                    "pid": child.identity.pid,
                    "started": child.identity.started,
                    "restarts": child.restarts,
                    **addresses.get(child.name, {}),
                }
                for child in self.children
                if child.identity
            },
        }
        _write(self.layout.folder.stack_file, described)

    def _stop_all(self) -> None:
        self.ready = False
        self.layout.folder.stack_file.unlink(missing_ok=True)
        # The edge first, then the services, then what they stand on, so that nothing new arrives at what is ending.
        for stage in (["gateway"], SERVICES, [child.name for child in self.children]):
            ending = [child.identity for child in self.children if child.name in stage and child.identity]
            if alive := [identity for identity in ending if identity.alive()]:
                processes.stop(alive, grace=_STOP_GRACE)
        self.say("stopped")
        self.layout.folder.pids_file.unlink(missing_ok=True)


type Say = Callable[[str], None]
type Make = Callable[[Folder, Mapping[str, str], Say], Supervisor]


def _usual(folder: Folder, given: Mapping[str, str], say: Say) -> Supervisor:
    return Supervisor(Layout.plan(folder, given), say)


def supervise(folder: Folder, given: Mapping[str, str], say: Say, make: Make = _usual) -> None:
    """Runs a stack in this process until it is told to end; ``make`` plans another one. Raises ``StackError``."""
    folder.make()
    with locked(folder) as mine:
        if not mine:
            raise StackError(f"a stack runs in {folder.path} already")
        clean(folder, say)
        for log in folder.logs.glob("*.log"):
            if log.stat().st_size > _LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
        make(folder, given, say).run()


@contextmanager
def locked(folder: Folder) -> Iterator[bool]:
    """Yields whether this process now holds the folder's lock: true means that no other supervisor lives there."""
    with folder.lock_file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def clean(folder: Folder, say: Callable[[str], None]) -> None:
    """Ends what a supervisor that was killed left behind: exactly the processes it had written down."""
    folder.stack_file.unlink(missing_ok=True)
    try:
        written = json.loads(folder.pids_file.read_text())["processes"]
    except (FileNotFoundError, ValueError, KeyError):
        return
    left = [Identity(one["pid"], one["started"]) for one in written]
    if alive := [one for one in left if one.alive()]:
        say(f"the last stack here was not stopped: ending {len(alive)} of its processes")
        processes.stop(alive, grace=_STOP_GRACE)
    folder.pids_file.unlink(missing_ok=True)


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(content, out, indent=2)
    temporary.replace(path)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _http_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
