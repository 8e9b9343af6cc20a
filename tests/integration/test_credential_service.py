"""The credential process on the emulator, the local key service and a real tenant process: its two ports, end to end.

The canary at the end goes through success, refusal, failure, timeout and traceback, and is looked for everywhere.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from convergence.credential.v1 import credential_pb2 as pb
from convergence.credential.v1 import credential_pb2_grpc as rpc
from convergence.tenant.v1 import tenant_pb2
from google.protobuf.struct_pb2 import Struct

from deploy.local import kms
from libs import errors, logs
from libs.bigquery import Warehouse
from libs.grpc_client import channel
from services.credential import domain
from services.credential.main import build
from services.credential.settings import Settings
from services.credential.states import Provider, Status, Verdict
from tests.support.credential import Judgement
from tests.support.tenant import Replica, key, make_settings
from tests.unit.credential.test_credential_schemas import AWS_KEY, PRINCIPAL, SAS, rsa_pem, service_account

KEY = "projects/p1/locations/us/keyRings/convergence/cryptoKeys/credentials"
RUN = "2f1f2a3e-6c5d-4a9e-9a53-0d4b7d2c9f11"


class Platform:
    """A tenant process and a credential process that know each other."""

    def __init__(self, tenant: Replica, settings: Settings, warehouse: Warehouse, **overrides: Any) -> None:
        self.tenant = tenant
        self.settings = settings
        self.server = build(settings, warehouse=warehouse, **overrides)
        self._channels: list[grpc.aio.Channel] = []

    def public(self) -> rpc.CredentialServiceStub:
        made = grpc.aio.insecure_channel(self.server.public_address)
        self._channels.append(made)
        return rpc.CredentialServiceStub(made)

    def access(self, peer: str = "pipeline_executor", address: str = "") -> rpc.CredentialAccessServiceStub:
        token = (self.settings.peers_dir / f"{peer}.token").read_text().strip()
        made = channel(address or self.server.internal_address, token=token, timeout=60)
        self._channels.append(made)
        return rpc.CredentialAccessServiceStub(made)

    async def onboard(self, tenant_id: str) -> str:
        request = tenant_pb2.OnboardTenantRequest(
            tenant_id=tenant_id, company_name="C", admin_email="a@b.cd", subscription_plan=tenant_pb2.Tenant.STARTER
        )
        return (await self.tenant.public().OnboardTenant(request, metadata=key())).api_key

    async def close(self) -> None:
        for item in self._channels:
            await item.close(None)


@pytest.fixture
async def platform(central, project_id, bigquery_emulator, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts a platform with the overrides it is given; ends all of them."""
    running: list[tuple[Platform, Any]] = []
    async with (
        kms.running(tmp_path / "keys.json", "127.0.0.1:0", create_key=KEY) as kms_address,
        Replica(make_settings(tmp_path, project_id, onboarding="open"), central) as tenant,
    ):

        async def start(**overrides: Any) -> Platform:
            settings = Settings(
                gcp_project_id=project_id,
                environment="local",
                listen="127.0.0.1:0",
                internal_listen="127.0.0.1:0",
                tenant_address=tenant.server.internal_address,
                peers_dir=tenant.settings.peers_dir,
                kms_endpoint=kms_address,
                kms_key=KEY,
                bigquery_endpoint=bigquery_emulator.rest,
                offboarding_poll_seconds=overrides.pop("poll", 60),
            )
            made = Platform(tenant, settings, central, **overrides)
            await made.server.start()
            running.append((made, None))
            return made

        yield start
        for made, _ in running:
            await made.close()
            await made.server.stop(0)


def struct(fields: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(fields)
    return made


def post(tenant_id: str, credentials: dict[str, Any], provider: str = "GCP", **more: Any) -> pb.CreateCredentialRequest:
    return pb.CreateCredentialRequest(tenant_id=tenant_id, provider=provider, credentials=struct(credentials), **more)


async def audit(warehouse: Warehouse, tenant_id: str) -> list[dict[str, Any]]:
    sql = f"SELECT * FROM tenants.audit_log WHERE tenant_id = '{tenant_id}' ORDER BY time"
    return [dict(row.items()) for row in await warehouse.run(lambda: list(warehouse.client.query(sql)))]


async def test_flow_one_a_credential_goes_in_and_only_the_executor_gets_it(platform, central, project_id):
    running = await platform()
    mine = await running.onboard("flow_one")
    public = running.public()
    posted = service_account(project_id=project_id)
    metadata = key(mine, x_user_id="ada")
    source = struct({"dataset_id": "tenants", "table_id": "tenant_profiles"})
    made = await public.CreateCredential(post("flow_one", posted, source=source), metadata=metadata)
    assert (made.tenant_id, made.provider, made.action) == ("flow_one", "GCP", pb.CreateCredentialResponse.CREATED)
    assert made.status == pb.Credential.VALID
    assert made.dataset_status == pb.CreateCredentialResponse.TABLES_CREATED
    assert "gcp_cost_billing" in await central.list_tables("flow_one")

    again = await public.CreateCredential(post("flow_one", posted), metadata=metadata)
    assert (again.action, again.dataset_status) == (
        pb.CreateCredentialResponse.UPDATED,
        pb.CreateCredentialResponse.EXISTS,
    )
    listed = await public.ListCredentials(pb.ListCredentialsRequest(tenant_id="flow_one"), metadata=metadata)
    [one] = listed.credentials
    assert (one.credential_id, one.version, one.display) == (made.credential_id, 2, posted["client_email"])

    access = running.access()
    check = await access.CheckCredential(pb.CheckCredentialRequest(tenant_id="flow_one", provider="gcp"))
    assert check.credential_id == made.credential_id
    request = pb.OpenCredentialRequest(tenant_id="flow_one", provider="gcp", run_id=RUN, attempt=1)
    assert json.loads((await access.OpenCredential(request)).secret) == posted

    records = [r for r in await audit(central, "flow_one") if r["action"].startswith("credential.")]
    assert [r["action"] for r in records] == ["credential.create", "credential.update", "credential.open"]
    assert [r["outcome"] for r in records] == ["OK"] * 3
    assert (records[0]["user_id"], records[0]["role"], records[0]["object_id"]) == ("ada", "ADMIN", made.credential_id)
    assert records[0]["actor_key_id"] == mine.split("_")[2]
    assert records[2]["peer"] == "pipeline_executor"
    assert json.loads(records[2]["details"])["run_id"] == RUN


async def test_no_other_peer_and_no_key_opens_anything(platform):
    running = await platform()
    mine = await running.onboard("closed")
    await running.public().CreateCredential(post("closed", service_account()), metadata=key(mine))
    request = pb.OpenCredentialRequest(tenant_id="closed", provider="GCP", run_id=RUN, attempt=1)
    stub = rpc.CredentialAccessServiceStub(grpc.aio.insecure_channel(running.server.internal_address))
    for peer in ("gateway", "tenant", "credential", "scheduler", "cron"):
        token = (running.settings.peers_dir / f"{peer}.token").read_text().strip()
        for more in ((), key(mine), (("x-tenant-id", "closed"), ("x-role", "ADMIN"), ("x-key-id", "k"))):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.OpenCredential(request, metadata=(("x-peer-token", token), *more))
            assert refused.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
    for address in (running.server.public_address, running.server.internal_address):
        stub = rpc.CredentialAccessServiceStub(grpc.aio.insecure_channel(address))
        for metadata in (key(mine), key(), (), (("x-peer-token", "guess"),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.OpenCredential(request, metadata=metadata)
            assert refused.value.code() in (
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNAUTHENTICATED,
            )
    with pytest.raises(errors.Error):
        await running.access("pipeline_executor", running.server.public_address).OpenCredential(request)


async def test_tenants_and_roles_are_kept_apart(platform):
    running = await platform()
    mine, theirs = await running.onboard("left"), await running.onboard("right")
    public = running.public()
    made = await public.CreateCredential(post("left", service_account()), metadata=key(mine))

    async def refused(call, request, secret) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as answer:
            await call(request, metadata=key(secret))
        return answer.value.code(), answer.value.details() or ""

    named = {"tenant_id": "left", "credential_id": made.credential_id}
    elsewhere = await refused(public.GetCredential, pb.GetCredentialRequest(**named), theirs)
    nowhere = await refused(
        public.GetCredential, pb.GetCredentialRequest(tenant_id="no_such", credential_id="x"), theirs
    )
    assert elsewhere == nowhere and elsewhere[0] is grpc.StatusCode.NOT_FOUND
    # Their own tenant, another's credential id: as if it did not exist.
    foreign = pb.GetCredentialRequest(tenant_id="right", credential_id=made.credential_id)
    unknown = pb.GetCredentialRequest(tenant_id="right", credential_id="unknown")
    assert await refused(public.GetCredential, foreign, theirs) == await refused(public.GetCredential, unknown, theirs)
    with pytest.raises(errors.NotFound):
        await running.access().CheckCredential(pb.CheckCredentialRequest(tenant_id="right", provider="GCP"))
    assert (await public.GetCredential(pb.GetCredentialRequest(**named), metadata=key(mine))).name == "default"


async def test_a_tenant_that_leaves_takes_its_credentials_along(platform, central):
    running = await platform(poll=1)
    mine = await running.onboard("leaver")
    for name in ("", "second"):
        await running.public().CreateCredential(post("leaver", service_account(), name=name), metadata=key(mine))
    await running.tenant.public().DeleteTenant(tenant_pb2.DeleteTenantRequest(tenant_id="leaver"), metadata=key())
    async with asyncio.timeout(60):
        while True:
            actions = [record["action"] for record in await audit(central, "leaver")]
            if "tenant.confirm_offboarding" in actions:
                break
            await asyncio.sleep(0.1)
    assert actions.count("credential.shred") == 2
    sql = "SELECT * FROM tenants.tenant_cloud_credentials WHERE tenant_id = 'leaver'"
    rows = [dict(row.items()) for row in await central.run(lambda: list(central.client.query(sql)))]
    assert [(row["status"], json.loads(row["secrets"])["versions"]) for row in rows] == [("REVOKED", [])] * 2
    with pytest.raises(grpc.aio.AioRpcError):
        await running.public().CreateCredential(post("leaver", service_account()), metadata=key())


async def test_providers_without_tables_may_have_credentials(platform):
    running = await platform()
    mine = await running.onboard("many_clouds")
    public = running.public()
    for provider, credentials in (
        ("AWS", {"role_arn": "arn:aws:iam::123456789012:role/x"}),
        ("AZURE", {"sas_token": SAS}),
    ):
        # The sample signature ends in 2026, which may be over.
        credentials = {name: value.replace("2026", "2126") for name, value in credentials.items()}
        made = await public.CreateCredential(post("many_clouds", credentials, provider), metadata=key(mine))
        assert made.status == pb.Credential.PENDING and made.status_reason
        assert made.external_id == (made.credential_id if provider == "AWS" else "")


class Everything(logging.Handler):
    """Keeps all of every log record: text, arguments, extras, traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(repr(record.__dict__))
        self.lines.append(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            self.lines.append(self._formatter.formatException(record.exc_info))


async def test_a_canary_is_found_nowhere(platform, central, monkeypatch, capfd):
    canaries = {
        "gcp": rsa_pem().splitlines()[10],
        "aws": AWS_KEY["secret_access_key"],
        "azure": PRINCIPAL["client_secret"],
        "sas": "canary%2Bsignature",
        "typo": "canary-in-the-wrong-place-0123456789abcdef",
    }
    sas = {"sas_token": SAS.replace("2026", "2126")}
    logs.configure("DEBUG", service="credential")
    everything = Everything()
    for name in ("", "google", "google.cloud.kms_v1", "urllib3"):
        logging.getLogger(name).addHandler(everything)
    for name in ("google", "urllib3", "grpc", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    logging.getLogger().manager._clear_cache()
    monkeypatch.setattr(domain, "VALIDATION_TIMEOUT", timedelta(milliseconds=200))
    seen: list[Any] = []

    async def tried(call: Any, request: Any, **options: Any) -> Any:
        try:
            answer = await call(request, timeout=30, **options)
        except (grpc.aio.AioRpcError, errors.Error) as failure:
            seen.append([repr(failure), str(failure), getattr(failure, "trailing_metadata", lambda: "")()])
            return None
        seen.append(str(answer))
        return answer

    try:
        # Success, with the real validators.
        real = await platform()
        mine = await real.onboard("canary")
        public = real.public()
        for provider, credentials in (
            ("GCP", service_account()),
            ("AWS", AWS_KEY),
            ("AZURE", sas),
        ):
            source = {"endpoint_url": "http://127.0.0.1:1"} if provider == "AWS" else None
            source = {"endpoint_url": "http://127.0.0.1:1", "container": "exports"} if provider == "AZURE" else source
            request = post("canary", credentials, provider, **({"source": struct(source)} if source else {}))
            made = await tried(public.CreateCredential, request, metadata=key(mine))
            named = {"tenant_id": "canary", "credential_id": made.credential_id}
            await tried(public.ValidateCredential, pb.ValidateCredentialRequest(**named), metadata=key(mine))
            await tried(public.GetCredential, pb.GetCredentialRequest(**named), metadata=key(mine))
        await tried(public.ListCredentials, pb.ListCredentialsRequest(tenant_id="canary"), metadata=key(mine))
        opened = await real.access().OpenCredential(
            pb.OpenCredentialRequest(tenant_id="canary", provider="GCP", run_id=RUN, attempt=1)
        )
        assert canaries["gcp"] in opened.secret.decode(), "the canary is alive"
        # Wrong fields, wrong values, secrets in the wrong place.
        for provider, credentials in (
            ("GCP", service_account(private_key=canaries["typo"])),
            ("GCP", service_account(token_uri=canaries["typo"])),
            ("GCP", {canaries["typo"]: canaries["typo"]}),
            ("AWS", AWS_KEY | {canaries["aws"]: "x"}),
            ("AWS", AWS_KEY | {"access_key_id": canaries["aws"]}),
            ("AZURE", PRINCIPAL | {"azure_tenant_id": canaries["azure"]}),
            ("AZURE", {"sas_token": "https://x/?" + SAS}),
            (canaries["typo"][:20], PRINCIPAL),
        ):
            await tried(public.CreateCredential, post("canary", credentials, provider), metadata=key(mine))
        await tried(
            public.CreateCredential,
            post("canary", service_account(), source=struct({"dataset_id": canaries["typo"]})),
            metadata=key(mine),
        )
        # Refusals, time-outs and defects while the provider is asked; a bad key; no key.
        judge = Judgement()
        faked = await platform(validators={Provider.GCP: judge})
        for verdict in (Verdict(Status.INVALID, "refused"), RuntimeError("a defect"), errors.Internal("X", "y")):
            judge.verdict = verdict
            await tried(faked.public().CreateCredential, post("canary", service_account()), metadata=key(mine))
        judge.hang = True
        await tried(faked.public().CreateCredential, post("canary", service_account(), name="slow"), metadata=key(mine))
        for secret in ("nonsense", mine[:-1]):
            await tried(public.CreateCredential, post("canary", service_account()), metadata=key(secret))
        # A client that leaves in the middle.
        gone = asyncio.create_task(
            tried(public.CreateCredential, post("canary", service_account()), metadata=key(mine))
        )
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        # The key service refuses, then the row is damaged: tracebacks.
        await central.run(
            lambda: central.client.query(
                "UPDATE tenants.tenant_cloud_credentials SET secrets = REPLACE(secrets, 'ciphertext\": \"', "
                "'ciphertext\": \"AAAA') WHERE tenant_id = 'canary'"
            ).result()
        )
        await tried(
            real.access().OpenCredential,
            pb.OpenCredentialRequest(tenant_id="canary", provider="GCP", run_id=RUN, attempt=1),
        )
        monkeypatch.setattr("services.credential.cipher._RETRY", None)
        monkeypatch.setattr("services.credential.cipher.AESGCM", None)
        await tried(public.CreateCredential, post("canary", service_account()), metadata=key(mine))
    finally:
        for name in ("", "google", "google.cloud.kms_v1", "urllib3"):
            logging.getLogger(name).removeHandler(everything)
        logging.getLogger().handlers.clear()
        # The servers log once more when they stop, and by then what this wrote to is closed.
        structlog.reset_defaults()
    rows = await central.run(
        lambda: [
            list(central.client.query(f"SELECT * FROM tenants.{table}"))
            for table in ("tenant_cloud_credentials", "audit_log")
        ]
    )
    out, err = capfd.readouterr()
    assert any("Traceback" in line for line in [*everything.lines, out]), "a traceback was logged"
    assert len(seen) > 20
    for place, text in {
        "answers": repr(seen),
        "logs": "\n".join(everything.lines),
        "stdout": out,
        "stderr": err,
        "rows": repr(rows),
    }.items():
        found = [name for name, canary in canaries.items() if canary in text]
        assert not found, f"{found} in {place}"
