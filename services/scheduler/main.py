"""Composition root of the scheduler: settings → adapters → use cases → servicer → server."""

from __future__ import annotations

from convergence.scheduler.v1 import scheduler_pb2_grpc
from convergence.tenant.v1 import tenant_pb2_grpc

from libs import grpc_client
from libs.grpc_server import Server, build_server, run
from services.scheduler.clients import Keys
from services.scheduler.servicer import ScheduleServicer
from services.scheduler.settings import Settings


def build(settings: Settings) -> Server:
    """Returns the scheduler's server, not started; tests pass fakes for what they replace."""
    token = settings.peers().own_token
    tenant = grpc_client.channel(
        settings.tenant_address, token=token, idempotent=["convergence.tenant.v1.TenantAuthService"]
    )
    keys = Keys(tenant_pb2_grpc.TenantAuthServiceStub(tenant))
    server = build_server(
        settings,
        public=[(scheduler_pb2_grpc.add_ScheduleServiceServicer_to_server, ScheduleServicer())],
        authenticate=keys.authenticate,
    )
    server.on_stop(tenant.close)
    return server


def main() -> None:
    """Entry point of ``python -m services.scheduler``."""
    raise SystemExit(run(Settings, build))
