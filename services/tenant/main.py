"""The tenant process put together: settings → BigQuery → use cases → servicers → three ports."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from convergence.credential.v1 import credential_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2_grpc as pb_grpc

from libs import caller, logs
from libs.audit import AuditLog
from libs.bigquery import Warehouse, connect
from libs.denials import Denials
from libs.errors import Error
from libs.finishing import Finishing
from libs.grpc_server import Server, build_server, run
from libs.ledger import Ledger
from libs.pages import Pages
from libs.tenancy import Caller
from services.tenant.authz import Authz, Endpoint
from services.tenant.domain import Profile, ProfileRequest, Tenants, decide_profile
from services.tenant.keys import ApiKeys, KeyRefused, KeyRing
from services.tenant.onboarding import Onboarding
from services.tenant.quotas import QuotaAnswer, QuotaRequest, QuotaRow, Quotas, decide
from services.tenant.servicer import TenantAuthServicer, TenantLifecycleServicer, TenantQuotaServicer, TenantServicer
from services.tenant.settings import Settings
from services.tenant.store import (
    AuditTrail,
    BigQueryDatasets,
    BigQueryKeyStore,
    BigQueryQuotaStore,
    BigQueryTenantStore,
    profile_table,
    quota_table,
)

_HOUSEKEEPING_SECONDS = 60.0
_LAST_USED_SECONDS = 300.0
_KEY_READERS = 2
# Replicas that flush one table without a rest mostly run into each other; a flush takes two to three seconds there.
_PACE = timedelta(seconds=1)
# Listed by reflection on this port: the whole public contract, because this is where tools are pointed at.
_PUBLIC = (
    credential_pb2.DESCRIPTOR.services_by_name["CredentialService"].full_name,
    pipeline_executor_pb2.DESCRIPTOR.services_by_name["PipelineService"].full_name,
    scheduler_pb2.DESCRIPTOR.services_by_name["ScheduleService"].full_name,
)

_log = logs.get(__name__)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def build(settings: Settings, *, warehouse: Warehouse | None = None, now: Callable[[], datetime] = utc_now) -> Server:
    """Returns the tenant server; it does no I/O before it is started."""
    # Who may call at all must not wait behind what callers have asked for: keys are read on threads of their own.
    keys_only = warehouse or connect(settings, max_workers=_KEY_READERS)
    given, warehouse = warehouse, warehouse or connect(settings)
    quota_rows, profile_rows = quota_table(warehouse), profile_table(warehouse)
    quota_ledger: Ledger[QuotaRow, QuotaRequest, QuotaAnswer] = Ledger(
        quota_rows, decide, now=now, pause=timedelta(0) if settings.is_local else _PACE
    )
    profile_ledger: Ledger[Profile, ProfileRequest, Profile] = Ledger(profile_rows, decide_profile, now=now)
    store, key_store = BigQueryTenantStore(warehouse, profile_rows, now), BigQueryKeyStore(warehouse)
    datasets = BigQueryDatasets(warehouse)
    audit_log = AuditLog(warehouse)
    audit = AuditTrail(audit_log, now)
    denials = Denials(audit_log.append, service=settings.service, now=now)

    environment = settings.key_environment
    admin_key = settings.admin_api_key.get_secret_value()
    ring = KeyRing(BigQueryKeyStore(keys_only), environment=environment, admin_key=admin_key, now=now)
    keys = ApiKeys(key_store, ring, audit, environment=environment, now=now)
    quotas = Quotas(quota_ledger, BigQueryQuotaStore(warehouse, quota_rows), now=now)
    tenants = Tenants(profile_ledger, quota_ledger, store, datasets, audit, revoke_keys=keys.revoke_all, now=now)
    onboarding = Onboarding(store, datasets, profile_ledger, quota_ledger, keys, audit, now=now)

    async def authenticate(text: str) -> Caller:
        try:
            return await ring.authenticate(text)
        except KeyRefused as refusal:
            denials.note(
                tenant_id=refusal.tenant_id,
                key_id=refusal.key_id,
                reason=refusal.cause,
                source_ip=caller.current().source_ip,
            )
            raise

    authz = Endpoint(
        Authz(ring.authenticate, ring.good_for, denials, onboarding_open=settings.onboarding_open),
        settings.authz_listen,
        settings.tls(),
    )

    pages = Pages(settings.page_secret(), default_size=100)
    finishing = Finishing(caller.detached)
    public = TenantServicer(tenants, onboarding, keys, quotas, pages, finishing, now=now)
    server = build_server(
        settings,
        public=[(pb_grpc.add_TenantServiceServicer_to_server, public)],
        internal=[
            (pb_grpc.add_TenantQuotaServiceServicer_to_server, TenantQuotaServicer(quotas)),
            (pb_grpc.add_TenantLifecycleServiceServicer_to_server, TenantLifecycleServicer(tenants, finishing)),
            (pb_grpc.add_TenantAuthServiceServicer_to_server, TenantAuthServicer(authenticate)),
        ],
        authenticate=authenticate,
        reflect=_PUBLIC,
        on_denied=denials.of_call,
    )

    async def first_keys() -> None:
        # Without the store nothing is opened (503), but the process may start before it.
        with contextlib.suppress(Error):
            await ring.refresh()

    async def housekeeping() -> None:
        while True:
            await _nudged(tenants.nudge, _HOUSEKEEPING_SECONDS)
            try:
                await tenants.advance_offboardings()
                await tenants.repair()
            except Error as error:
                _log.warning("housekeeping_failed", reason=error.reason)

    async def last_used() -> None:
        while True:
            await asyncio.sleep(_LAST_USED_SECONDS)
            await keys.flush_used()

    async def close() -> None:
        await finishing.close()
        await asyncio.gather(keys.flush_used(), denials.flush())
        await asyncio.gather(quota_ledger.close(), profile_ledger.close(), audit_log.close())
        if given is None:
            keys_only.close()
            warehouse.close()

    server.on_start(first_keys)
    server.on_start(authz.open)
    server.on_stop(close)
    server.on_stop(authz.close)
    server.background("keys", ring.run)
    server.background("authz", authz.watch)
    server.background("housekeeping", housekeeping)
    server.background("last_used", last_used)
    server.background("denials", denials.run)
    return server


async def _nudged(event: asyncio.Event, seconds: float) -> None:
    """Waits for a nudge, or for about ``seconds``: replicas shall not all do it at once."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
            await event.wait()
    event.clear()


def main() -> None:
    """Runs the process until a signal."""
    raise SystemExit(run(Settings, build))
