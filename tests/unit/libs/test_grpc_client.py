"""Channels, coroutine and synchronous: what a call takes along, what is tried again, errors as domain errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc_testing
import pytest
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as executor_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as executor_grpc
from convergence.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc

from libs import caller, errors, grpc_client, grpc_errors
from libs.tenancy import Caller, Role
from tests.unit.libs.conftest import Served

ACME = [("x-api-key", "acme-key")]
WHO = Caller(Role.ADMIN, "acme")
REQUEST = tenant_pb2.GetTenantRequest(tenant_id="acme")
SERVICE = "convergence.tenant.v1.TenantService"


def fails_first(times: int, error: Callable[[], Exception]) -> Callable[[Any], tenant_pb2.Tenant]:
    left = iter(range(times))

    def answer(_request: Any) -> tenant_pb2.Tenant:
        if next(left, None) is not None:
            raise error()
        return tenant_pb2.Tenant(tenant_id="acme")

    return answer


async def test_a_call_takes_token_request_id_and_the_time_left_along(scheduler: Served) -> None:
    async with grpc_client.channel(scheduler.server.public_address, token=scheduler.token("cron")) as channel:
        stub = scheduler_pb2_grpc.ScheduleServiceStub(channel)
        await stub.Trigger(scheduler_pb2.TriggerRequest(), metadata=[("x-own", "1")])
        with caller.bind(WHO, request_id="req-12345678", timeout=3):
            await stub.Trigger(scheduler_pb2.TriggerRequest())
            await stub.Trigger(scheduler_pb2.TriggerRequest(), timeout=1)
    first, second, third = scheduler.stand_ins.calls
    assert first.caller.peer == "cron" and ("x-own", "1") in [tuple(pair) for pair in first.metadata]
    assert first.remaining is not None and 14 < first.remaining <= 15.1
    assert ("x-request-id", "req-12345678") in [tuple(pair) for pair in second.metadata]
    assert second.remaining is not None and 2 < second.remaining <= 3
    assert third.remaining is not None and third.remaining <= 1.1


async def test_without_time_left_nothing_is_asked(tenant: Served) -> None:
    async with grpc_client.channel(tenant.server.public_address) as channel:
        with caller.bind(WHO, timeout=0.01), pytest.raises(errors.Unavailable) as caught:
            await tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME)
    assert caught.value.reason == "DEADLINE_EXCEEDED" and tenant.stand_ins.calls == []


async def test_a_detached_task_asks_with_its_own_time(tenant: Served) -> None:
    async with grpc_client.channel(tenant.server.public_address) as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        with caller.bind(WHO, timeout=0.01), caller.detached():
            task = asyncio.ensure_future(stub.GetTenant(REQUEST, metadata=ACME))
        await task


async def test_errors_arrive_as_they_were_raised(tenant: Served) -> None:
    violation = errors.QuotaViolation("tenant:acme", "DAILY_RUNS", 6, "six")
    tenant.stand_ins.answers["TenantService/GetTenant"] = fails_first(
        1, lambda: errors.ResourceExhausted("QUOTA_EXHAUSTED", "None left.", quota_violations=[violation], run_id="r")
    )
    async with grpc_client.channel(tenant.server.public_address) as channel:
        with pytest.raises(errors.ResourceExhausted) as caught:
            await tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME)
    assert (caught.value.reason, caught.value.metadata) == ("QUOTA_EXHAUSTED", {"run_id": "r"})
    assert caught.value.quota_violations == (violation,)
    assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)


@pytest.mark.parametrize(
    ("idempotent", "tried"),
    [([], 1), ([SERVICE], 3), ([SERVICE + "/GetTenant"], 3), ([SERVICE + "/ListTenants"], 1)],
)
async def test_only_idempotent_calls_are_tried_again(tenant: Served, idempotent: list[str], tried: int) -> None:
    tenant.stand_ins.answers["TenantService/GetTenant"] = fails_first(2, lambda: errors.Unavailable("BUSY", "Busy."))
    async with grpc_client.channel(tenant.server.public_address, idempotent=idempotent) as channel:
        try:
            await tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME)
            ended = "ok"
        except errors.Unavailable as exc:
            ended = exc.reason
    assert (len(tenant.stand_ins.calls), ended) == (tried, "ok" if tried == 3 else "BUSY")


async def test_other_errors_are_never_tried_again(tenant: Served) -> None:
    tenant.stand_ins.answers["TenantService/GetTenant"] = fails_first(2, lambda: errors.Aborted("LOST", "Lost a race."))
    async with grpc_client.channel(tenant.server.public_address, idempotent=[SERVICE]) as channel:
        with pytest.raises(errors.Aborted):
            await tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME)
    assert len(tenant.stand_ins.calls) == 1


async def test_a_call_waits_for_a_server_that_is_not_there_yet(tenant: Served) -> None:
    target = tenant.server.public_address
    await tenant.server.stop(0)
    async with grpc_client.channel(target, timeout=1.0) as channel:
        with pytest.raises(errors.Unavailable) as caught:
            await tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME)
        assert caught.value.reason == "DEADLINE_EXCEEDED"
        assert target not in caught.value.message

        call = asyncio.ensure_future(
            tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME, timeout=20)
        )
        late = grpc.aio.server()

        async def get(_request: Any, _context: Any) -> tenant_pb2.Tenant:
            return tenant_pb2.Tenant(tenant_id="late")

        handler = grpc.unary_unary_rpc_method_handler(
            get, tenant_pb2.GetTenantRequest.FromString, tenant_pb2.Tenant.SerializeToString
        )
        late.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"GetTenant": handler})])
        late.add_insecure_port(target)
        await late.start()
        assert (await call).tenant_id == "late"
        await late.stop(0)


async def test_a_stream_gives_its_messages_and_then_its_error(executor: Served) -> None:
    def answer(_request: Any) -> Any:
        yield executor_pb2.RunProgress(percent=10)
        raise errors.NotFound("RUN_NOT_FOUND", "No such run.")

    executor.stand_ins.answers["PipelineService/WatchRun"] = answer
    got = []
    async with grpc_client.channel(executor.server.public_address, timeout=0.001) as channel:
        stub = executor_grpc.PipelineServiceStub(channel)
        with pytest.raises(errors.NotFound) as caught:
            watch = executor_pb2.WatchRunRequest(tenant_id="acme", pipeline_logging_id="r")
            async for progress in stub.WatchRun(watch, metadata=ACME):
                got.append(progress.percent)
    assert (got, caught.value.reason) == ([10], "RUN_NOT_FOUND")
    assert executor.stand_ins.calls[0].remaining is None


async def test_an_unwanted_stream_is_cancelled(executor: Served) -> None:
    ended = threading.Event()

    def answer(_request: Any) -> Any:
        try:
            while True:
                yield executor_pb2.RunProgress(percent=10)
        finally:
            ended.set()

    executor.stand_ins.answers["PipelineService/WatchRun"] = answer
    async with grpc_client.channel(executor.server.public_address) as channel:
        stub = executor_grpc.PipelineServiceStub(channel)
        watch = executor_pb2.WatchRunRequest(tenant_id="acme", pipeline_logging_id="r")
        stream = stub.WatchRun(watch, metadata=ACME)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(ended.wait, 5)


async def test_the_synchronous_channel_does_the_same(scheduler: Served) -> None:
    def work() -> tuple[Any, str]:
        with grpc_client.sync_channel(scheduler.server.public_address, token=scheduler.token("cron")) as channel:
            stub = scheduler_pb2_grpc.ScheduleServiceStub(channel)
            answer = stub.Trigger(scheduler_pb2.TriggerRequest())
            try:
                stub.GetStatus(scheduler_pb2.GetStatusRequest())
            except errors.Internal as exc:
                return answer, exc.reason
        raise AssertionError

    answer, reason = await asyncio.to_thread(work)
    assert answer == scheduler_pb2.TriggerResponse()
    # Cron's token does not open it: nothing the user of the command could change.
    assert reason == "PEER_REFUSED"
    assert scheduler.stand_ins.calls[0].caller.peer == "cron"


def test_a_command_under_grpc_testing() -> None:
    services = scheduler_pb2.DESCRIPTOR.services_by_name.values()
    fake = grpc_testing.channel(services, grpc_testing.strict_real_time())
    channel = grpc_client.wrap(fake, token="t-cron", timeout=7)
    method = scheduler_pb2.DESCRIPTOR.services_by_name["ScheduleService"].methods_by_name["Trigger"]
    with ThreadPoolExecutor() as pool:
        stub = scheduler_pb2_grpc.ScheduleServiceStub(channel)
        good = pool.submit(stub.Trigger, scheduler_pb2.TriggerRequest())
        metadata, _, rpc = fake.take_unary_unary(method)
        assert ("x-peer-token", "t-cron") in [tuple(pair) for pair in metadata]
        rpc.send_initial_metadata(())
        rpc.terminate(scheduler_pb2.TriggerResponse(queued_count=3), (), grpc.StatusCode.OK, "")
        assert good.result(5).queued_count == 3

        bad = pool.submit(stub.Trigger, scheduler_pb2.TriggerRequest())
        _, _, rpc = fake.take_unary_unary(method)
        error = errors.Aborted("LOST", "Lost a race.")
        rpc.terminate(None, grpc_errors.trailers(error), grpc.StatusCode.ABORTED, "")
        with pytest.raises(errors.Aborted):
            bad.result(5)
