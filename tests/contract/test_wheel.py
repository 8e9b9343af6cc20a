"""What ``pip install .`` and ``uv tool install .`` install: a wheel with all our files, in which the commands run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ("services", "libs", "deploy", "protos/gen/convergence", "protos/gen/buf")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_that_the_code_reads(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    files = {
        path.relative_to(ROOT).as_posix().removeprefix("protos/gen/")
        for package in PACKAGED
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in files} >= {".sql", ".yaml", ".json", ".csv", ".py"}
    assert files <= names, files - names
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "convergence = services.cli.main:main" in wheel.read(entry_points).decode()


def test_the_command_line_runs_without_the_source_tree(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    wheel.extractall(installed)
    script = (
        "import services.cli.api as api, convergence.tenant.v1.tenant_pb2 as pb, libs.tables as tables\n"
        "print(api.__file__, pb.__file__, len(tables.group('central')))\n"
        "from services.cli.main import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "whoami"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "CONVERGENCE_CONFIG_DIR": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    first, second, tables = done.stdout.split()
    assert first.startswith(str(installed)) and second.startswith(str(installed)) and tables == "8"
    assert done.returncode == 3 and "You are not signed in." in done.stderr
