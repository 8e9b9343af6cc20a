"""One gateway before stand-in services for all of the files; each test finds it as if nothing had been asked yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import StandIns, running_gateway
from tests.support.ports import free_port


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIns]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), port=free_port(), rate_burst=100_000) as stand_ins:
        yield stand_ins


@pytest.fixture
def edge(running: StandIns) -> Iterator[StandIns]:
    running.reset()
    yield running
    running.reset()
