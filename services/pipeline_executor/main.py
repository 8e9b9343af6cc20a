"""Composition root of the executor: settings → adapters → use cases → servicers → two gRPC ports."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from datetime import UTC, datetime

from convergence.credential.v1 import credential_pb2_grpc
from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as pb_grpc
from convergence.tenant.v1 import tenant_pb2_grpc

from libs import grpc_client, metrics
from libs.audit import AuditLog
from libs.bigquery import Warehouse, connect
from libs.denials import Denials
from libs.grpc_server import Server, build_server, run
from libs.pages import Pages
from services.pipeline_executor.clients import (
    Keys,
    ReplicaOwners,
    StoredCredentials,
    TenantDatasets,
    TenantQuotas,
    owner_text,
)
from services.pipeline_executor.compliance import Compliance
from services.pipeline_executor.compliance_store import BigQueryComplianceStore
from services.pipeline_executor.cost_store import BigQueryCostStore
from services.pipeline_executor.costs import Costs
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.execution import Engine as AnyEngine
from services.pipeline_executor.execution import Tools
from services.pipeline_executor.executions import Executions
from services.pipeline_executor.leases import Leases
from services.pipeline_executor.publisher import TenantLocks
from services.pipeline_executor.reaper import Reaper
from services.pipeline_executor.run_context import SourceEndpoints
from services.pipeline_executor.runs import Runs
from services.pipeline_executor.servicer import PipelineDispatchServicer, PipelineServicer, RunOwnerServicer
from services.pipeline_executor.settings import Settings
from services.pipeline_executor.staging import StagingFolder, process_name
from services.pipeline_executor.store import BigQueryRunStore
from services.pipeline_executor.templates import Templates
from services.pipeline_executor.watch import Watch

_TENANT = "convergence.tenant.v1."
_CREDENTIAL = "convergence.credential.v1."


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    *,
    warehouse: Warehouse | None = None,
    engine: AnyEngine | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Server:
    """Returns the executor's server, not started; it does no I/O before it is."""
    to = functools.partial(grpc_client.channel, token=settings.peers().own_token, tls=settings.tls())
    tenant = to(
        settings.tenant_address,
        peer="tenant",
        idempotent=[_TENANT + name for name in ("TenantQuotaService", "TenantLifecycleService", "TenantAuthService")],
    )
    credential = to(
        settings.credential_address, peer="credential", idempotent=[_CREDENTIAL + "CredentialAccessService"]
    )
    # Long loads and publications have threads of their own: they must not hold up what keeps a run's state right.
    control = warehouse or connect(settings)
    data = warehouse or connect(settings, max_workers=4 * settings.max_runs)
    store = BigQueryRunStore(control, data)
    audit = AuditLog(control)
    denials = Denials(audit.append, service=settings.service, now=now)
    name = process_name()
    folder = StagingFolder(settings.staging_dir, name)

    def owner() -> str:
        return owner_text(name, settings.advertised_address or _own_address(server.internal_address))

    quotas = TenantQuotas(tenant_pb2_grpc.TenantQuotaServiceStub(tenant))
    leases = Leases(quotas, owner, now=now)
    executions = Executions(
        Tools(
            owner=owner,
            now=now,
            store=store,
            publications=store,
            quotas=quotas,
            tenants=TenantDatasets(tenant_pb2_grpc.TenantLifecycleServiceStub(tenant)),
            credentials=StoredCredentials(credential_pb2_grpc.CredentialAccessServiceStub(credential)),
            engine=engine or Engine(),
            leases=leases,
            locks=TenantLocks(),
            audit=audit,
            warehouse=data,
            staging_dir=folder.path,
            source_endpoints=SourceEndpoints(settings.bigquery_endpoint, settings.bigquery_storage_endpoint),
        ),
        max_runs=settings.max_runs,
    )
    owners = ReplicaOwners(functools.partial(to, peer="pipeline_executor"))
    watch = Watch(store, owners, executions.progress, owner)
    templates = Templates.load()
    for pipeline in templates.list():
        metrics.ROWS_QUARANTINED.labels(pipeline.provider, pipeline.domain)  # at zero: the first row raises the alarm
    runs = Runs(
        templates=templates,
        executions=executions,
        store=store,
        watch=watch,
        owners=owners,
        audit=audit,
        now=now,
    )
    costs = Costs(BigQueryCostStore(control), now=now)
    compliance = Compliance(BigQueryComplianceStore(control), now=now)
    pages = Pages(settings.page_secret(), default_size=100)
    server = build_server(
        settings,
        public=[
            (
                pb_grpc.add_PipelineServiceServicer_to_server,
                PipelineServicer(runs, watch, templates, costs, compliance, pages),
            ),
        ],
        internal=[
            (pb_grpc.add_PipelineDispatchServiceServicer_to_server, PipelineDispatchServicer(runs, templates)),
            (pb_grpc.add_RunOwnerServiceServicer_to_server, RunOwnerServicer(watch, executions)),
        ],
        authenticate=Keys(tenant_pb2_grpc.TenantAuthServiceStub(tenant)).authenticate,
        on_denied=denials.of_call,
    )

    async def close_stores() -> None:
        for one in {control, data} - {warehouse}:
            one.close()

    server.on_start(functools.partial(asyncio.to_thread, folder.claim))
    server.background("denials", denials.run)
    server.background("leases", leases.run)
    server.background("reaper", Reaper(quotas, store, now=now).run)
    server.on_drain(executions.drain)
    server.on_stop(functools.partial(asyncio.to_thread, folder.release))
    server.on_stop(close_stores)
    server.on_stop(tenant.close)
    server.on_stop(credential.close)
    server.on_stop(audit.close)
    server.on_stop(denials.flush)
    server.on_stop(executions.close)
    return server


def _own_address(listening: str) -> str:
    """How others reach what listens on ``listening``: a wildcard stands for this host's own address."""
    host, _, port = listening.rpartition(":")
    if host in ("0.0.0.0", "[::]"):
        host = socket.gethostbyname(socket.gethostname())
    return f"{host}:{port}"


def main() -> None:
    """Entry point of ``python -m services.pipeline_executor``."""
    raise SystemExit(run(Settings, build))
