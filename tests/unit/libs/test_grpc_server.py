"""The server on real ports: who gets in, how every error ends, streams, limits, health, reflection and drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
import structlog
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as executor_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as executor_grpc
from convergence.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.envoy.descriptors import PUBLIC_SERVICES
from libs import errors, grpc_errors, grpc_server, logs
from libs.grpc_server import build_server
from libs.settings import ServiceSettings
from libs.tenancy import Caller, Role
from tests.support import gateway
from tests.unit.libs.conftest import Served

ROOT = Path(__file__).parents[3]
ACME = [("x-api-key", "acme-key")]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Settings(ServiceSettings):
    service: ClassVar[str] = "tenant"


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {"listen": "127.0.0.1:0", "internal_listen": "127.0.0.1:0", "drain_seconds": 5}
    return Settings(gcp_project_id="my-project", environment="local", **(values | changes))


type Outcome = tuple[grpc.StatusCode, str]


async def ended(call: Any) -> Outcome:
    """The code of a call and the reason of its status, if it has one."""
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        return exc.code(), reason_of(exc)
    return grpc.StatusCode.OK, ""


def reason_of(exc: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    for key, value in exc.trailing_metadata() or ():
        if key == grpc_errors.STATUS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return info.reason
    return ""


async def get_tenant(
    served: Served, *metadata: tuple[str, str], tenant_id: str = "acme"
) -> tuple[grpc.StatusCode, str]:
    async with served.raw() as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        request = tenant_pb2.GetTenantRequest(tenant_id=tenant_id)
        return await ended(stub.GetTenant(request, metadata=metadata, timeout=5))


# --- who gets in ---


async def test_a_key_opens_its_own_tenant(tenant: Served) -> None:
    assert await get_tenant(tenant, *ACME, ("x-user-id", "mary"), ("idempotency-key", "i-1")) == (
        grpc.StatusCode.OK,
        "",
    )
    (call,) = tenant.stand_ins.calls
    assert call.caller == Caller(Role.ADMIN, "acme", "key_acme", user_id="mary", source_ip="127.0.0.1")
    assert call.idempotency_key == "i-1"
    assert call.remaining is not None and 4 < call.remaining <= 5.1


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("x-api-key", "")],
        [("x-api-key", "nobody")],
        [("x-api-key", "acme-key,other-key")],
        [("x-api-key", "acme-key"), ("x-api-key", "acme-key")],
        [("x-tenant-id", "acme"), ("x-role", "ADMIN"), ("x-key-id", "k")],
        [("x-peer-token", "nobody"), ("x-api-key", "acme-key")],
        [("x-peer-token", "")],
        [("authorization", "Bearer acme-key")],
    ],
)
async def test_nobody_else_gets_in(tenant: Served, metadata: list[tuple[str, str]]) -> None:
    code, _ = await get_tenant(tenant, *metadata)
    assert code is grpc.StatusCode.UNAUTHENTICATED and tenant.stand_ins.calls == []


async def test_identity_metadata_means_nothing_beside_a_key(tenant: Served) -> None:
    spoofed = [
        ("x-tenant-id", "other_co"),
        ("x-role", "PLATFORM_ADMIN"),
        ("x-key-id", "k"),
        ("x-envoy-external-address", "1.2.3.4"),
    ]
    assert await get_tenant(tenant, *ACME, *spoofed, tenant_id="other_co") == (
        grpc.StatusCode.NOT_FOUND,
        "TENANT_NOT_FOUND",
    )
    assert await get_tenant(tenant, *ACME, *spoofed) == (grpc.StatusCode.OK, "")
    assert tenant.stand_ins.calls[-1].caller == Caller(Role.ADMIN, "acme", "key_acme", source_ip="127.0.0.1")


async def test_the_gateway_is_believed(tenant: Served) -> None:
    vouched = [
        ("x-peer-token", tenant.token("gateway")),
        ("x-tenant-id", "acme"),
        ("x-role", "RUNNER"),
        ("x-key-id", "k7"),
    ]
    extra = [("x-user-id", "mary"), ("x-envoy-external-address", "203.0.113.9"), ("x-request-id", "req-12345678")]
    assert await get_tenant(tenant, *vouched, *extra) == (grpc.StatusCode.OK, "")
    assert tenant.stand_ins.calls[-1].caller == Caller(
        Role.RUNNER, "acme", "k7", user_id="mary", peer="gateway", source_ip="203.0.113.9"
    )
    assert await get_tenant(tenant, *vouched, tenant_id="other_co") == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")
    for bad in ([], [("x-role", "")], [("x-role", "GOD")], [("x-role", "ADMIN"), ("x-role", "ADMIN")]):
        metadata = [vouched[0], ("x-tenant-id", "acme"), *bad]
        assert (await get_tenant(tenant, *metadata))[0] is grpc.StatusCode.UNAUTHENTICATED
    assert (await get_tenant(tenant, *vouched, vouched[0]))[0] is grpc.StatusCode.UNAUTHENTICATED
    # Two tenants are none.
    assert (await get_tenant(tenant, *vouched, ("x-tenant-id", "acme")))[0] is grpc.StatusCode.NOT_FOUND


async def test_the_gateways_route_timeout_is_the_deadline(tenant: Served) -> None:
    vouched = [("x-peer-token", tenant.token("gateway")), ("x-tenant-id", "acme"), ("x-role", "ADMIN")]
    await get_tenant(tenant, *vouched, ("x-envoy-expected-rq-timeout-ms", "1500"))
    left = tenant.stand_ins.calls[-1].remaining
    assert left is not None and 1 < left <= 1.5
    await get_tenant(tenant, *ACME, ("x-envoy-expected-rq-timeout-ms", "1500"))
    left = tenant.stand_ins.calls[-1].remaining
    assert left is not None and left > 4


async def test_another_tenant_answers_exactly_as_none(tenant: Served) -> None:
    async with tenant.raw() as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        answers = []
        for tenant_id in ("other_co", "nobody_at_all", "NOT VALID", ""):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetTenant(tenant_pb2.GetTenantRequest(tenant_id=tenant_id), metadata=ACME)
            trailers = {key: value for key, value in caught.value.trailing_metadata() or () if key != "x-request-id"}
            answers.append((caught.value.code(), caught.value.details(), trailers))
    assert answers[0][0] is grpc.StatusCode.NOT_FOUND
    assert all(answer == answers[0] for answer in answers)


async def test_authorised_before_validated(tenant: Served) -> None:
    async with tenant.raw() as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        bad = tenant_pb2.ListApiKeysRequest(tenant_id="other_co", page_size=-1)
        assert await ended(stub.ListApiKeys(bad, metadata=ACME)) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")
        bad.tenant_id = "acme"
        assert await ended(stub.ListApiKeys(bad, metadata=[("x-api-key", "runner-key")])) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "ROLE_TOO_LOW",
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListApiKeys(bad, metadata=ACME)
    error = grpc_errors.from_rpc_error(caught.value)
    assert type(error) is errors.InvalidArgument and error.reason == "REQUEST_INVALID"
    assert [field.field for field in error.field_violations] == ["page_size"]
    assert tenant.stand_ins.calls == []


@pytest.mark.parametrize("content", [b"\x0a\x02\xff\xfe", b"\x0a\x7fshort", b"\xff"])
async def test_bytes_that_are_no_message_are_the_clients_fault(tenant: Served, content: bytes) -> None:
    async with tenant.raw() as channel:
        call = channel.unary_unary("/convergence.tenant.v1.TenantService/GetTenant")
        assert await ended(call(content, timeout=5)) == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_MISSING")
        assert await ended(call(content, metadata=ACME, timeout=5)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "REQUEST_INVALID",
        )
    assert tenant.stand_ins.calls == []


async def test_no_text_holds_a_nul_however_deep(executor: Served) -> None:
    request = executor_pb2.RunPipelineRequest(tenant_id="acme", provider="gcp")
    request.parameters.update({"source": {"tables": ["a", "b\0"]}})
    async with executor.raw() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await executor_grpc.PipelineServiceStub(channel).RunPipeline(request, metadata=ACME)
    error = grpc_errors.from_rpc_error(caught.value)
    assert type(error) is errors.InvalidArgument
    assert [item.field for item in error.field_violations] == ["parameters"]


async def test_a_bad_field_is_named_by_its_path(executor: Served) -> None:
    async with executor.raw() as channel:
        stub = executor_grpc.PipelineServiceStub(channel)
        request = executor_pb2.QueryCostsRequest(tenant_id="acme", group_by=["service", "x" * 300])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.QueryCosts(request, metadata=ACME)
    paths = [item.field for item in grpc_errors.from_rpc_error(caught.value).field_violations]
    assert "group_by[1]" in paths
    assert str(caught.value.details()).startswith("group_by[1]: ") or "; group_by[1]: " in str(caught.value.details())


@pytest.mark.parametrize("name", ["x-user-id", "idempotency-key"])
async def test_headers_of_the_client_are_checked(tenant: Served, name: str) -> None:
    refused = (grpc.StatusCode.INVALID_ARGUMENT, "HEADER_INVALID")
    assert await get_tenant(tenant, *ACME, (name, "x" * 128)) == (grpc.StatusCode.OK, "")
    assert await get_tenant(tenant, *ACME, (name, "x" * 129)) == refused
    assert await get_tenant(tenant, *ACME, (name, "a"), (name, "b")) == refused


async def test_open_onboarding_needs_no_key_but_a_given_one_must_be_good(tenant: Served) -> None:
    request = tenant_pb2.OnboardTenantRequest(
        tenant_id="new_co", company_name="New", admin_email="a@example.com", subscription_plan="STARTER"
    )
    async with tenant.raw() as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        assert (await ended(stub.OnboardTenant(request)))[0] is grpc.StatusCode.OK
        assert tenant.stand_ins.calls[-1].caller.role is Role.ONBOARDER
        assert (await ended(stub.OnboardTenant(request, metadata=[("x-api-key", "bad")])))[0] is (
            grpc.StatusCode.UNAUTHENTICATED
        )
        assert (await ended(stub.ListTenants(tenant_pb2.ListTenantsRequest())))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_cron_may_call_its_jobs_and_nothing_else(scheduler: Served) -> None:
    cron = [("x-peer-token", scheduler.token("cron"))]
    async with scheduler.raw() as channel:
        stub = scheduler_pb2_grpc.ScheduleServiceStub(channel)
        for call, request in (
            (stub.Trigger, scheduler_pb2.TriggerRequest()),
            (stub.ProcessQueue, scheduler_pb2.ProcessQueueRequest()),
            (stub.ResetDailyQuotas, scheduler_pb2.ResetDailyQuotasRequest()),
        ):
            assert (await ended(call(request, metadata=cron)))[0] is grpc.StatusCode.OK
            assert scheduler.stand_ins.calls[-1].caller == Caller(None, peer="cron", source_ip="127.0.0.1")
            code, _ = await ended(call(request, metadata=ACME))
            assert code is grpc.StatusCode.PERMISSION_DENIED
        code, reason = await ended(stub.GetStatus(scheduler_pb2.GetStatusRequest(), metadata=cron))
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PEER_NOT_ALLOWED")


async def test_the_ports_do_not_serve_each_others_services(tenant: Served) -> None:
    executor = [("x-peer-token", tenant.token("pipeline_executor"))]
    ask = tenant_pb2.ListExpiredGrantsRequest()
    async with tenant.raw() as public, tenant.raw(internal=True) as internal:
        there = tenant_pb2_grpc.TenantQuotaServiceStub(internal)
        assert (await ended(there.ListExpiredGrants(ask, metadata=executor)))[0] is grpc.StatusCode.OK
        here = tenant_pb2_grpc.TenantQuotaServiceStub(public)
        assert (await ended(here.ListExpiredGrants(ask, metadata=executor)))[0] is grpc.StatusCode.UNIMPLEMENTED
        wrong = tenant_pb2_grpc.TenantServiceStub(internal)
        request = tenant_pb2.GetTenantRequest(tenant_id="acme")
        assert (await ended(wrong.GetTenant(request, metadata=ACME)))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_the_internal_port_is_for_listed_peers_only(tenant: Served) -> None:
    ask = tenant_pb2.ListExpiredGrantsRequest()
    gateway_admin = [("x-peer-token", tenant.token("gateway")), ("x-role", "PLATFORM_ADMIN")]
    async with tenant.raw(internal=True) as channel:
        stub = tenant_pb2_grpc.TenantQuotaServiceStub(channel)
        for metadata, code in (
            ([], grpc.StatusCode.UNAUTHENTICATED),
            (ACME, grpc.StatusCode.UNAUTHENTICATED),
            ([("x-api-key", gateway.ADMIN_KEY)], grpc.StatusCode.UNAUTHENTICATED),
            (gateway_admin, grpc.StatusCode.PERMISSION_DENIED),
            ([("x-peer-token", tenant.token("cron"))], grpc.StatusCode.PERMISSION_DENIED),
            ([("x-peer-token", tenant.token("credential"))], grpc.StatusCode.PERMISSION_DENIED),
        ):
            assert (await ended(stub.ListExpiredGrants(ask, metadata=metadata)))[0] is code, metadata
    assert tenant.stand_ins.calls == []


# --- how calls end ---

TABLE: list[tuple[Callable[[], BaseException], grpc.StatusCode, str, str | None]] = [
    (lambda: errors.InvalidArgument("R", "text"), grpc.StatusCode.INVALID_ARGUMENT, "R", "text"),
    (lambda: errors.Unauthenticated("R", "text"), grpc.StatusCode.UNAUTHENTICATED, "R", "text"),
    (lambda: errors.PermissionDenied("R", "text"), grpc.StatusCode.PERMISSION_DENIED, "R", "text"),
    (lambda: errors.NotFound("R", "text"), grpc.StatusCode.NOT_FOUND, "R", "text"),
    (lambda: errors.AlreadyExists("R", "text"), grpc.StatusCode.ALREADY_EXISTS, "R", "text"),
    (lambda: errors.FailedPrecondition("R", "text"), grpc.StatusCode.FAILED_PRECONDITION, "R", "text"),
    (lambda: errors.Aborted("R", "text"), grpc.StatusCode.ABORTED, "R", "text"),
    (lambda: errors.ResourceExhausted("R", "text"), grpc.StatusCode.RESOURCE_EXHAUSTED, "R", "text"),
    (lambda: errors.Unavailable("R", "text"), grpc.StatusCode.UNAVAILABLE, "R", "text"),
    (lambda: errors.Ambiguous("R", "text"), grpc.StatusCode.UNAVAILABLE, "R", "text"),
    (lambda: errors.Unimplemented("R", "text"), grpc.StatusCode.UNIMPLEMENTED, "R", "text"),
    (lambda: errors.Internal("R", "hidden"), grpc.StatusCode.INTERNAL, "R", None),
    (lambda: ValueError("hidden"), grpc.StatusCode.INTERNAL, "INTERNAL", None),
    (lambda: ExceptionGroup("hidden", [ValueError("hidden")]), grpc.StatusCode.INTERNAL, "INTERNAL", None),
    (lambda: StopAsyncIteration("hidden"), grpc.StatusCode.INTERNAL, "INTERNAL", None),
    (lambda: TimeoutError("hidden"), grpc.StatusCode.UNAVAILABLE, "TIMEOUT", None),
    # Raised on, this one would leave the client waiting until its deadline.
    (lambda: asyncio.CancelledError("hidden"), grpc.StatusCode.UNAVAILABLE, "INTERRUPTED", None),
]


def raiser(make: Callable[[], BaseException]) -> Callable[[Any], Any]:
    def answer(_request: Any) -> Any:
        raise make()

    return answer


@pytest.mark.parametrize(("make", "code", "reason", "text"), TABLE)
async def test_the_error_table(
    executor: Served, make: Callable[[], BaseException], code: grpc.StatusCode, reason: str, text: str | None
) -> None:
    executor.stand_ins.answers = {
        "PipelineService/GetRun": raiser(make),
        "PipelineService/WatchRun": raiser(make),
    }
    async with executor.raw() as channel:
        stub = executor_grpc.PipelineServiceStub(channel)
        request = executor_pb2.GetRunRequest(tenant_id="acme", pipeline_logging_id="r")
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.GetRun(request, metadata=ACME, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            watch = executor_pb2.WatchRunRequest(tenant_id="acme", pipeline_logging_id="r")
            async for _ in stub.WatchRun(watch, metadata=ACME, timeout=5):
                pass
    for caught in (unary, stream):
        assert (caught.value.code(), reason_of(caught.value)) == (code, reason)
        assert "hidden" not in str(caught.value.details()) + str(caught.value.trailing_metadata())
        assert text is None or caught.value.details() == text
        assert any(key == "x-request-id" and value for key, value in caught.value.trailing_metadata() or ())


async def test_a_stream_ends_with_its_error_after_what_it_had(executor: Served) -> None:
    def answer(_request: Any) -> Any:
        yield executor_pb2.RunProgress(percent=10)
        yield executor_pb2.RunProgress(percent=20)
        raise errors.Unavailable("OWNER_GONE", "The owner is gone.")

    executor.stand_ins.answers["PipelineService/WatchRun"] = answer
    got = []
    async with executor.raw() as channel:
        stub = executor_grpc.PipelineServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            watch = executor_pb2.WatchRunRequest(tenant_id="acme", pipeline_logging_id="r")
            async for progress in stub.WatchRun(watch, metadata=ACME):
                got.append(progress.percent)
    assert (got, reason_of(caught.value)) == ([10, 20], "OWNER_GONE")


async def test_a_stream_is_guarded_like_any_call(executor: Served) -> None:
    async with executor.raw() as channel:
        stub = executor_grpc.PipelineServiceStub(channel)
        for tenant_id, metadata, code in (
            ("acme", [], grpc.StatusCode.UNAUTHENTICATED),
            ("other_co", ACME, grpc.StatusCode.NOT_FOUND),
        ):
            watch = executor_pb2.WatchRunRequest(tenant_id=tenant_id, pipeline_logging_id="r")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.WatchRun(watch, metadata=metadata):
                    pass
            assert caught.value.code() is code
    assert executor.stand_ins.calls == []


class Slow:
    """A tenant service whose GetTenant waits until it is told, and notes how it ended."""

    def __init__(self) -> None:
        self.entered, self.go, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.how = ""

    async def wait(self) -> None:
        self.entered.set()
        try:
            await self.go.wait()
            self.how = "finished"
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()

    def servicer(self) -> Any:
        async def other(_self: object, _request: Any, _context: Any) -> Any:
            raise errors.Unimplemented("NOT_YET", "Not yet.")

        async def get(_self: object, _request: Any, _context: Any) -> Any:
            await self.wait()
            return tenant_pb2.Tenant(tenant_id="acme")

        methods = {m.name: other for m in tenant_pb2.DESCRIPTOR.services_by_name["TenantService"].methods}
        return type("Slow", (), methods | {"GetTenant": get})()

    def server(self, **changes: Any) -> grpc_server.Server:
        mount = (tenant_pb2_grpc.add_TenantServiceServicer_to_server, self.servicer())
        return build_server(settings(**changes), public=[mount], authenticate=gateway.authenticate)


REQUEST = tenant_pb2.GetTenantRequest(tenant_id="acme")


async def test_a_client_that_leaves_or_runs_out_of_time_cancels_the_handler() -> None:
    for timeout in (None, 0.2):
        slow = Slow()
        async with slow.server() as server, grpc.aio.insecure_channel(server.public_address) as channel:
            call = tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME, timeout=timeout)
            waiting = asyncio.ensure_future(ended(call))
            await slow.entered.wait()
            if timeout is None:
                call.cancel()
            await asyncio.wait_for(slow.ended.wait(), 5)
            assert slow.how == "cancelled"
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def test_more_calls_than_allowed_are_refused_at_once() -> None:
    slow = Slow()
    async with (
        slow.server(max_concurrent_rpcs=1) as server,
        grpc.aio.insecure_channel(server.public_address) as channel,
    ):
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        first = asyncio.ensure_future(ended(stub.GetTenant(REQUEST, metadata=ACME)))
        await slow.entered.wait()
        assert (await ended(stub.GetTenant(REQUEST, metadata=ACME, timeout=5)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        slow.go.set()
        assert (await first)[0] is grpc.StatusCode.OK


# --- health, reflection, drain ---


async def test_health_is_told_per_service_and_asks_no_key(tenant: Served) -> None:
    for internal, service in (
        (False, "convergence.tenant.v1.TenantService"),
        (True, "convergence.tenant.v1.TenantQuotaService"),
    ):
        async with tenant.raw(internal=internal) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", service):
                assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
            assert (await ended(stub.Check(health_pb2.HealthCheckRequest(service="x"))))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_port_for_probes_answers_health_checks_and_nothing_else() -> None:
    slow = Slow()
    async with (
        slow.server(health_listen="127.0.0.1:0") as server,
        grpc.aio.insecure_channel(server.health_address) as channel,
    ):
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == SERVING
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        assert (await ended(stub.GetTenant(REQUEST, metadata=ACME)))[0] is grpc.StatusCode.UNIMPLEMENTED
    async with slow.server() as server:
        assert server.health_address == ""


async def test_reflection_lists_the_public_services_to_any_key(tenant: Served) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with tenant.raw() as public, tenant.raw(internal=True) as internal:
        stub = reflection_pb2_grpc.ServerReflectionStub(public)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(ask()):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        names: set[str] = set()
        async for answer in stub.ServerReflectionInfo(ask(), metadata=[("x-api-key", "runner-key")]):
            names |= {service.name for service in answer.list_services_response.service}
        assert names >= set(PUBLIC_SERVICES)
        assert not any("Quota" in name or "Auth" in name for name in names)
        hidden = reflection_pb2_grpc.ServerReflectionStub(internal)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in hidden.ServerReflectionInfo(ask(), metadata=[("x-peer-token", tenant.token("cron"))]):
                pass
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_drain_tells_the_probes_finishes_calls_and_runs_hooks_in_order() -> None:
    slow, order = Slow(), list[str]()
    server = slow.server()

    def note(text: str) -> Callable[[], Any]:
        async def hook() -> None:
            order.append(text)

        return hook

    async def drain(seconds: float) -> None:
        order.append(f"drain {seconds:.0f}")

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("background ended")

    server.on_start(note("start"))
    server.on_drain(drain)
    server.on_stop(note("stop first registered"))
    server.on_stop(note("stop last registered"))
    server.background("idle", background)
    await server.start()
    async with grpc.aio.insecure_channel(server.public_address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        inside = asyncio.ensure_future(
            ended(tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME))
        )
        await slow.entered.wait()
        stopping = asyncio.create_task(server.stop(5))
        assert (await health.read()).status == NOT_SERVING
        assert not inside.done()
        slow.go.set()
        assert (await inside)[0] is grpc.StatusCode.OK
        late = tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME)
        assert (await ended(late))[0] is grpc.StatusCode.OK, "who has not seen it yet is still answered"
        health.cancel()
        await stopping
    assert slow.how == "finished"
    assert order == ["start", "drain 5", "background ended", "stop last registered", "stop first registered"]
    await server.stop()


async def test_the_end_of_the_grace_cancels_what_still_runs() -> None:
    slow = Slow()
    server = slow.server()
    await server.start()
    async with grpc.aio.insecure_channel(server.public_address) as channel:
        call = asyncio.ensure_future(
            ended(tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME))
        )
        await slow.entered.wait()
        await asyncio.wait_for(server.stop(0.1), 5)
        code, _ = await asyncio.wait_for(call, 5)
    assert slow.how == "cancelled"
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_calls_that_come_as_the_ports_close_are_cancelled_and_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    # What lets the gateway and our channels try CANCELLED again: what was begun is never answered so.
    monkeypatch.setattr(grpc_server, "_LAST_CALLS_SECONDS", 0)
    slow, entered = Slow(), list[None]()
    wait = slow.wait

    async def counted() -> None:
        entered.append(None)
        await wait()

    slow.wait = counted  # type: ignore[method-assign]
    server = slow.server()
    await server.start()
    async with grpc.aio.insecure_channel(server.public_address) as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        calls = [stub.GetTenant(REQUEST, metadata=ACME)]
        await slow.entered.wait()
        calls += [stub.GetTenant(REQUEST, metadata=ACME) for _ in range(20)]
        time.sleep(0.2)  # noqa: ASYNC251  gRPC's threads send and receive, and no handler can start
        asyncio.get_running_loop().call_later(0.2, slow.go.set)
        await server.stop(5)
        codes = [await call.code() for call in calls]
    assert grpc.StatusCode.CANCELLED in codes
    assert len(codes) - codes.count(grpc.StatusCode.CANCELLED) >= len(entered)


async def test_a_hook_that_fails_does_not_keep_the_others_from_running() -> None:
    server, order = Slow().server(), list[str]()

    async def bad() -> None:
        raise ValueError

    async def good() -> None:
        order.append("good")

    server.on_stop(good)
    server.on_stop(bad)
    async with server:
        pass
    assert order == ["good"]


async def test_background_work_that_fails_stops_the_process() -> None:
    server = Slow().server()

    async def work() -> None:
        raise ValueError("lost")

    server.background("loop", work)
    await asyncio.wait_for(server.serve(), 10)
    assert server.failed


async def test_a_taken_port_is_an_error_not_a_share() -> None:
    async with Slow().server() as first:
        with pytest.raises(RuntimeError):
            await Slow().server(listen=first.public_address).start()


def test_a_service_on_the_wrong_port_never_starts() -> None:
    stand_ins = gateway.StandIns()
    mounts = [gateway._mount("tenant", service, stand_ins) for service in gateway.services_of("tenant")]
    with pytest.raises(ValueError, match="rule for the other port"):
        build_server(settings(), public=mounts, authenticate=gateway.authenticate)


def test_a_servicer_that_is_not_a_coroutine_never_starts() -> None:
    class Blocking(tenant_pb2_grpc.TenantServiceServicer):
        pass

    mount = (tenant_pb2_grpc.add_TenantServiceServicer_to_server, Blocking())
    with pytest.raises(ValueError, match=r"TenantService/\w+ must be a coroutine"):
        build_server(settings(), public=[mount], authenticate=gateway.authenticate)


async def test_the_log_line_says_who_and_how_but_not_what(tenant: Served, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", service="tenant")
    request = tenant_pb2.OnboardTenantRequest(
        tenant_id="new_co", company_name="Payload Inc", admin_email="a@example.com", subscription_plan="STARTER"
    )
    try:
        async with tenant.raw() as channel:
            await tenant_pb2_grpc.TenantServiceStub(channel).OnboardTenant(request, metadata=ACME)
            await asyncio.sleep(0)
        out = capsys.readouterr().out
    finally:
        structlog.reset_defaults()
    (line,) = [json.loads(text) for text in out.splitlines() if '"event": "call"' in text]
    assert line["method"] == "/convergence.tenant.v1.TenantService/OnboardTenant"
    assert (line["code"], line["tenant_id"], line["key_id"]) == ("OK", "acme", "key_acme")
    assert line["ms"] >= 0 and line["request_id"] and line["logger"] == "libs.grpc_interceptor"
    assert "Payload" not in out and "acme-key" not in out


# --- the process ---

PROCESS = """
import asyncio, sys
from typing import ClassVar
from libs.grpc_server import run
from libs.settings import ServiceSettings
from tests.unit.libs.test_grpc_server import Slow

class Settings(ServiceSettings):
    '''Settings of a test.'''
    service: ClassVar[str] = "tenant"

def build(settings):
    from libs.grpc_server import build_server
    from convergence.tenant.v1 import tenant_pb2_grpc
    from tests.support import gateway
    slow = Slow()
    mount = (tenant_pb2_grpc.add_TenantServiceServicer_to_server, slow.servicer())
    server = build_server(settings, public=[mount], authenticate=gateway.authenticate)
    async def let_go(seconds):
        print("draining", flush=True)
        slow.go.set()
    server.on_drain(let_go)
    return server

raise SystemExit(run(Settings, build))
"""
ENVIRONMENT = {"GCP_PROJECT_ID": "my-project", "CONVERGENCE_ENVIRONMENT": "local", "CONVERGENCE_LISTEN": "127.0.0.1:0"}


def process(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos" / "gen")])
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **ENVIRONMENT, **environ},
        cwd=ROOT / "tests",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_process(number: signal.Signals) -> None:
    with process() as running:
        assert running.stdout is not None
        started = json.loads(await asyncio.to_thread(running.stdout.readline))
        assert started["event"] == "started"
        async with grpc.aio.insecure_channel(started["public"]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == SERVING
            call = asyncio.ensure_future(
                ended(tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(REQUEST, metadata=ACME))
            )
            # Served on the same connection, so the call before it has arrived too.
            await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            running.send_signal(number)
            assert await call == (grpc.StatusCode.OK, "")
        out, err = await asyncio.to_thread(running.communicate, timeout=20)
        assert (running.returncode, err) == (0, "")
        assert "draining" in out and '"event": "stopped"' in out


def test_check_validates_the_settings_and_starts_nothing() -> None:
    with process("--check") as good:
        out, err = good.communicate(timeout=30)
    assert (good.returncode, out, err) == (0, "settings of tenant are valid\n", "")
    with process("--check", CORS_ORIGINS="http://localhost:3000", ADMIN_API_KEY="hunter2") as bad:
        out, err = bad.communicate(timeout=30)
    assert (bad.returncode, out) == (2, "")
    assert 'error parsing value for field "cors_origins"' in err and "hunter2" not in err and "Traceback" not in err
