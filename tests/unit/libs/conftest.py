"""Real servers on free loopback ports, with every method of a context's contract behind the real interceptor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from libs.grpc_server import Server
from tests.support import gateway
from tests.support.gateway import StandIns


@dataclass
class Served:
    """A started server, what reached it, and the tokens its peers would send."""

    server: Server
    stand_ins: StandIns
    directory: Path

    def token(self, peer: str) -> str:
        return (self.directory / f"{peer}.token").read_text()

    def raw(self, *, internal: bool = False) -> grpc.aio.Channel:
        """A channel without any help of ours: what a stranger would use."""
        return grpc.aio.insecure_channel(self.server.internal_address if internal else self.server.public_address)


async def _serve(context: str, directory: Path) -> AsyncIterator[Served]:
    gateway.write_peer_tokens(directory, ["gateway", "cron", *gateway.CONTEXTS])
    stand_ins = StandIns(directory=directory)
    async with gateway.build(context, directory, stand_ins) as server:
        yield Served(server, stand_ins, directory)


@pytest.fixture
async def tenant(tmp_path: Path) -> AsyncIterator[Served]:
    """The tenant's contract: public and internal services."""
    async for served in _serve("tenant", tmp_path):
        yield served


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[Served]:
    """The executor's contract, which streams."""
    async for served in _serve("pipeline_executor", tmp_path):
        yield served


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[Served]:
    """The scheduler's contract, whose jobs cron may call."""
    async for served in _serve("scheduler", tmp_path):
        yield served
