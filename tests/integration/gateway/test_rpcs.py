"""gRPC and gRPC-Web: every public method opens with a key, an internal one to nobody."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from deploy.envoy import descriptors
from libs import errors, grpc_client
from tests.support.gateway import ADMIN_KEY, StandIns, internal_methods, public_methods, send, wire


@pytest.mark.parametrize("method", internal_methods(), ids=lambda method: method.full_name)
def test_no_internal_rpc_is_reachable(edge: StandIns, method: MethodDescriptor) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    with grpc.insecure_channel(edge.base_url.removeprefix("http://")) as channel:
        call = channel.unary_unary(path)
        for metadata, codes in (
            ((), {grpc.StatusCode.UNAUTHENTICATED}),
            ((("x-api-key", ADMIN_KEY), ("x-peer-token", "guess")), {grpc.StatusCode.UNIMPLEMENTED}),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", metadata=metadata, timeout=10)
            assert caught.value.code() in codes  # type: ignore[attr-defined]
    for kind in ("application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"):
        content = wire(path) if "text" not in kind else base64.b64encode(wire(path))
        answer = send(edge, "POST", path, ADMIN_KEY, headers=[("content-type", kind)], content=content)
        assert answer.headers.get("grpc-status") == "12" or answer.status_code == 404, answer.headers
    for kind in ("application/json", "text/plain", ""):
        answer = send(edge, "POST", path, ADMIN_KEY, headers=[("content-type", kind)] if kind else [], content=b"{}")
        assert answer.status_code == 404
    assert edge.calls == []


def test_every_public_rpc_works_as_grpc_and_as_grpc_web(edge: StandIns) -> None:
    with grpc.insecure_channel(edge.base_url.removeprefix("http://")) as channel:
        for method in public_methods():
            path = f"/{method.containing_service.full_name}/{method.name}"
            request = message_factory.GetMessageClass(method.input_type)()
            if "tenant_id" in method.input_type.fields_by_name:
                request.tenant_id = "acme"  # type: ignore[attr-defined]
            start: Any = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
            for key, refused in (("", grpc.StatusCode.UNAUTHENTICATED), (ADMIN_KEY, None)):
                edge.calls.clear()
                code = None
                try:
                    result = start(
                        request.SerializeToString(), metadata=[("x-api-key", key)] if key else [], timeout=10
                    )
                    if method.server_streaming:
                        list(result)
                except grpc.RpcError as exc:
                    code = exc.code()  # type: ignore[attr-defined]
                if method.name == "OnboardTenant":
                    assert code is grpc.StatusCode.INVALID_ARGUMENT or not key
                elif refused:
                    assert code is refused and edge.calls == [], path
                else:
                    assert code in (None, grpc.StatusCode.INVALID_ARGUMENT), (path, code)
    body = tenant_pb2.GetTenantRequest(tenant_id="acme").SerializeToString()
    answer = send(
        edge,
        "POST",
        "/convergence.tenant.v1.TenantService/GetTenant",
        headers=[("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")],
        content=wire("", body),
    )
    assert answer.status_code == 200 and b"grpc-status:0" in answer.content.replace(b" ", b"")


def test_our_own_client_reads_the_gateways_errors(edge: StandIns) -> None:
    async def ask(key: str, tenant_id: str) -> BaseException | None:
        async with grpc_client.channel(edge.base_url.removeprefix("http://")) as channel:
            stub = tenant_pb2_grpc.TenantServiceStub(channel)
            try:
                await stub.GetTenant(tenant_pb2.GetTenantRequest(tenant_id=tenant_id), metadata=[("x-api-key", key)])
            except errors.Error as exc:
                return exc
            return None

    assert asyncio.run(ask("acme-key", "acme")) is None
    assert isinstance(asyncio.run(ask("acme-key", "other_co")), errors.NotFound)


def test_reflection_needs_a_key_and_shows_all_four_public_services(edge: StandIns) -> None:
    def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                str(Path(sys.executable).with_name("buf")),
                "curl",
                "--protocol",
                "grpc",
                "--http2-prior-knowledge",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    listed = curl("--reflect-header", "x-api-key: runner-key", "--list-services", edge.base_url)
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) >= set(descriptors.PUBLIC_SERVICES)
    assert "Quota" not in listed.stdout and "Auth" not in listed.stdout
    refused = curl("--list-services", edge.base_url)
    assert refused.returncode != 0 and "not authenticated" in refused.stderr
    called = curl(
        *("--reflect-header", "x-api-key: runner-key", "-H", "x-api-key: runner-key"),
        *("-d", '{"tenant_id": "acme"}'),
        edge.base_url + "/convergence.tenant.v1.TenantService/GetTenant",
    )
    assert called.returncode == 0, called.stderr
    assert edge.calls[-1].caller.key_id == "key_runner"
