"""What a process publishes: every call counted by how it ended, statements by who needed them, ids that lead on."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from unittest.mock import MagicMock

import grpc
import httpx
import pytest
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from prometheus_client import REGISTRY

from libs import caller, errors, grpc_client
from libs.bigquery import Sql, Warehouse
from libs.grpc_server import build_server
from libs.settings import ServiceSettings
from libs.tenancy import Caller, Role

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Settings(ServiceSettings):
    service: ClassVar[str] = "tenant"


def figure(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Seen:
    """A tenant service that notes what it knows of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str, dict[str, Any]]] = []

    def servicer(self) -> Any:
        seen = self

        async def unimplemented(_self: object, _request: Any, _context: Any) -> Any:
            raise errors.Unimplemented("NOT_YET", "Not yet.")

        async def get(_self: object, request: Any, context: Any) -> Any:
            metadata = dict(context.invocation_metadata())
            seen.calls.append((caller.operation(), caller.request_id(), caller.trace_id(), metadata))
            if request.tenant_id != "acme":
                raise errors.NotFound("TENANT_NOT_FOUND", "Tenant not found.")
            return tenant_pb2.Tenant(tenant_id="acme")

        methods = {m.name: unimplemented for m in tenant_pb2.DESCRIPTOR.services_by_name["TenantService"].methods}
        return type("Tenant", (), methods | {"GetTenant": get})()


async def admin(_key: str) -> Caller:
    return Caller(Role.PLATFORM_ADMIN)


@pytest.fixture
async def seen() -> Any:
    seen = Seen()
    settings = Settings(
        gcp_project_id="my-project",
        environment="local",
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
    )
    mount = (tenant_pb2_grpc.add_TenantServiceServicer_to_server, seen.servicer())
    async with build_server(settings, public=[mount], authenticate=admin) as server:
        yield seen, server


async def get(address: str, tenant_id: str, *metadata: tuple[str, str]) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = tenant_pb2_grpc.TenantServiceStub(channel)
        request = tenant_pb2.GetTenantRequest(tenant_id=tenant_id)
        await stub.GetTenant(request, metadata=(("x-api-key", "k"), *metadata), timeout=10)


async def test_each_call_is_counted_by_how_it_ended_and_the_endpoint_shows_it(seen: Any) -> None:
    _, server = seen
    rpc = "TenantService.GetTenant"
    before = figure("convergence_rpcs_total", rpc=rpc, code="OK", reason="")
    await get(server.public_address, "acme")
    with pytest.raises(grpc.aio.AioRpcError):
        await get(server.public_address, "nobody")
    assert figure("convergence_rpcs_total", rpc=rpc, code="OK", reason="") == before + 1
    assert figure("convergence_rpcs_total", rpc=rpc, code="NOT_FOUND", reason="TENANT_NOT_FOUND") >= 1
    assert figure("convergence_rpc_seconds_count", rpc=rpc) >= 2
    assert figure("convergence_rpcs_running") == 0

    def scrape() -> str:
        return httpx.get(f"http://{server.metrics_address}/metrics", timeout=10).text

    text = await asyncio.to_thread(scrape)
    assert f'convergence_rpcs_total{{code="OK",reason="",rpc="{rpc}"}}' in text and "process_resident_memory" in text


async def test_ids_of_a_request_lead_from_process_to_process(seen: Any) -> None:
    calls, server = seen[0].calls, seen[1]
    await get(
        server.public_address, "acme", ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"), ("x-request-id", "r-1234567")
    )
    assert calls[-1][:3] == ("TenantService.GetTenant", "r-1234567", TRACE)
    # Without a trace, or with one that is none, it is made of the gateway's request id.
    request_id = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"
    for wrong in ((), (("traceparent", "00-" + "0" * 32 + "-b7ad6b7169203331-01"),), (("traceparent", "x"),)):
        await get(server.public_address, "acme", ("x-request-id", request_id), *wrong)
        assert calls[-1][2] == request_id.replace("-", "")
    # What a served call asks of a neighbour bears its ids.
    with caller.bind(Caller(Role.ADMIN)):
        caller.begin(Caller(Role.ADMIN), request_id="r-7654321", idempotency_key=None, timeout=10, trace_id=TRACE)
        async with grpc_client.channel(server.public_address) as channel:
            request = tenant_pb2.GetTenantRequest(tenant_id="acme")
            await tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(request, metadata=(("x-api-key", "k"),))
    assert calls[-1][1:3] == ("r-7654321", TRACE)


async def test_a_statement_is_counted_and_labelled_by_the_call_that_needed_it() -> None:
    client = MagicMock(project="my-project")
    rows = MagicMock(total_bytes_billed=10_485_760)
    rows.__iter__.return_value = iter(())
    client.query_and_wait.return_value = rows
    warehouse = Warehouse(client, labels={"service": "tenant"})
    labels = {"statement": "test/sql/read_it.sql", "operation": "TenantService.GetTenant"}
    before = figure("convergence_statements_total", **labels)
    with caller.bind(Caller(Role.ADMIN)):
        caller.begin(Caller(Role.ADMIN), request_id="R-1", idempotency_key=None, timeout=None, trace_id=TRACE)
        caller.enter("TenantService.GetTenant")
        await warehouse.query(Sql("test/sql/read_it.sql", "SELECT 1"), dataset="acme")
        caller.enter("")
    sent = client.query_and_wait.call_args.kwargs["job_config"].labels
    assert sent == {
        "service": "tenant",
        "statement": "read_it",
        "dataset": "acme",
        "operation": "tenantservice_gettenant",
        "request_id": "r-1",
        "trace_id": TRACE,
    }
    assert figure("convergence_statements_total", **labels) == before + 1
    assert figure("convergence_bytes_billed_total", statement="test/sql/read_it.sql") >= 10_485_760
    warehouse.close()


def test_what_one_event_raises_the_alarm_for_begins_at_zero() -> None:
    assert REGISTRY.get_sample_value("convergence_secrets_unreadable_total") is not None
