"""Traces: one chain from caller to statement, nothing of a customer's in it, nothing at all without a collector."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc

from libs import caller, errors, grpc_client, tracing
from libs.ledger import Ledger
from libs.tenancy import Caller, Role
from tests.support.collector import Collector, collecting
from tests.unit.libs.conftest import Served

ACME = [("x-api-key", "acme-key")]
GET = "convergence.tenant.v1.TenantService/GetTenant"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as started:
        tracing.configure("test", started.address)
        yield started
        tracing.close()


async def test_a_call_is_one_chain_through_client_server_and_work(tenant: Served, collector: Collector) -> None:
    def answer(request: Any) -> Any:
        with tracing.span("statement", "CLIENT", db__system="bigquery"):
            tracing.note(bigquery__job_id="cv-1")
        return tenant_pb2.Tenant(tenant_id=request.tenant_id)

    tenant.stand_ins.answers["TenantService/GetTenant"] = answer
    async with grpc_client.channel(tenant.server.public_address) as channel:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        with caller.bind(Caller(Role.ADMIN, "acme"), request_id="req-12345678"), tracing.span("outermost"):
            caller.begin(
                caller.current(), request_id="req-12345678", idempotency_key=None, timeout=None, trace_id=TRACE
            )
            await stub.GetTenant(tenant_pb2.GetTenantRequest(tenant_id="acme"), metadata=ACME)
    await asyncio.to_thread(tracing.close)
    [statement] = collector.named("statement")
    assert collector.path(statement) == ["outermost", GET, "TenantService.GetTenant", "statement"]
    assert statement.attributes == {"db.system": "bigquery", "bigquery.job_id": "cv-1"}
    [served] = collector.named("TenantService.GetTenant")
    assert served.attributes["rpc.grpc.status"] == "OK" and served.attributes["tenant_id"] == "acme"
    assert served.attributes["request_id"] == "req-12345678"
    assert len({span.trace for span in collector.spans}) == 1
    assert "acme-key" not in repr(collector.spans)


async def test_a_trace_goes_on_where_the_caller_began_it_and_an_error_shows_its_reason(
    tenant: Served, collector: Collector
) -> None:
    def refuse(_request: Any) -> Any:
        raise errors.FailedPrecondition("NOT_NOW", "The secret word is 'sesame'.")

    tenant.stand_ins.answers["TenantService/GetTenant"] = refuse
    async with tenant.raw() as channel:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        with pytest.raises(Exception, match="sesame"):
            await stub.GetTenant(
                tenant_pb2.GetTenantRequest(tenant_id="acme"),
                metadata=[*ACME, ("traceparent", f"00-{TRACE}-{PARENT}-01")],
            )
        with pytest.raises(Exception, match="sesame"):
            await stub.GetTenant(
                tenant_pb2.GetTenantRequest(tenant_id="acme"),
                metadata=[*ACME, ("x-request-id", "0f8fad5b-d9cb-469f-a165-70867728950e")],
            )
    await asyncio.to_thread(tracing.close)
    first, second = collector.named("TenantService.GetTenant")
    assert (first.trace, first.parent, first.status) == (TRACE, PARENT, "NOT_NOW")
    # The logs and BigQuery's jobs show the same digits.
    assert (second.trace, second.parent) == ("0f8fad5bd9cb469fa16570867728950e", "")
    assert "sesame" not in repr(collector.spans)


async def test_what_is_written_for_many_links_to_each_of_them(collector: Collector) -> None:
    class Table:
        async def read(self, keys: Any) -> Any:
            with tracing.span("read"):
                return dict.fromkeys(keys, 0)

        async def replace(self, rows: Any) -> bool:
            return True

    ledger: Ledger[int, int, int] = Ledger(
        Table(), lambda row, asked, now: (asked, asked), now=lambda: datetime.now(UTC)
    )

    async def ask(key: str) -> None:
        with tracing.span(f"ask {key}"):
            await ledger.ask(key, 1)

    await asyncio.gather(*(ask(key) for key in "abc"))
    await ledger.close()
    await asyncio.to_thread(tracing.close)
    asked = {span.id for span in collector.spans if span.name.startswith("ask")}
    rounds = collector.named("group_commit")
    assert {link for each in rounds for link in each.links} == asked and len(asked) == 3
    assert collector.path(collector.named("read")[0]) == ["group_commit", "read"]


async def test_what_the_caller_does_not_record_is_left_out_with_all_below_it(
    tenant: Served, collector: Collector
) -> None:
    passed_on: list[str] = []

    def answer(request: Any) -> Any:
        with tracing.span("statement", "CLIENT") as span:
            span.set(rows=1)
            passed_on.append(tracing.traceparent())
        return tenant_pb2.Tenant(tenant_id=request.tenant_id)

    tenant.stand_ins.answers["TenantService/GetTenant"] = answer
    header = f"00-{TRACE}-{PARENT}-00"
    async with tenant.raw() as channel:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        request = tenant_pb2.GetTenantRequest(tenant_id="acme")
        await stub.GetTenant(request, metadata=[*ACME, ("traceparent", header)])
    with tracing.span("group_commit", links=[]), tracing.span("read"):
        assert tracing.here() is None
    await asyncio.to_thread(tracing.close)
    # The next process is told the same, so it leaves its part out too.
    assert passed_on == [header]
    assert collector.spans == []


def test_a_defect_shows_its_type_and_not_its_text(collector: Collector) -> None:
    with pytest.raises(RuntimeError), tracing.span("broken"):
        raise RuntimeError("password=hunter2")
    tracing.close()
    [span] = collector.named("broken")
    assert span.status == "RuntimeError" and "hunter2" not in repr(span)


def test_without_a_collector_nothing_happens() -> None:
    with tracing.span("nothing") as span, tracing.span("within"):
        span.set(a=1)
        span.fail("x")
    assert tracing.here() is None and tracing.traceparent() == ""
