"""The credential process put together: settings → BigQuery, KMS, tenant → use cases → servicers → two ports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from convergence.credential.v1 import credential_pb2_grpc
from convergence.tenant.v1 import tenant_pb2_grpc

from libs import grpc_client
from libs.audit import AuditLog
from libs.bigquery import Warehouse, connect
from libs.denials import Denials
from libs.grpc_server import Server, build_server, run
from libs.pages import Pages
from services.credential.cipher import EnvelopeCipher, kms_client
from services.credential.clients import AuditTrail, Keys, TenantLifecycle
from services.credential.domain import Credentials, Validator
from services.credential.servicer import CredentialAccessServicer, CredentialServicer
from services.credential.settings import Settings
from services.credential.states import Provider
from services.credential.store import BigQueryCredentialStore
from services.credential.upkeep import Upkeep, every
from services.credential.validators import validators as real_validators

_IDEMPOTENT = ("convergence.tenant.v1.TenantAuthService", "convergence.tenant.v1.TenantLifecycleService")


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    *,
    warehouse: Warehouse | None = None,
    validators: Mapping[Provider, Validator] | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Server:
    """Returns the credential server, not started; called inside the running loop."""
    given, warehouse = warehouse, warehouse or connect(settings)
    token, tls = settings.peers().own_token, settings.tls()
    tenant = grpc_client.channel(settings.tenant_address, peer="tenant", token=token, tls=tls, idempotent=_IDEMPOTENT)
    tenants = TenantLifecycle(tenant_pb2_grpc.TenantLifecycleServiceStub(tenant))
    kms = kms_client(settings.kms_endpoint)
    cipher = EnvelopeCipher(kms, settings.kms_key)
    store = BigQueryCredentialStore(warehouse, now=now)
    audit_log = AuditLog(warehouse)
    trail = AuditTrail(audit_log, now=now)
    denials = Denials(audit_log.append, service=settings.service, now=now)
    credentials = Credentials(
        store=store,
        cipher=cipher,
        tenants=tenants,
        trail=trail,
        validators=validators or real_validators(bigquery_endpoint=settings.bigquery_endpoint),
        now=now,
    )
    upkeep = Upkeep(credentials=credentials, store=store, cipher=cipher, leaving=tenants, trail=trail, now=now)

    public = CredentialServicer(
        credentials, Pages(settings.page_secret(), default_size=100), stand_ins=settings.is_local, now=now
    )
    access = CredentialAccessServicer(credentials)
    server = build_server(
        settings,
        public=[(credential_pb2_grpc.add_CredentialServiceServicer_to_server, public)],
        internal=[(credential_pb2_grpc.add_CredentialAccessServiceServicer_to_server, access)],
        authenticate=Keys(tenant_pb2_grpc.TenantAuthServiceStub(tenant)).authenticate,
        on_denied=denials.of_call,
    )

    async def close() -> None:
        await asyncio.gather(credentials.close(), denials.flush())
        await asyncio.gather(store.close(), audit_log.close())
        await tenant.close()
        await kms.transport.close()  # type: ignore[no-untyped-call]
        if given is None:
            warehouse.close()

    server.on_stop(close)
    server.background("denials", denials.run)
    server.background(
        "offboarding", partial(every, settings.offboarding_poll_seconds, upkeep.offboard, peer="credential")
    )
    server.background("upkeep", partial(every, settings.upkeep_seconds, upkeep.tidy, peer="credential"))
    return server


def main() -> None:
    """Entry point of ``python -m services.credential``."""
    raise SystemExit(run(Settings, build))
