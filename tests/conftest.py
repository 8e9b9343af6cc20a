"""Fixtures of all levels: the BigQuery emulator once per session, a fresh project per test module."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from deploy.local.bigquery import wait_ready
from libs.bigquery import Warehouse, build_client
from tests.support.ports import free_port

_PROJECTS = itertools.count(1)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Takes back what a test configured: its standard output is pytest's capture, closed when the test ends."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)


@dataclass(frozen=True)
class Emulator:
    """Where the session's emulator listens and what it stores in."""

    rest: str
    grpc: str
    data_dir: Path


@contextlib.contextmanager
def running_emulator(data_dir: Path) -> Iterator[tuple[Emulator, subprocess.Popen[bytes]]]:
    """An emulator process on free ports over a data folder; stopped at the end if it still runs."""
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "deploy.local.bigquery", "--data-dir", str(data_dir), "--project", "local"]
    command += ["--port", str(port), "--grpc-port", str(grpc_port), "--threads", "1"]
    with (data_dir / "emulator.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ), cwd=Path(__file__).parents[1])
    try:
        emulator = Emulator(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", data_dir)
        try:
            wait_ready(emulator.rest, "local", timeout=180, running=lambda: process.poll() is None)
        except TimeoutError as exc:
            raise RuntimeError((data_dir / "emulator.log").read_text()) from exc
        yield emulator, process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def bigquery_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """One emulator process for the session, on free ports with an empty data folder."""
    with running_emulator(tmp_path_factory.mktemp("bigquery")) as (emulator, _):
        yield emulator


@pytest.fixture(scope="module")
def project_id() -> str:
    """A project nobody else uses; the emulator makes it with its first dataset."""
    return f"p{os.getpid()}-{next(_PROJECTS)}"


@pytest.fixture(scope="module")
def warehouse(bigquery_emulator: Emulator, project_id: str) -> Iterator[Warehouse]:
    """A warehouse on the module's project; its datasets are dropped at the end, to keep the catalog small."""
    made = Warehouse(build_client(project_id, endpoint=bigquery_emulator.rest))
    yield made
    for item in list(made.client.list_datasets()):
        made.client.delete_dataset(item.reference, delete_contents=True, not_found_ok=True)
    made.close()


@pytest.fixture(scope="module")
def central(warehouse: Warehouse) -> Warehouse:
    """The module's warehouse with the central dataset ``tenants`` and all its tables."""
    from deploy.setup_bigquery_datasets import setup

    asyncio.run(setup(warehouse, report=lambda line: None))
    return warehouse
