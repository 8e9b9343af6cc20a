"""The local stack: ``python -m deploy.local.stack up|down|status|run|exec`` (``make up``, ``make down``, …).

Emulator, key service, the four services and the gateway, as plain processes under one supervisor. ``up`` returns when
all is healthy; state lies in ``DATA_DIR`` (default ``.data``), the gateway listens on ``PORT`` (default 8080).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.local import processes
from deploy.local.layout import PYTHONPATH, ROOT, Folder, StackError, environment
from deploy.local.processes import Identity
from deploy.local.supervisor import clean, locked, supervise

_UP_SECONDS, _DOWN_SECONDS = 300.0, 60.0
# A supervisor says who it is as the first thing after it has taken the lock.
_SAY_SECONDS = 5.0


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.stack", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the stack in the background; returns when it is healthy")
    commands.add_parser("down", help="stop exactly the processes of the stack")
    commands.add_parser("status", help="show what runs")
    commands.add_parser("run", help="run the stack in the foreground until Ctrl-C")
    run = commands.add_parser("exec", help="run a command with the stack's environment, or else the caller's own")
    run.add_argument("tool", nargs=argparse.REMAINDER, help="-- command …")
    options = parser.parse_args(argv)
    folder = Folder.of_environment()
    try:
        match options.command:
            case "up":
                return up(folder)
            case "down":
                return down(folder)
            case "status":
                return status(folder)
            case "run":
                supervise(folder, environment(), say)
                return 0
            case _:
                return execute(folder, [word for word in options.tool if word != "--"])
    except StackError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1


def up(folder: Folder) -> int:
    """Starts a supervisor in the background and shows its progress until the stack is ready. Raises ``StackError``."""
    folder.make()
    if stack := read(folder):
        print(f"the stack in {folder.path} is running\n")
        print(welcome(stack))
        return 0
    log = folder.logs / "supervisor.log"
    with log.open("ab") as out:
        shown = out.tell()
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.stack", "run"],
            cwd=ROOT,
            env={**os.environ, "DATA_DIR": str(folder.path), "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + _UP_SECONDS
    try:
        while True:
            ended = supervisor.poll() is not None
            shown = _follow(log, shown)
            if stack := read(folder):
                print("\n" + welcome(stack))
                return 0
            if ended:
                raise StackError(f"the stack did not start; logs are in {folder.logs}")
            if time.monotonic() > deadline:
                raise StackError(f"the stack was not ready after {_UP_SECONDS:.0f} s; logs are in {folder.logs}")
            time.sleep(0.05)
    except BaseException:
        # Ctrl-C, too: what does not come up leaves nothing behind.
        if supervisor.poll() is None:
            supervisor.terminate()
            supervisor.wait()
        raise


def down(folder: Folder) -> int:
    """Stops the supervisor, which stops its processes, or what a killed supervisor left; waits until all are gone."""
    if not folder.path.is_dir():
        print("no stack is running")
        return 0
    with locked(folder) as unused:
        if unused:
            clean(folder, print)
            print("no stack is running")
            return 0
    stack = json.loads(folder.stack_file.read_text()) if folder.stack_file.exists() else {}
    deadline = time.monotonic() + _SAY_SECONDS
    while (supervisor := _holder(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if supervisor is None:
        raise StackError(f"a supervisor holds {folder.lock_file} and has not said who it is; try again in a second")
    everyone = [supervisor, *(Identity(one["pid"], one["started"]) for one in stack.get("processes", {}).values())]
    processes.stop([supervisor], grace=_DOWN_SECONDS)
    processes.stop([one for one in everyone if one.alive()], grace=0)
    with locked(folder):
        clean(folder, print)
    print(f"stopped the stack in {folder.path}")
    return 0


def status(folder: Folder) -> int:
    """Shows the processes of the running stack; exit code 3 if there is none."""
    stack = read(folder)
    if not stack:
        print(f"no stack is running in {folder.path}")
        return 3
    for name, one in stack["processes"].items():
        state = "up" if Identity(one["pid"], one["started"]).alive() else "down, about to be started again"
        print(f"{name:18} pid {one['pid']:<8} {one.get('address', ''):17} restarts {one['restarts']}  {state}")
    print("\n" + welcome(stack))
    return 0


def execute(folder: Folder, command: list[str]) -> int:
    """Runs a command on the running stack, unless the caller's own environment names a project."""
    if not command:
        raise StackError("nothing to run: exec -- command …")
    env = environment()
    stack = read(folder)
    if stack and "GCP_PROJECT_ID" not in os.environ:
        print(f"on the local stack in {folder.path}")
        env |= stack["environment"]
    elif "GCP_PROJECT_ID" not in env:
        raise StackError("no local stack is running (`make up`) and GCP_PROJECT_ID names no project to work on")
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode


def read(folder: Folder) -> dict[str, Any] | None:
    """Returns what the stack says of itself, or ``None`` unless it is ready and its supervisor lives."""
    try:
        stack: dict[str, Any] = json.loads(folder.stack_file.read_text())
        supervisor = stack["supervisor"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return stack if Identity(supervisor["pid"], supervisor["started"]).alive() else None


def welcome(stack: dict[str, Any]) -> str:
    """What to do with a stack that is ready."""
    rest = stack["rest"]
    return f"""REST and gRPC   {rest}   (documentation: {rest}/docs)
console         {rest}/console   (sign in with a tenant's key)
BigQuery        {stack["bigquery_rest"]}   (project {stack["project_id"]}, customer {stack["customer_project_id"]})
admin key       {stack["admin_api_key"]}
for tools       {Path(stack["data_dir"]) / "stack.json"}
logs            {stack["logs_dir"]}

Try:
  curl -s {rest}/api/v1/tenants/onboard -H 'Content-Type: application/json' \\
    -d '{{"tenant_id":"test_001","company_name":"Test Corp","admin_email":"test@test.com",
         "subscription_plan":"PROFESSIONAL"}}'"""


def say(line: str) -> None:
    """One line of the supervisor's log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _follow(log: Path, shown: int) -> int:
    """Prints whole new lines of the log; returns how far it has shown it."""
    with log.open("rb") as lines:
        lines.seek(shown)
        new = lines.read()
    new = new[: new.rfind(b"\n") + 1]
    if new:
        print(new.decode(errors="replace"), end="", flush=True)
    return shown + len(new)


def _holder(folder: Folder) -> Identity | None:
    try:
        own = json.loads(folder.pids_file.read_text())["supervisor"]
        return Identity(own["pid"], own["started"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    raise SystemExit(main())
