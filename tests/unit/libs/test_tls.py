"""Who a process is on the wire, with real certificates on the loopback address: the right ones, and every wrong one."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import grpc
import httpx
import pytest
from convergence.credential.v1 import credential_pb2, credential_pb2_grpc
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc

from libs import errors, grpc_client
from libs.denials import Denials
from libs.grpc_server import Server, build_server
from libs.settings import ServiceSettings, SettingsInvalid
from libs.tenancy import Caller, Role
from libs.tls import Tls
from services.tenant.authz import Authz, Endpoint
from tests.support.certificates import Authority, settings_of
from tests.support.fakes import Clock

PAST = timedelta(seconds=-1)


class Settings(ServiceSettings):
    service: ClassVar[str] = "tenant"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def settings(tls: Tls, **changes: Any) -> Settings:
    values = {"listen": "127.0.0.1:0", "internal_listen": "127.0.0.1:0", "page_key": "0123456789abcdef"}
    return Settings(gcp_project_id="my-project", environment="dev", **(values | settings_of(tls) | changes))


async def _unimplemented(_self: object, _request: Any, _context: Any) -> Any:
    raise errors.Unimplemented("NOT_YET", "Not yet.")


def _servicer(service: str, **answers: Any) -> object:
    methods = tenant_pb2.DESCRIPTOR.services_by_name[service].methods
    return type(service, (), {method.name: _unimplemented for method in methods} | answers)()


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[Server]:
    async def allowances(_self: object, _request: Any, _context: Any) -> Any:
        return tenant_pb2.ListAllowancesResponse()

    async def tenant(_self: object, _request: Any, _context: Any) -> Any:
        return tenant_pb2.Tenant(tenant_id="acme")

    async def nobody(_key: str) -> Caller:
        raise errors.Unauthenticated("API_KEY_UNKNOWN", "Unknown.")

    built = build_server(
        settings(authority.issue("tenant")),
        public=[(tenant_pb2_grpc.add_TenantServiceServicer_to_server, _servicer("TenantService", GetTenant=tenant))],
        internal=[
            (
                tenant_pb2_grpc.add_TenantQuotaServiceServicer_to_server,
                _servicer("TenantQuotaService", ListAllowances=allowances),
            )
        ],
        authenticate=nobody,
    )
    async with built:
        yield built


async def allowances(address: str, tls: Tls | None, *, token: str = "", seconds: float = 20.0) -> None:
    async with grpc_client.channel(address, peer="tenant", tls=tls, token=token, timeout=seconds) as channel:
        stub = tenant_pb2_grpc.TenantQuotaServiceStub(channel)
        await stub.ListAllowances(tenant_pb2.ListAllowancesRequest())


async def unconnected(address: str, tls: Tls | None, token: str = "") -> None:
    """Asserts that no connection comes about: our client waits for one as long as a call may take."""
    with pytest.raises(errors.Unavailable):
        await allowances(address, tls, token=token, seconds=0.5)


def answer_of(caught: pytest.ExceptionInfo[errors.Internal]) -> grpc.StatusCode:
    """What the other side said; to our own caller a neighbour's refusal is an internal error."""
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    return cause.code()


# --- who may call ---


async def test_a_peer_is_who_its_certificate_says(server: Server, authority: Authority) -> None:
    await allowances(server.internal_address, authority.issue("scheduler"))


async def test_a_peer_that_is_not_on_the_rpcs_list_is_refused(server: Server, authority: Authority) -> None:
    for peer in ("pipeline_executor", "credential", "cron", "tenant"):
        with pytest.raises(errors.Internal) as caught:
            await allowances(server.internal_address, authority.issue(peer))
        assert answer_of(caught) is grpc.StatusCode.PERMISSION_DENIED
    # Nobody vouches for a caller on this port: the gateway without one is nobody.
    with pytest.raises(errors.Unauthenticated):
        await allowances(server.internal_address, authority.issue("gateway"))


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://elsewhere/scheduler",
        "spiffe://convergence.evil/scheduler",
        "spiffe://convergence/ns/default/sa/scheduler",
        "https://convergence/scheduler",
    ],
)
async def test_an_identity_of_another_place_is_nobody(server: Server, authority: Authority, uri: str) -> None:
    wrong = authority.issue("scheduler", uri=uri, folder="wrong")
    with pytest.raises(errors.Internal) as caught:
        await allowances(server.internal_address, wrong)
    assert answer_of(caught) is grpc.StatusCode.UNAUTHENTICATED


async def test_an_expired_certificate_opens_nothing(server: Server, authority: Authority) -> None:
    expired = authority.issue("scheduler", valid=PAST, folder="expired")
    await unconnected(server.internal_address, expired)


async def test_a_certificate_that_somebody_else_signed_opens_nothing(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    foreign = dataclasses.replace(Authority(tmp_path).issue("scheduler"), authority=authority.certificate)
    await unconnected(server.internal_address, foreign)


async def test_plain_text_is_not_understood_whatever_it_says(server: Server) -> None:
    for address in (server.internal_address, server.public_address):
        await unconnected(address, None, token="scheduler's token")


async def test_a_client_without_a_certificate_gets_in_nowhere(server: Server, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    options = (("grpc.ssl_target_name_override", "tenant"),)
    for address in (server.internal_address, server.public_address):
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                stub = tenant_pb2_grpc.TenantQuotaServiceStub(channel)
                await stub.ListAllowances(tenant_pb2.ListAllowancesRequest(), timeout=3)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_only_the_gateway_vouches_for_a_caller(server: Server, authority: Authority) -> None:
    vouched = (("x-tenant-id", "acme"), ("x-role", "ADMIN"), ("x-key-id", "k"))
    for peer, opened in (("gateway", True), ("scheduler", False)):
        async with grpc_client.channel(
            server.public_address, peer="tenant", tls=authority.issue(peer), timeout=20.0
        ) as channel:
            call = tenant_pb2_grpc.TenantServiceStub(channel).GetTenant(
                tenant_pb2.GetTenantRequest(tenant_id="acme"), metadata=vouched
            )
            if opened:
                assert (await call).tenant_id == "acme"
            else:
                with pytest.raises(errors.Internal) as caught:
                    await call
                assert answer_of(caught) is grpc.StatusCode.PERMISSION_DENIED


# --- whom we call ---


async def test_a_server_that_is_not_the_one_meant_is_not_spoken_to(server: Server, authority: Authority) -> None:
    async with grpc_client.channel(
        server.internal_address, peer="credential", tls=authority.issue("pipeline_executor"), timeout=0.5
    ) as channel:
        stub = credential_pb2_grpc.CredentialAccessServiceStub(channel)
        with pytest.raises(errors.Unavailable):
            await stub.OpenCredential(credential_pb2.OpenCredentialRequest(tenant_id="acme"))


async def test_a_synchronous_client_shows_its_certificate_too(server: Server, authority: Authority) -> None:
    def call() -> None:
        with grpc_client.sync_channel(
            server.internal_address, peer="tenant", tls=authority.issue("scheduler"), timeout=20.0
        ) as channel:
            stub: Any = tenant_pb2_grpc.TenantQuotaServiceStub(channel)  # type: ignore[arg-type]
            stub.ListAllowances(tenant_pb2.ListAllowancesRequest())

    await asyncio.to_thread(call)


# --- renewal ---


def _age(tls: Tls, seconds: int) -> None:
    """Moves the files' times, so that a rewrite within one tick of the clock is seen."""
    for path in (tls.certificate, tls.key):
        os.utime(path, (path.stat().st_atime + seconds, path.stat().st_mtime + seconds))


async def test_both_sides_take_up_renewed_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_client, "_LOOK_SECONDS", 0.0)
    own = Authority(tmp_path)
    shown, ours = own.issue("tenant"), own.issue("scheduler")

    async def answer(_self: object, _request: Any, _context: Any) -> Any:
        return tenant_pb2.ListAllowancesResponse()

    async def nobody(_key: str) -> Caller:
        raise errors.Unauthenticated("API_KEY_UNKNOWN", "Unknown.")

    quotas = _servicer("TenantQuotaService", ListAllowances=answer)
    async with (
        build_server(
            settings(shown),
            public=[(tenant_pb2_grpc.add_TenantServiceServicer_to_server, _servicer("TenantService"))],
            internal=[(tenant_pb2_grpc.add_TenantQuotaServiceServicer_to_server, quotas)],
            authenticate=nobody,
        ) as running,
        grpc_client.channel(running.internal_address, peer="tenant", tls=ours, timeout=20.0) as channel,
    ):
        stub = tenant_pb2_grpc.TenantQuotaServiceStub(channel)
        await stub.ListAllowances(tenant_pb2.ListAllowancesRequest())
        # Another authority altogether: what was read at the start would no longer do on either side.
        renewed = Authority(tmp_path, "renewed authority")
        _age(renewed.issue("tenant"), 5)
        _age(renewed.issue("scheduler"), 5)
        await stub.ListAllowances(tenant_pb2.ListAllowancesRequest())


# --- the authentication endpoint ---


async def test_the_authentication_endpoint_answers_the_gateway_only(authority: Authority) -> None:
    async def authenticate(_key: str) -> Caller:
        return Caller(Role.ADMIN, "acme", "key_acme")

    async def append(*_records: Any) -> None: ...

    application = Authz(
        authenticate,
        lambda _who: timedelta(0),
        Denials(append, service="tenant", now=Clock()),
        onboarding_open=False,
    )
    endpoint = Endpoint(application, "127.0.0.1:0", authority.issue("tenant"))
    await endpoint.open()
    try:
        for peer, opened in (("gateway", True), ("scheduler", False), (None, False)):
            context = ssl.create_default_context(cafile=str(authority.certificate))
            if peer is not None:
                tls = authority.issue(peer)
                context.load_cert_chain(tls.certificate, tls.key)
            url = f"https://{endpoint.address}/authenticate/api/v1/tenants"
            async with httpx.AsyncClient(verify=context) as client:
                call = client.get(url, headers={"x-api-key": "k"}, extensions={"sni_hostname": "tenant"})
                if opened:
                    assert (await call).headers["x-tenant-id"] == "acme"
                else:
                    with pytest.raises(httpx.TransportError):
                        await call
    finally:
        await endpoint.close()


# --- settings ---


def test_wrong_files_are_named_before_anything_starts(authority: Authority, tmp_path: Path) -> None:
    good = authority.issue("tenant", folder="settings")
    assert settings(good).tls() == good
    assert Settings(gcp_project_id="my-project").tls() is None
    wrong: list[tuple[Settings, str]] = [
        (settings(good, tls_key=None), "go together"),
        (settings(good, tls_key=tmp_path / "none.key"), "cannot be read"),
        (settings(good, tls_key=authority.issue("cron").key), "is not the key of"),
        (settings(good, tls_authority=good.key), "must be PEM"),
        (settings(authority.issue("tenant", valid=PAST, folder="past")), "is valid from"),
        (settings(authority.issue("credential")), "it is of credential"),
        (settings(good, trust_domain="elsewhere"), "must be of spiffe://elsewhere/tenant"),
    ]
    for made, text in wrong:
        with pytest.raises(SettingsInvalid, match="CONVERGENCE_TLS_CERTIFICATE") as caught:
            made.tls()
        assert text in str(caught.value) and "PRIVATE KEY" not in str(caught.value)
    with pytest.raises(SettingsInvalid, match="CONVERGENCE_PAGE_KEY is not set"):
        settings(good, page_key=None).page_secret()
    assert settings(good).page_secret() == settings(good).page_secret()
