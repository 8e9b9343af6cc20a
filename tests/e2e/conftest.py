"""One stack for all end-to-end tests of a session: our own, or the running one that ``CONVERGENCE_E2E_STACK`` names."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.support.stack import Stack, running


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends a session as Ctrl-C does: with its fixtures, so that no stack outlives it."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    os.environ.setdefault("LOCAL_BIGQUERY_THREADS", "1")  # its statements are small


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A healthy stack that no test of this session harms."""
    if named := Stack.of_environment():
        yield named
        return
    with running(tmp_path_factory.mktemp("stack")) as own:
        yield own
