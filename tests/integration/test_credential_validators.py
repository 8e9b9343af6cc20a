"""Validators against what answers here: the BigQuery emulator with a self-signed key, and a plain HTTP stand-in."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from services.credential import validators as module
from services.credential.secret import Secret
from services.credential.states import Kind, Provider, Status, Verdict
from services.credential.validators import validators
from tests.unit.credential.test_credential_schemas import AWS_KEY, GUID, PRINCIPAL, SAS, service_account


class Cloud:
    """Answers every request with one status and body, and remembers what came."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"{}", {}
        self.requests: list[tuple[str, str, dict, bytes]] = []
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                cloud.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(cloud.status)
                for name, value in {**cloud.headers, "content-length": str(len(cloud.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(cloud.body)

            do_POST = do_GET

            def log_message(self, *_args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    it = Cloud()
    yield it
    it.close()


async def ask(provider, kind, fields, source, *, endpoint=None, external_id=""):
    with Secret.of(fields) as secret:
        return await validators(bigquery_endpoint=endpoint)[provider].validate(kind, secret, source, external_id)


async def test_a_service_account_key_is_tried_on_what_the_source_names(central, bigquery_emulator, project_id):
    async def verdict(**source):
        key = service_account(project_id=project_id)
        return await ask(Provider.GCP, Kind.SERVICE_ACCOUNT, key, source, endpoint=bigquery_emulator.rest)

    assert (await verdict()).status is Status.VALID
    assert (await verdict(dataset_id="tenants")).status is Status.VALID
    assert (await verdict(dataset_id="tenants", table_id="tenant_profiles")).status is Status.VALID
    assert (await verdict(project_id=project_id, dataset_id="tenants")).status is Status.VALID
    missing = await verdict(dataset_id="tenants", table_id="no_such_table")
    assert (missing.status, missing.asked) == (Status.PENDING, True)
    assert "not found" in missing.reason


@pytest.mark.parametrize(
    "status, reason, source, expected",
    [
        (401, "authError", {}, Status.INVALID),
        (403, "accessDenied", {"dataset_id": "d", "table_id": "t"}, Status.INVALID),
        (403, "accessDenied", {}, Status.PENDING),
        (403, "rateLimitExceeded", {"dataset_id": "d"}, Status.PENDING),
        (404, "notFound", {"dataset_id": "d"}, Status.PENDING),
        (429, "rateLimitExceeded", {}, Status.PENDING),
        (500, "backendError", {}, Status.PENDING),
        (503, "backendError", {}, Status.PENDING),
        (400, "invalid", {}, Status.PENDING),
    ],
)
async def test_what_bigquery_says(cloud, status, reason, source, expected):
    cloud.status = status
    error = {"code": status, "message": "canary", "errors": [{"reason": reason, "message": "canary"}]}
    cloud.body, cloud.headers = json.dumps({"error": error}).encode(), {"content-type": "application/json"}
    verdict = await ask(Provider.GCP, Kind.SERVICE_ACCOUNT, service_account(), source, endpoint=cloud.url)
    assert verdict.status is expected
    assert "canary" not in verdict.reason
    assert all(headers["authorization"].startswith("Bearer ey") for _, _, headers, _ in cloud.requests)


@pytest.mark.parametrize(
    "provider, kind, fields, source",
    [
        (Provider.GCP, Kind.SERVICE_ACCOUNT, "gcp", {}),
        (Provider.AWS, Kind.ACCESS_KEY, AWS_KEY, {"endpoint_url": "http://127.0.0.1:1"}),
        (Provider.AZURE, Kind.SAS, {"sas_token": SAS}, {"endpoint_url": "http://127.0.0.1:1", "container": "c-1"}),
    ],
)
async def test_a_provider_that_is_down_is_no_refusal_and_shows_nothing(provider, kind, fields, source, caplog):
    caplog.set_level(logging.DEBUG)
    fields = service_account() if fields == "gcp" else fields
    verdict = await ask(provider, kind, fields, source, endpoint="http://127.0.0.1:1")
    assert (verdict.status, verdict.asked) == (Status.PENDING, True)
    assert "canary" not in verdict.reason + caplog.text


@pytest.mark.parametrize("status, expected", [(200, "VALID"), (403, "INVALID"), (400, "PENDING"), (503, "PENDING")])
async def test_aws_keys_are_signed_for_sts(cloud, status, expected):
    cloud.status = status
    session = AWS_KEY | {"access_key_id": "ASIAIOSFODNN7EXAMPLE", "session_token": "sessiontoken"}
    verdict = await ask(Provider.AWS, Kind.ACCESS_KEY, session, {"endpoint_url": cloud.url, "region": "eu-central-1"})
    assert verdict.status == expected
    [(method, path, headers, _)] = cloud.requests
    assert (method, path) == ("POST", "/?Action=GetCallerIdentity&Version=2011-06-15")
    assert headers["host"] == "sts.eu-central-1.amazonaws.com"
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=ASIAIOSFODNN7EXAMPLE/")
    assert headers["x-amz-security-token"] == "sessiontoken"
    assert AWS_KEY["secret_access_key"] not in str(cloud.requests)


ROLE = {"role_arn": "arn:aws:iam::123456789012:role/x"}
DENIED = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>canary</Message></Error></ErrorResponse>"
BUSY = b"<ErrorResponse><Error><Code>Throttling</Code><Message>canary</Message></Error></ErrorResponse>"


@pytest.mark.parametrize(
    "status, body, expected", [(403, DENIED, "INVALID"), (400, BUSY, "PENDING"), (503, b"canary", "PENDING")]
)
async def test_an_aws_role_is_assumed_with_the_external_id_that_we_issued(cloud, caplog, status, body, expected):
    caplog.set_level(logging.DEBUG)
    cloud.status, cloud.body = status, body
    verdict = await ask(Provider.AWS, Kind.ROLE, ROLE, {"endpoint_url": cloud.url}, external_id="issued-by-us")
    assert verdict.status == expected and verdict.asked
    [(_, _, _, sent)] = cloud.requests
    asked = dict(parse_qsl(sent.decode()))
    assert asked["Action"] == "AssumeRole" and asked["RoleArn"] == ROLE["role_arn"]
    assert (asked["ExternalId"], asked["DurationSeconds"]) == ("issued-by-us", "900")
    assert "canary" not in verdict.reason + caplog.text


async def test_an_aws_role_that_trusts_us_works(caplog):
    caplog.set_level(logging.DEBUG)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        source = {"endpoint_url": f"http://{host}:{port}", "region": "eu-central-1"}
        verdict = await ask(Provider.AWS, Kind.ROLE, ROLE, source, external_id="issued-by-us")
    finally:
        server.stop()
    assert verdict == Verdict(Status.VALID)
    assert "SessionToken" not in caplog.text and "SecretAccessKey" not in caplog.text


class Sts:
    """A client of STS that has the platform's identity, and a role's trust policy: the external ids it takes."""

    def __init__(self, takes) -> None:
        self._takes = takes
        self.closed = False

    def client(self, name, **_options):
        assert name == "sts"
        return self

    def assume_role(self, *, ExternalId, **_role):
        code = self._takes(ExternalId)
        if code:
            raise ClientError({"Error": {"Code": code, "Message": "canary"}}, "AssumeRole")

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    "takes, expected, final",
    [
        (lambda given: "" if given == "issued-by-us" else "AccessDenied", Status.VALID, False),
        (lambda given: "", Status.INVALID, True),
        (lambda given: "AccessDenied", Status.INVALID, False),
        (lambda given: "" if given == "issued-by-us" else "Throttling", Status.PENDING, False),
    ],
    ids=["asks for ours", "asks for none", "asks for another", "nobody can tell"],
)
async def test_a_role_that_any_tenant_could_have_us_assume_is_refused(monkeypatch, takes, expected, final):
    sts = Sts(takes)
    monkeypatch.setattr(module.boto3, "Session", lambda *_: sts)
    verdict = await ask(Provider.AWS, Kind.ROLE, ROLE, {}, external_id="issued-by-us")
    assert (verdict.status, verdict.final, verdict.asked) == (expected, final, True)
    assert ("issued-by-us" in verdict.reason) == (expected is Status.INVALID) and "canary" not in verdict.reason
    assert sts.closed


async def test_without_an_identity_of_ours_no_role_is_judged(monkeypatch):
    """Its own session asks AWS, not a stand-in; here it has no keys, and nothing leaves the machine."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    verdict = await ask(Provider.AWS, Kind.ROLE, ROLE, {}, external_id="issued-by-us")
    assert (verdict.status, verdict.asked) == (Status.PENDING, True)


@pytest.mark.parametrize(
    "status, body, expected",
    [
        (200, b'{"access_token": "canary"}', "VALID"),
        (401, b'{"error": "invalid_client", "error_description": "canary"}', "INVALID"),
        (400, b'{"error":"unauthorized_client"}', "INVALID"),
        (400, b'{"error":"temporarily_unavailable"}', "PENDING"),
        (302, b"", "PENDING"),
        (503, b"", "PENDING"),
    ],
)
async def test_azure_service_principals_are_tried_at_microsoft_s_authority(cloud, monkeypatch, status, body, expected):
    monkeypatch.setattr(module, "_ENTRA", cloud.url)
    cloud.status, cloud.body, cloud.headers = status, body, {"location": "http://127.0.0.1:1/evil"}
    verdict = await ask(Provider.AZURE, Kind.SERVICE_PRINCIPAL, PRINCIPAL, {})
    assert verdict.status == expected
    assert "canary" not in verdict.reason
    [(method, path, _, sent)] = cloud.requests
    assert (method, path) == ("POST", f"/{GUID}/oauth2/v2.0/token")
    assert b"grant_type=client_credentials" in sent


@pytest.mark.parametrize(
    "status, expected", [(200, "VALID"), (403, "INVALID"), (404, "PENDING"), (302, "PENDING"), (500, "PENDING")]
)
async def test_azure_signatures_list_one_blob(cloud, status, expected, caplog):
    caplog.set_level(logging.DEBUG)
    cloud.status = status
    source = {"endpoint_url": f"{cloud.url}/acme", "container": "exports"}
    verdict = await ask(Provider.AZURE, Kind.SAS, {"sas_token": SAS}, source)
    assert verdict.status == expected
    [(method, path, _, _)] = cloud.requests
    assert (method, path) == ("GET", f"/acme/exports?restype=container&comp=list&maxresults=1&{SAS}")
    assert "canary" not in verdict.reason + caplog.text


async def test_a_signature_without_a_container_is_not_asked_about():
    verdict = await ask(Provider.AZURE, Kind.SAS, {"sas_token": SAS}, {"storage_account": "acme"})
    assert (verdict.status, verdict.asked) == (Status.PENDING, False)


async def test_whatever_breaks_inside_is_pending(monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("canary")

    monkeypatch.setattr(module, "_http", broken)
    verdict = await ask(Provider.AZURE, Kind.SERVICE_PRINCIPAL, PRINCIPAL, {})
    assert verdict.status is Status.PENDING and "canary" not in verdict.reason
