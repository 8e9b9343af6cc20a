"""The gateway with certificates instead of a token: both sides prove who they are, or nothing is said."""

from __future__ import annotations

from pathlib import Path

import httpx

from deploy.envoy import render
from libs.tls import Tls
from tests.support.certificates import Authority
from tests.support.gateway import CONTEXTS, running_gateway
from tests.support.ports import free_port

ACME = {"x-api-key": "acme-key"}


def _shown(tls: Tls) -> render.Tls:
    return render.Tls(certificate=tls.certificate, key=tls.key, authority=tls.authority)


def test_the_gateway_and_the_services_know_each_other_by_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    identities = {context: authority.issue(context) for context in CONTEXTS}
    with running_gateway(
        tmp_path, port=free_port(), identities=identities, token_file=None, tls=_shown(authority.issue("gateway"))
    ) as edge:
        for path in ("tenants/acme", "tenants/acme/credentials", "pipelines/runs/acme"):
            answer = httpx.get(f"{edge.base_url}/api/v1/{path}", headers=ACME, timeout=30)
            assert answer.status_code == 200, answer.text
        for call in edge.calls:
            assert (call.caller.peer, call.caller.tenant_id, call.caller.key_id) == ("gateway", "acme", "key_acme")
            # No token travels where certificates speak, and the key stops at the gateway as ever.
            assert not {name for name, _ in call.metadata} & {"x-peer-token", "x-api-key"}
        assert httpx.get(f"{edge.base_url}/api/v1/tenants/acme", timeout=30).status_code == 401


def test_the_gateway_speaks_to_no_service_that_shows_another_identity(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    identities = {context: authority.issue(context) for context in CONTEXTS}
    # Were any certificate of the authority believed, the second gateway would take a scheduler for credential.
    with running_gateway(
        tmp_path, port=free_port(), identities=identities, token_file=None, tls=_shown(authority.issue("gateway"))
    ) as edge:
        addresses = dict(edge.addresses)
        addresses["credential"] = addresses["scheduler"]
        with running_gateway(
            tmp_path / "second",
            port=free_port(),
            healthy=False,
            identities=identities,
            token_file=None,
            tls=_shown(authority.issue("gateway", folder="second")),
            **addresses,
        ) as wrong:
            refused = httpx.get(f"{wrong.base_url}/api/v1/tenants/acme/credentials", headers=ACME, timeout=30)
            assert refused.status_code == 503
            answer = httpx.get(f"{wrong.base_url}/api/v1/tenants/acme", headers=ACME, timeout=30)
            assert answer.status_code == 200, answer.text
        assert not [call for call in edge.calls if call.method.startswith("Credential")]


def test_a_process_that_is_not_the_gateway_is_told_nothing_about_keys(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    identities = {context: authority.issue(context) for context in CONTEXTS}
    with running_gateway(
        tmp_path, port=free_port(), identities=identities, token_file=None, tls=_shown(authority.issue("cron"))
    ) as edge:
        assert httpx.get(f"{edge.base_url}/api/v1/tenants/acme", headers=ACME, timeout=30).status_code == 503
        assert edge.asked == [] and edge.calls == []
