"""The import rules of ``pyproject.toml`` (``[tool.importlinter]``) hold, and they do catch what they are there for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


def lint(folder: Path) -> tuple[int, str]:
    """Runs import-linter on the packages of a folder; returns its exit code and report."""
    done = subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_imports_keep_the_rules() -> None:
    code, report = lint(ROOT)
    assert code == 0, report


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("services/credential/servicer.py", "import services.tenant.domain", "No service imports another"),
        ("services/cli/api.py", "import services.tenant.domain", "No service imports another"),
        ("services/tenant/domain.py", "import grpc", "A domain knows the standard library"),
        ("services/tenant/domain.py", "import services.tenant.store", "Inside a service"),
        ("services/scheduler/servicer.py", "import libs.bigquery", "reaches the warehouse through its store"),
        ("libs/errors.py", "import services.tenant.domain", "Libs know neither services"),
        ("services/tenant/main.py", "import deploy.local.kms", "Services know neither the deployment"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, module: str, line: str, broken: str) -> None:
    for package in ("services", "libs", "deploy"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as source:
        source.write(f"\n{line}\n")
    code, report = lint(tmp_path)
    assert code == 1, report
    assert any(broken in row and "BROKEN" in row for row in report.splitlines()), report
