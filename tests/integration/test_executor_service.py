"""Two executors on the emulator with real tenant and credential servers: runs end to end over their ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from convergence.credential.v1 import credential_pb2, credential_pb2_grpc
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as pb
from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as rpc
from convergence.tenant.v1 import tenant_pb2
from google.protobuf.struct_pb2 import Struct

from deploy.local import kms
from libs.bigquery import Warehouse, build_client
from libs.grpc_client import channel
from libs.grpc_server import Server
from services.credential import main as credential_main
from services.credential.settings import Settings as CredentialSettings
from services.pipeline_executor.domain import Outcome, StepStatus
from services.pipeline_executor.engine import Engine, RunResult
from services.pipeline_executor.main import build
from services.pipeline_executor.run_context import RunContext, StepEvent
from services.pipeline_executor.settings import Settings
from services.pipeline_executor.templates import Pipeline
from tests.conftest import Emulator
from tests.support.billing import DAY, Customer, row, service_account_key
from tests.support.tenant import Replica, key, make_settings

KMS_KEY = "projects/p1/locations/us/keyRings/convergence/cryptoKeys/credentials"
ENDED = (pb.Run.COMPLETED, pb.Run.FAILED, pb.Run.CANCELLED)


class PatientEngine:
    """The real engine, after everybody has been let through."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def run(self, pipeline: Pipeline, context: RunContext) -> RunResult:
        waiting = StepEvent(step_name="wait", step_type="wait", position=99, status=StepStatus.RUNNING, tries=1)
        context.journal.step(waiting)
        if context.parameters.get("nothing"):
            return RunResult(Outcome.NO_DATA, 0, None, ())
        await self.go.wait()
        return await Engine().run(pipeline, context)


@dataclass
class Platform:
    """What runs, and how it is called."""

    tenant: Replica
    credential: Server
    customer: Customer
    settings: Settings
    executors: list[Server] = field(default_factory=list)
    engines: list[PatientEngine] = field(default_factory=list)
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def public(self, index: int = 0) -> Any:
        self.channels.append(grpc.aio.insecure_channel(self.executors[index].public_address))
        return rpc.PipelineServiceStub(self.channels[-1])

    def dispatch(self, index: int = 0) -> Any:
        assert self.settings.peers_dir is not None
        token = (self.settings.peers_dir / "scheduler.token").read_text().strip()
        self.channels.append(channel(self.executors[index].internal_address, token=token, timeout=60))
        return rpc.PipelineDispatchServiceStub(self.channels[-1])

    async def onboard(self, tenant_id: str, *, plan: Any = tenant_pb2.Tenant.SCALE) -> str:
        request = tenant_pb2.OnboardTenantRequest(
            tenant_id=tenant_id, company_name="C", admin_email="a@b.cd", subscription_plan=plan
        )
        return str((await self.tenant.public().OnboardTenant(request, metadata=key())).api_key)

    async def store_credential(self, tenant_id: str, api_key: str, table: str) -> None:
        self.channels.append(grpc.aio.insecure_channel(self.credential.public_address))
        stub = credential_pb2_grpc.CredentialServiceStub(self.channels[-1])
        credentials, source = Struct(), Struct()
        credentials.update(service_account_key(self.customer.project_id))
        source.update({"project_id": self.customer.project_id, "dataset_id": "billing", "table_id": table})
        request = credential_pb2.CreateCredentialRequest(
            tenant_id=tenant_id, provider="gcp", credentials=credentials, source=source
        )
        await stub.CreateCredential(request, metadata=key(api_key))

    async def usage(self, tenant_id: str, api_key: str) -> tuple[int, int]:
        request = tenant_pb2.GetUsageRequest(tenant_id=tenant_id)
        found = await self.tenant.public().GetUsage(request, metadata=key(api_key))
        return found.daily.used, found.concurrent.used

    async def used(self, tenant_id: str, api_key: str, wanted: tuple[int, int]) -> None:
        """Waits until so many runs are charged and so many under way."""
        for _ in range(1000):
            if (found := await self.usage(tenant_id, api_key)) == wanted:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{tenant_id} uses {found}, not {wanted}")

    async def ready(self, tenant_id: str) -> str:
        """A tenant with a credential and a day of billing data."""
        reference = self.customer.export([row(cost=0.25), row(cost=0.5)])
        api_key = await self.onboard(tenant_id)
        await self.store_credential(tenant_id, api_key, reference.table_id)
        return api_key

    async def close(self) -> None:
        for item in self.channels:
            await item.close(None)
        for engine in self.engines:
            engine.go.set()
        for server in self.executors:
            await server.stop(0)


@pytest.fixture
async def platform(
    central: Warehouse, project_id: str, bigquery_emulator: Emulator, tmp_path: Path
) -> AsyncIterator[Platform]:
    customer = build_client(f"{project_id}-customer", endpoint=bigquery_emulator.rest)
    async with (
        kms.running(tmp_path / "keys.json", "127.0.0.1:0", create_key=KMS_KEY) as kms_address,
        Replica(make_settings(tmp_path, project_id, onboarding="open"), central) as tenant,
    ):
        given: dict[str, Any] = {
            "gcp_project_id": project_id,
            "environment": "local",
            "listen": "127.0.0.1:0",
            "internal_listen": "127.0.0.1:0",
            "tenant_address": tenant.server.internal_address,
            "peers_dir": tenant.settings.peers_dir,
            "bigquery_endpoint": bigquery_emulator.rest,
            "bigquery_storage_endpoint": bigquery_emulator.grpc,
        }
        credential_settings = CredentialSettings(**given, kms_endpoint=kms_address, kms_key=KMS_KEY)
        credential = credential_main.build(credential_settings, warehouse=central)
        async with credential:
            settings = Settings(
                **given, credential_address=credential.internal_address, staging_dir=tmp_path / "staging", max_runs=4
            )
            made = Platform(tenant, credential, Customer(customer), settings)
            try:
                for _ in range(2):
                    made.engines.append(PatientEngine())
                    made.executors.append(build(settings, warehouse=central, engine=made.engines[-1]))
                    await made.executors[-1].start()
                yield made
            finally:
                await made.close()
    customer.close()


def asked(tenant_id: str, **changes: Any) -> pb.RunPipelineRequest:
    fields = {"tenant_id": tenant_id, "provider": "gcp", "domain": "cost", "template": "billing"}
    return pb.RunPipelineRequest(**{**fields, "date": DAY.isoformat(), **changes})


async def ended(stub: Any, tenant_id: str, run_id: str, metadata: Any) -> pb.Run:
    async with asyncio.timeout(120):
        while True:
            request = pb.GetRunRequest(tenant_id=tenant_id, pipeline_logging_id=run_id)
            run = await stub.GetRun(request, metadata=metadata)
            if run.status in ENDED:
                return run
            await asyncio.sleep(0.2)


async def test_a_run_end_to_end(platform: Platform, central: Warehouse) -> None:
    api_key = await platform.ready("end_to_end")
    here, there = platform.public(0), platform.public(1)
    metadata = key(api_key, x_user_id="ada", idempotency_key="first")
    started = await here.RunPipeline(asked("end_to_end"), metadata=metadata)
    assert (started.status, started.user_id) == (pb.Run.RUNNING, "ada")
    again = await there.RunPipeline(asked("end_to_end"), metadata=metadata)
    assert (again.pipeline_logging_id, again.attempt) == (started.pipeline_logging_id, 1)
    assert await platform.usage("end_to_end", api_key) == (1, 1)

    watching = there.WatchRun(
        pb.WatchRunRequest(tenant_id="end_to_end", pipeline_logging_id=started.pipeline_logging_id),
        metadata=key(api_key),
    )
    before = central.statements.copy()
    messages = []
    async for message in watching:
        messages.append(message)
        if [step.step for step in message.run.steps] == ["wait"]:
            platform.engines[0].go.set()
    assert messages[0].run.status == pb.Run.RUNNING
    assert any(step.step == "extract" for message in messages for step in message.run.steps)
    assert messages[-1].run.status == pb.Run.COMPLETED
    assert messages[-1].percent == 100
    assert [message.run.status in ENDED for message in messages].count(True) == 1

    run = await ended(here, "end_to_end", started.pipeline_logging_id, metadata)
    assert (run.outcome, run.rows_published) == (pb.Run.PUBLISHED, 2)
    await platform.used("end_to_end", api_key, (1, 0))
    spent = {name.rpartition("/")[2]: n for name, n in (central.statements - before).items() if "executor" in name}
    assert (spent["publish.sql"], spent["append_dq_results.sql"], spent["append_step_logs.sql"]) == (1, 1, 1)
    assert "end_runs.sql" not in spent

    steps = pb.ListStepsRequest(tenant_id="end_to_end", pipeline_logging_id=run.pipeline_logging_id)
    logged = [step.step for step in (await there.ListSteps(steps, metadata=metadata)).steps]
    assert logged[:2] == ["extract", "load"]
    results = pb.ListDqResultsRequest(tenant_id="end_to_end", pipeline_logging_id=run.pipeline_logging_id)
    found = (await there.ListDqResults(results, metadata=metadata)).dq_results
    assert {result.status for result in found} == {pb.DqResult.PASS}
    assert {result.check_name for result in found} >= {"cost_equals_source", "row_count_equals_source"}

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await here.RunPipeline(asked("end_to_end", date="2025-11-01"), metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_missing_is_said_before_anything_is_charged(platform: Platform) -> None:
    api_key = await platform.onboard("no_credential")
    stub = platform.public()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.RunPipeline(asked("no_credential"), metadata=key(api_key))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "/credentials" in (refused.value.details() or "")
    for tenant_id, metadata in (("nobody_here", key()), ("nobody_here", key(api_key))):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RunPipeline(asked(tenant_id), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert refused.value.details() == "Tenant not found."
    assert await platform.usage("no_credential", api_key) == (0, 0)


async def test_another_replica_cancels_and_the_slot_is_free(platform: Platform) -> None:
    api_key = await platform.ready("cancels")
    here, there = platform.public(0), platform.public(1)
    run_id = (await here.RunPipeline(asked("cancels"), metadata=key(api_key))).pipeline_logging_id
    told = await there.CancelRun(
        pb.CancelRunRequest(tenant_id="cancels", pipeline_logging_id=run_id), metadata=key(api_key)
    )
    assert told.status == pb.Run.CANCELLING
    assert (await ended(there, "cancels", run_id, key(api_key))).status == pb.Run.CANCELLED
    await platform.used("cancels", api_key, (1, 0))


async def test_a_replica_that_shuts_down_marks_what_it_cannot_finish(platform: Platform) -> None:
    api_key = await platform.ready("drains")
    request = pb.StartRunRequest(
        tenant_id="drains",
        run_id="2f1f2a3e-6c5d-4a9e-9a53-0d4b7d2c9f11",
        attempt=1,
        provider="gcp",
        domain="cost",
        template="billing",
        start_date=DAY.isoformat(),
        end_date=DAY.isoformat(),
        trigger=pb.Run.SCHEDULED,
        config_id="c1",
    )
    assert (await platform.dispatch(0).StartRun(request)).status == pb.Run.RUNNING
    await platform.executors[0].stop(0)
    key_of = pb.BatchGetRunsRequest.Key(tenant_id="drains", run_id=request.run_id, attempt=1)
    [run] = (await platform.dispatch(1).BatchGetRuns(pb.BatchGetRunsRequest(keys=[key_of]))).runs
    assert (run.status, run.error.reason, run.error.retryable) == (pb.Run.FAILED, "INTERRUPTED", True)
    await platform.used("drains", api_key, (1, 0))
    platform.engines[1].go.set()
    request.attempt = 2
    assert (await platform.dispatch(1).StartRun(request)).attempt == 2
    run = await ended(platform.public(1), "drains", request.run_id, key(api_key))
    assert (run.status, run.attempt, run.rows_published) == (pb.Run.COMPLETED, 2, 2)
    assert await platform.usage("drains", api_key) in ((2, 0), (2, 1))
