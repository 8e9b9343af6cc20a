"""One trace from the edge inward: the gateway begins it, or goes on with the client's, and the service hangs below."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from libs import tracing
from tests.support.collector import Collector, collecting
from tests.support.gateway import StandIns, running_gateway
from tests.support.ports import free_port

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"x-api-key": "acme-key"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIns, Collector]]:
    folder: Path = tmp_path_factory.mktemp("traced")
    with collecting() as collector:
        tracing.configure("tenant", collector.address)
        with running_gateway(folder, port=free_port(), otlp_endpoint=collector.address, trace_percent=100) as stand_ins:
            yield stand_ins, collector
        tracing.close()


def test_the_services_span_hangs_below_the_gateways(traced: tuple[StandIns, Collector]) -> None:
    stand_ins, collector = traced
    answer = httpx.get(f"{stand_ins.base_url}/api/v1/tenants/acme", headers=HEADERS, timeout=20)
    assert answer.status_code == 200, answer.text
    collector.wait(lambda: bool(collector.named("TenantService.GetTenant")))
    [served] = collector.named("TenantService.GetTenant")
    collector.wait(lambda: len({span.service for span in collector.spans if span.trace == served.trace}) == 2)
    above = {span.id: span for span in collector.spans if span.service == "gateway"}
    assert served.parent in above and above[served.parent].trace == served.trace
    assert "acme-key" not in repr(collector.spans)


def test_a_clients_trace_goes_on(traced: tuple[StandIns, Collector]) -> None:
    stand_ins, collector = traced
    headers = {**HEADERS, "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    httpx.get(f"{stand_ins.base_url}/api/v1/tenants/acme", headers=headers, timeout=20).raise_for_status()
    collector.wait(lambda: any(span.trace == TRACE and span.service == "tenant" for span in collector.spans))


def test_what_the_gateway_leaves_out_no_service_records(tmp_path: Path) -> None:
    with collecting() as collector:
        tracing.configure("tenant", collector.address)
        try:
            rare = running_gateway(tmp_path, port=free_port(), otlp_endpoint=collector.address, trace_percent=0)
            with rare as stand_ins, httpx.Client(base_url=stand_ins.base_url, headers=HEADERS, timeout=20) as client:
                for _ in range(20):
                    client.get("/api/v1/tenants/acme").raise_for_status()
        finally:
            tracing.close()  # sends what there is
        assert collector.spans == []
