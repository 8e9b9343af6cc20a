"""The doctor: what it finds, whether that is a failure, and that it says how to mend each thing.

Google's IAM is asked over HTTP from a server here that answers in its form; BigQuery and Cloud KMS are the
integration test's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials

from libs import errors
from libs.settings import ServiceSettings, load
from services.cli import api, cloud
from tests.support.cli import Gateway, Terminal

NOW = datetime.now(UTC)
ALL_PATHS = sorted(api.rest_paths())
CREDENTIAL = {"credential_id": "c1", "provider": "AWS", "name": "emea", "display": "…WXYZ"}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the gateway answers over plain HTTP, which here is no Envoy."""
    paths: dict[str, dict[str, Any]] = {}
    for call in ALL_PATHS:
        verb, path = call.split(" ")
        paths.setdefault(path, {})[verb.lower()] = {}
    answers = {
        "/health": (200, {"date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}"}, b""),
        "/openapi.json": (200, {}, json.dumps({"paths": paths}).encode()),
    }
    monkeypatch.setattr("services.cli.health.get", lambda profile, path: answers[path])
    return answers


@pytest.fixture
def healthy(gateway: Gateway, plain: dict[str, Any]) -> Gateway:
    """A tenant to whom nothing is wrong."""
    gateway.answers |= {
        "tenant.GetCaller": {"tenant_id": "acme", "role": "ADMIN", "api_key_id": "k1"},
        "tenant.GetTenant": {"state": "ACTIVE", "subscription_plan": "SCALE"},
        "tenant.GetUsage": {"daily": {"limit": 9, "remaining": 9}, "monthly": {"limit": 9, "remaining": 9}},
        "credential.ListCredentials": {"credentials": [{**CREDENTIAL, "status": "VALID"}]},
        "pipeline_executor.ListRuns": {"runs": [{"status": "COMPLETED"}]},
    }
    return gateway


def said(terminal: Terminal, *argv: str, code: int = 0) -> dict[str, dict[str, str]]:
    """The doctor's checks by name."""
    done = terminal.run("doctor", *argv, "--output", "json")
    assert done.exit_code == code, done.output
    return {f"{check['area']}: {check['name']}": check for check in json.loads(done.stdout)["checks"]}


def test_all_is_well(healthy: Gateway, acme: Terminal) -> None:
    assert {check["verdict"] for check in said(acme).values()} == {"OK"}
    assert not any(check["fix"] for check in said(acme).values())
    read = acme.run("doctor")
    assert read.exit_code == 0 and "fix:" not in read.stdout and "ok " in read.stdout


def test_what_is_wrong_with_a_tenant_comes_with_its_cure(healthy: Gateway, acme: Terminal) -> None:
    soon = NOW + timedelta(days=3)
    healthy.answers |= {
        "tenant.GetTenant": {"state": "SUSPENDED"},
        "tenant.GetUsage": {"daily": {"limit": 6, "used": 6}, "monthly": {"limit": 180, "remaining": 9}},
        "tenant.ListApiKeys": {"api_keys": [{"api_key_id": "k1", "expire_time": f"{soon:%Y-%m-%dT%H:%M:%SZ}"}]},
        "credential.ListCredentials": {
            "credentials": [{**CREDENTIAL, "status": "INVALID", "status_reason": "Revoked."}]
        },
        "pipeline_executor.ListRuns": {
            "runs": [{"status": "FAILED", "pipeline_logging_id": "0d3c", "error": {"message": "No bucket."}}]
        },
    }
    found = said(acme, code=1)
    assert found["tenant: state"]["verdict"] == "FAIL"
    assert found["tenant: quota"]["verdict"] == "WARN" and "convergence usage" in found["tenant: quota"]["fix"]
    assert found["key: expiry"]["fix"] == "convergence keys rotate"
    credential = found["tenant: credential aws/emea"]
    assert credential["verdict"] == "FAIL" and "Revoked." in credential["found"]
    assert credential["fix"] == "convergence credentials add aws --name emea --file KEY.json"
    assert found["tenant: last run"]["fix"] == "convergence logs 0d3c"
    healthy.answers["credential.ListCredentials"] = {"credentials": [{**CREDENTIAL, "status": "PENDING"}]}
    assert said(acme, code=1)["tenant: credential aws/emea"]["fix"] == "convergence credentials validate c1"
    healthy.answers["credential.ListCredentials"] = {}
    assert "credentials add" in said(acme, code=1)["tenant: credentials"]["fix"]


def test_the_gateway_and_this_machine(healthy: Gateway, acme: Terminal, plain: dict[str, Any]) -> None:
    plain["/health"] = (503, {"date": f"{NOW - timedelta(minutes=5):%a, %d %b %Y %H:%M:%S GMT}"}, b"")
    found = said(acme, code=1)
    assert found["gateway: health"]["verdict"] == "FAIL"
    assert found["machine: clock"]["verdict"] == "WARN" and "ahead of" in found["machine: clock"]["found"]
    described = json.loads(plain["/openapi.json"][2])
    del described["paths"]["/api/v1/whoami"]
    plain["/openapi.json"] = (200, {}, json.dumps(described).encode())
    older = said(acme, code=1)["gateway: version"]
    assert (
        older["verdict"] == "WARN" and "GET /api/v1/whoami" in older["found"] and "Upgrade the platform" in older["fix"]
    )
    described["paths"] |= {"/api/v1/whoami": {"get": {}}, "/api/v2/new": {"get": {}}}
    plain["/openapi.json"] = (200, {}, json.dumps(described).encode())
    assert "Upgrade the command line" in said(acme, code=1)["gateway: version"]["fix"]
    for body in (b"<html>", b"[]", b"{}"):
        plain["/openapi.json"] = (200, {}, body)
        assert said(acme, code=1)["gateway: version"]["verdict"] == "SKIPPED"
    (acme.directory / "profiles").chmod(0o755)
    assert said(acme, code=1)["machine: stored keys"]["fix"].startswith("chmod go= ")


def test_a_refused_key_ends_the_questions(healthy: Gateway, acme: Terminal) -> None:
    healthy.answers["tenant.GetCaller"] = errors.Unauthenticated("API_KEY_INVALID", "The API key is not valid.")
    found = said(acme, code=1)
    assert "convergence login" in found["key: accepted"]["fix"] and "request id" in found["key: accepted"]["found"]
    assert "tenant: state" not in found


def test_nobody_signed_in_is_the_first_thing_to_mend(nobody: Terminal) -> None:
    assert "convergence login" in said(nobody, code=1)["key: profile"]["fix"]


def test_the_platform(healthy: Gateway, admin: Terminal) -> None:
    ran = f"{NOW - timedelta(minutes=30):%Y-%m-%dT%H:%M:%SZ}"
    job = {"start_time": ran, "end_time": ran, "outcome": "OK"}
    healthy.answers |= {
        "tenant.GetCaller": {"role": "PLATFORM_ADMIN", "api_key_id": "admin"},
        "scheduler.GetStatus": {
            "jobs": [
                {**job, "job": "trigger"},
                {**job, "job": "process-queue"},
                {**job, "job": "reset-daily-quotas", "outcome": "STORE_UNAVAILABLE"},
            ]
        },
        "scheduler.ListDeadLetters": {"runs": [{"run_id": "0d3c"}]},
        "scheduler.CheckInvariants": {"invariants": [{"name": "duplicate_runs", "count": 1}], "violation_count": 1},
    }
    found = said(admin, code=1)
    assert found["scheduler: trigger"]["verdict"] == "OK"
    late = found["scheduler: process-queue"]
    assert late["verdict"] == "WARN" and late["fix"].endswith("convergence scheduler process-queue")
    assert found["scheduler: reset-daily-quotas"]["verdict"] == "FAIL"
    assert found["scheduler: dead letters"]["fix"] == "convergence queue dead-letters"
    assert found["scheduler: invariants"]["verdict"] == "FAIL"
    assert "duplicate_runs" in found["scheduler: invariants"]["found"]


# --- Google Cloud ----------------------------------------------------------------------------------------------------


class Iam(BaseHTTPRequestHandler):
    """``projects.testIamPermissions`` and ``projects.getIamPolicy``, as Resource Manager answers them."""

    granted: frozenset[str] = frozenset(cloud.PERMISSIONS)
    bindings: tuple[tuple[str, str], ...] = ()
    status = 200

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith(":testIamPermissions"):
            body: dict[str, Any] = {"permissions": sorted(set(asked["permissions"]) & self.granted)}
        else:
            body = {"bindings": [{"role": role, "members": [member]} for role, member in self.bindings]}
        answer = json.dumps(body).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def iam(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Iam]]]:
    class Mine(Iam):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    # Who calls is Google's own library's business; nobody is signed in to Google here.
    monkeypatch.setattr(google.auth, "default", lambda scopes: (AnonymousCredentials(), "p"))  # type: ignore[no-untyped-call]
    yield f"http://127.0.0.1:{server.server_port}/v1/projects", Mine
    server.shutdown()
    server.server_close()
    thread.join()


def settings(**given: str) -> ServiceSettings:
    return load(ServiceSettings, {"GCP_PROJECT_ID": "my-project", **given}, None)


def test_iam_names_what_is_missing_and_the_command_that_grants_it(iam: tuple[str, type[Iam]]) -> None:
    url, server = iam
    server.bindings = tuple(
        (role, f"serviceAccount:convergence-{who}@my-project.iam.gserviceaccount.com")
        for who, roles in cloud.PROJECT_ROLES.items()
        for role in roles
    )
    checks = list(cloud._iam(settings(), url))
    assert [check.verdict for check in checks] == ["OK"] * 6, checks
    server.granted = frozenset({"bigquery.jobs.create"})
    server.bindings = server.bindings[1:]
    mine, setup, *rest = cloud._iam(settings(), url)
    assert "missing: bigquery.datasets.create" in mine.found and "--role=roles/bigquery.user" in mine.fix
    assert setup.verdict == "WARN" and setup.fix == (
        "gcloud projects add-iam-policy-binding my-project --condition=None "
        "--member=serviceAccount:convergence-setup@my-project.iam.gserviceaccount.com --role=roles/bigquery.user"
    )
    assert {check.verdict for check in rest} == {"OK"}
    server.status = 403
    refused, unknown = cloud._iam(settings(), url)
    assert refused.verdict == "FAIL" and "gcloud services enable" in refused.fix and unknown.verdict == "SKIPPED"


def test_without_an_identity_the_operator_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(scopes: Any) -> Any:
        raise google.auth.exceptions.DefaultCredentialsError("none")

    monkeypatch.setattr(google.auth, "default", nobody)
    [check] = cloud._iam(settings(), "http://127.0.0.1:9")
    assert check.verdict == "FAIL" and "gcloud auth application-default login" in check.fix


def test_bad_settings_are_named_one_by_one() -> None:
    checks = list(cloud.examine({"GCP_PROJECT_ID": "Bad", "CORS_ORIGINS": "x"}))
    assert checks and {check.verdict for check in checks} == {"FAIL"}
    assert any("CORS_ORIGINS" in check.found for check in checks)
