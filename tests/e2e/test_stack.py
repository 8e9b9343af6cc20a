"""The local stack itself: one at a time in a folder, several beside each other, nothing left over in the end."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from deploy.local.processes import Identity
from tests.support.ports import free_port
from tests.support.stack import Stack, command, until

pytestmark = pytest.mark.own_stack


def everyone(stack: Stack) -> list[Identity]:
    """All processes of a stack, its supervisor too."""
    now = stack.now()
    return [Identity(one["pid"], one["started"]) for one in [now.supervisor, *now.processes.values()]]


def gone(processes: list[Identity]) -> bool:
    return not any(process.alive() for process in processes)


def test_from_up_to_down_with_a_killed_supervisor_between(stack: Stack, tmp_path: Path) -> None:
    """Beside the session's own stack, so two run at once here."""
    port = str(free_port())
    first = command(tmp_path, "up", PORT=port)
    try:
        assert first.returncode == 0, first.stdout + first.stderr
        assert "curl" in first.stdout
        mine = Stack.load(tmp_path / "stack.json")
        assert mine.rest == f"http://127.0.0.1:{port}"
        started = everyone(mine)
        tenant = mine.onboard("stays_here")

        again = command(tmp_path, "up", PORT=port)
        assert again.returncode == 0
        assert "is running" in again.stdout
        assert everyone(mine) == started
        assert command(tmp_path, "status").returncode == 0

        [supervisor, *others] = started
        supervisor.send(signal.SIGKILL)
        until(lambda: gone([supervisor]), bool, timeout=10, what="the supervisor is dead")
        third = command(tmp_path, "up", PORT=port)
        assert third.returncode == 0, third.stdout + third.stderr
        assert gone(others)
        assert mine.now().admin().get(f"/api/v1/tenants/{tenant.tenant_id}").status_code == 200, "state is kept"
        assert tenant.call("GET", f"/tenants/{tenant.tenant_id}")["state"] == "ACTIVE"
        last = everyone(mine)
    finally:
        down = command(tmp_path, "down")
    assert down.returncode == 0, down.stderr
    assert gone(last)
    assert not (tmp_path / "stack.json").exists()
    assert command(tmp_path, "status").returncode == 3
    assert "no stack" in command(tmp_path, "down").stdout
    assert stack.healthy(), "the other stack was left alone"


def test_a_taken_port_is_said_clearly(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = command(tmp_path, "up", PORT=str(port))
    assert answer.returncode == 1
    assert f"port {port} is taken" in answer.stdout + answer.stderr
    assert not (tmp_path / "pids.json").exists()


def test_a_bad_setting_stops_the_start_and_says_which(tmp_path: Path) -> None:
    answer = command(tmp_path, "up", PORT=str(free_port()), CORS_ORIGINS="http://localhost:3000")
    said = answer.stdout + answer.stderr
    assert answer.returncode == 1
    assert 'error parsing value for field "cors_origins"' in said
    assert '["http://localhost:3000"]' in said
    assert not (tmp_path / "pids.json").exists()


def test_secrets_are_readable_by_their_owner_only(stack: Stack) -> None:
    folder = Path(stack.data_dir)
    secrets = [*(folder / "peers").glob("*.token"), folder / "stack.json", folder / "kms" / "keys.json"]
    assert len(secrets) == 8
    for path in [*secrets, folder / "sample-service-account.json", folder / "sample-object-keys.json"]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert json.loads((folder / "sample-service-account.json").read_text())["type"] == "service_account"


def test_everything_listens_on_loopback_only(stack: Stack) -> None:
    """From the kernel's own list: no socket of a process of the stack has another local address."""
    listening = {}
    for table, loopback in (("tcp", {"0100007F"}), ("tcp6", {"0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"})):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[fields[9]] = fields[1].partition(":")[0] in loopback
    found = 0
    for name, one in stack.now().processes.items():
        for link in Path(f"/proc/{one['pid']}/fd").iterdir():
            target = str(link.readlink()) if link.is_symlink() else ""
            if target.startswith("socket:[") and target[8:-1] in listening:
                found += 1
                assert listening[target[8:-1]], name
    assert found >= 12
