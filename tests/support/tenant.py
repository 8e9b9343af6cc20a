"""The tenant service for tests: settings, the real server on free ports, clients with a key or a peer token."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from convergence.tenant.v1 import tenant_pb2_grpc as pb_grpc

from libs.bigquery import Warehouse
from libs.grpc_client import channel
from libs.grpc_server import Server
from libs.settings import write_peer_tokens
from services.tenant.main import build, utc_now
from services.tenant.settings import Settings
from tests.support.ports import free_port

ADMIN_KEY = "admin-key-of-the-tests-0123456789"
PEERS = ("gateway", "tenant", "credential", "pipeline_executor", "scheduler", "cron")


def make_settings(directory: Path, project_id: str = "test-project", **changes: Any) -> Settings:
    """Settings of one tenant replica on free ports; replicas of one directory share their peers' tokens."""
    peers = directory / "peers"
    write_peer_tokens(peers, PEERS)
    given: dict[str, Any] = {
        "gcp_project_id": project_id,
        "admin_api_key": ADMIN_KEY,
        "environment": "local",
        "listen": "127.0.0.1:0",
        "internal_listen": "127.0.0.1:0",
        "authz_listen": f"127.0.0.1:{free_port()}",
        "peers_dir": peers,
        "log_level": "WARNING",
    }
    return Settings(**(given | changes))


class Replica:
    """One running tenant server and the means to call it."""

    def __init__(self, settings: Settings, warehouse: Warehouse, now: Callable[[], datetime] = utc_now) -> None:
        self.settings = settings
        self.server: Server = build(settings, warehouse=warehouse, now=now)
        self._channels: list[grpc.aio.Channel] = []

    @property
    def authz(self) -> str:
        """Base URL of the gateway's question."""
        return f"http://{self.settings.authz_listen}/authenticate"

    async def __aenter__(self) -> Replica:
        await self.server.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for item in self._channels:
            await item.close(None)
        await self.server.stop(0)

    def public(self) -> pb_grpc.TenantServiceAsyncStub:
        """The public service; calls need ``metadata=key(…)``."""
        made = grpc.aio.insecure_channel(self.server.public_address)
        self._channels.append(made)
        return pb_grpc.TenantServiceStub(made)

    def internal[S](self, stub: Callable[[grpc.aio.Channel], S], peer: str = "pipeline_executor") -> S:
        """One of the internal services, as that peer; raises ``libs.errors``."""
        token = (self.settings.peers_dir / f"{peer}.token").read_text().strip()
        made = channel(self.server.internal_address, token=token, timeout=60)
        self._channels.append(made)
        return stub(made)


def key(text: str = ADMIN_KEY, **more: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call with an API key."""
    return (("x-api-key", text), *((name.replace("_", "-"), value) for name, value in more.items()))
