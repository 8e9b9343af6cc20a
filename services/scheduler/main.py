"""Composition root of the scheduler: settings → adapters → use cases → servicer → server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as executor_rpc
from convergence.scheduler.v1 import scheduler_pb2_grpc as rpc
from convergence.tenant.v1 import tenant_pb2_grpc as tenant_rpc

from libs import caller, grpc_client
from libs.audit import AuditLog
from libs.bigquery import Warehouse, connect
from libs.denials import Denials
from libs.finishing import Finishing
from libs.grpc_server import Server, build_server, run
from libs.pages import Pages
from services.scheduler.backfills import Backfills
from services.scheduler.clients import RETRIED, ExecutorClient, Keys, TenantsClient
from services.scheduler.domain import Executor, Policy, Tenants
from services.scheduler.housekeeping import Housekeeping
from services.scheduler.loop import Loop
from services.scheduler.reports import Gauges, Journal, Reports
from services.scheduler.runs import Runs
from services.scheduler.schedules import Calendar
from services.scheduler.servicer import ScheduleServicer, UseCases
from services.scheduler.settings import Settings
from services.scheduler.store import BigQueryQueue, BigQueryRecords, BigQuerySchedules
from services.scheduler.trail import Trail
from services.scheduler.trigger import Triggers


def utc_now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    *,
    warehouse: Warehouse | None = None,
    executor: Executor | None = None,
    tenants: Tenants | None = None,
    now: Callable[[], datetime] = utc_now,
    policy: Policy | None = None,
) -> Server:
    """Returns the scheduler's server, not started; tests pass fakes for what they replace."""
    policy = policy or Policy()
    to = partial(grpc_client.channel, token=settings.peers().own_token, tls=settings.tls(), idempotent=RETRIED)
    tenant_channel = to(settings.tenant_address, peer="tenant")
    executor_channel = to(settings.pipeline_executor_address, peer="pipeline_executor")
    keys = Keys(tenant_rpc.TenantAuthServiceStub(tenant_channel))
    tenants = tenants or TenantsClient(
        tenant_rpc.TenantQuotaServiceStub(tenant_channel), tenant_rpc.TenantLifecycleServiceStub(tenant_channel)
    )
    executor = executor or ExecutorClient(executor_rpc.PipelineDispatchServiceStub(executor_channel))

    store = warehouse or connect(settings)
    schedules, queue, records = BigQuerySchedules(store), BigQueryQueue(store), BigQueryRecords(store)
    audit = AuditLog(store)
    trail = Trail(audit, now)
    denials = Denials(audit.append, service=settings.service, now=now)
    triggers = Triggers(schedules, now=now, policy=policy)
    calendar = Calendar(schedules, queue, records, executor, tenants, triggers, trail, now=now, policy=policy)
    housekeeping = Housekeeping(schedules, queue, records, executor, tenants, now=now, policy=policy)
    loop = Loop(
        queue,
        executor,
        tenants,
        now=now,
        policy=policy,
        batch=settings.claim_batch,
        parallel=settings.start_parallelism,
    )
    reports = Reports(records, now=now, policy=policy)
    use = UseCases(
        triggers=triggers,
        loop=loop,
        housekeeping=housekeeping,
        journal=Journal(records, now=now),
        reports=reports,
        calendar=calendar,
        runs=Runs(queue, records, executor, trail, now=now, policy=policy),
        backfills=Backfills(queue, records, tenants, trail, now=now, policy=policy),
        tenants=tenants,
    )
    finishing = Finishing(caller.detached)
    servicer = ScheduleServicer(use, Pages(settings.page_secret(), default_size=100), finishing)

    server = build_server(
        settings,
        public=[(rpc.add_ScheduleServiceServicer_to_server, servicer)],
        authenticate=keys.authenticate,
        on_denied=denials.of_call,
    )
    server.background("denials", denials.run)
    if settings.metrics_listen is not None:
        server.background("gauges", Gauges(reports).run)
    server.background("offboarding", housekeeping.offboard_forever)
    server.on_drain(loop.drain)
    if warehouse is None:
        server.on_stop(_closing(store))
    server.on_stop(tenant_channel.close)
    server.on_stop(executor_channel.close)
    server.on_stop(audit.close)
    server.on_stop(denials.flush)
    server.on_stop(calendar.close)
    server.on_stop(finishing.close)
    return server


def _closing(warehouse: Warehouse) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        warehouse.close()

    return close


def main() -> None:
    """Entry point of ``python -m services.scheduler``."""
    raise SystemExit(run(Settings, build))
