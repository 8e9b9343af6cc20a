"""Secrets put through success, refusal, failure, timeout and traceback of a whole stack are found nowhere again.

Looked for in what clients are told, every log, every row of the platform's and the tenant's datasets, the metrics, and
what BigQuery keeps of every statement.
The provider is a stand-in that refuses, breaks, hangs or hangs up, and always says back what it was sent.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, Tenant, until

HANGING = threading.Event()


class _Gossip(BaseHTTPRequestHandler):
    """A provider that answers with what it was asked; the first part of the path says how."""

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        how = self.path.split("/")[1].split("?")[0]
        if how == "hangup":
            self.connection.close()
            return
        if how == "hang":
            HANGING.wait(60)
        content = f"{self.requestline} {dict(self.headers)} {sent!r}".encode()
        self.send_response({"deny": 403, "hang": 403}.get(how, 500), "refused")
        self.send_header("content-length", str(len(content)))
        self.send_header("x-ms-error-code", "AuthenticationFailed")
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_HEAD = do_PUT = do_GET

    def handle(self) -> None:
        # Whoever asked has left, or was hung up on.
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def log_message(self, *_arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The stand-in's base URL."""
    HANGING.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gossip)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    HANGING.set()
    server.shutdown()
    thread.join(10)
    server.server_close()


def canary(length: int = 40) -> str:
    """A secret nobody else has, of letters only, so that no encoding changes it."""
    return "Canary" + "".join(
        secrets.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(length - 6)
    )


def sas(secret: str) -> dict[str, str]:
    return {"sas_token": f"sv=2022-11-02&sr=c&se=2126-01-01T00%3A00%3A00Z&sp=rl&sig={secret}"}


@pytest.mark.timeout(300)
def test_a_secret_is_found_nowhere_again(stack: Stack, provider: str) -> None:
    tenant = stack.onboard()
    birds: list[str] = []
    told: list[httpx.Response] = []

    def bird() -> str:
        birds.append(canary())
        return birds[-1]

    def post(name: str, of: str, credentials: dict[str, Any], how: str = "", **source: str) -> httpx.Response:
        body: dict[str, Any] = {"provider": of, "credentials": credentials, "name": name}
        if how:
            body["source"] = {"endpoint_url": f"{provider}/{how}", **source}
        with stack.http(tenant.key) as http:
            told.append(http.post(f"/api/v1/tenants/{tenant.tenant_id}/credentials", json=body))
        return told[-1]

    # What the provider refuses, cannot answer, answers never, and hangs up on; two kinds of secret, all at once.
    ways = ("deny", "broken", "hang", "hangup")
    pool = ThreadPoolExecutor(2 * len(ways))
    asked = []
    for how in ways:
        key = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": bird()}
        asked.append((how, pool.submit(post, f"key-{how}", "AWS", key, how)))
        asked.append((how, pool.submit(post, f"sas-{how}", "AZURE", sas(bird()), how, container="exports")))

    # Secrets where they do not belong: other fields, field names, the provider, the source, headers, the path.
    sample = stack.sample_credential["credentials"]
    for credentials in (
        sample | {"private_key": bird()},
        sample | {"token_uri": bird()},
        {bird(): bird()},
        {"access_key_id": bird(), "secret_access_key": bird()},
        {"sas_token": f"https://x/?sig={bird()}"},
    ):
        assert post("misplaced", "GCP", credentials).status_code == 400
    assert post("misplaced", birds[-1], sample).status_code == 400
    assert post("misplaced", "AWS", {"role_arn": bird()}).status_code == 400
    for headers in ({"X-API-Key": f"cvg_test_{bird()}"}, {"Authorization": f"Bearer {bird()}"}):
        told.append(httpx.get(f"{stack.rest}/api/v1/tenants/{tenant.tenant_id}", headers=headers))
        assert told[-1].status_code == 401

    # A secret that is read, opened and used: a validation, and a run that the provider refuses.
    assert post("default", "AZURE", sas(bird()), "broken", container="exports").status_code == 200
    listed = tenant.call("GET", f"/tenants/{tenant.tenant_id}/credentials")["credentials"]
    one = next(row for row in listed if row["name"] == "default")
    tenant.call("POST", f"/tenants/{tenant.tenant_id}/credentials/{one['credential_id']}:validate", {})
    source = {
        "endpoint_url": f"{provider}/deny",
        "storage_account": "acme",
        "container": "exports",
        "directory": "d",
        "export_name": "e",
    }
    ended = _run(tenant, source)
    assert ended["status"] == "FAILED", ended
    steps = tenant.call("GET", f"/pipelines/runs/{tenant.tenant_id}/{ended['pipeline_logging_id']}/steps")
    trail = tenant.call("GET", f"/tenants/{tenant.tenant_id}/audit?page_size=1000")
    actions = {(record["action"], record["outcome"]) for record in trail["audit_records"]}
    assert {("credential.create", "OK"), ("credential.create", "DENIED"), ("credential.open", "OK")} <= actions

    # A defect on the way: the stored ciphertext is damaged, so that opening it fails with a traceback.
    stack.rows(
        'UPDATE tenant_cloud_credentials SET secrets = REPLACE(secrets, \'"ciphertext": "\', \'"ciphertext": "AAAA\') '
        f"WHERE tenant_id = '{tenant.tenant_id}' AND name = 'default'",
        dataset="tenants",
    )
    with stack.http(tenant.key) as http:
        path = f"/api/v1/tenants/{tenant.tenant_id}/credentials/{one['credential_id']}:validate"
        told.append(http.post(path, json={}))
    assert told[-1].status_code == 500 and told[-1].json()["details"][0]["reason"] == "SECRET_UNREADABLE"
    until(
        lambda: stack.logs()["credential.log"], lambda log: "SECRET_UNREADABLE" in log, timeout=20, what="it is logged"
    )

    for how, one_of in asked:
        answer = one_of.result()
        expected = (400, None) if how == "deny" else (200, "PENDING")
        assert (answer.status_code, answer.json().get("status")) == expected, (how, answer.text)
    pool.shutdown()

    places = {
        "answers": json.dumps([listed, ended, steps, trail, [(one.text, str(one.headers)) for one in told]]),
        **stack.logs(),
        **{f"metrics of {name}": httpx.get(url).text for name, url in stack.metrics.items()},
    }
    for dataset in ("tenants", tenant.tenant_id):
        for table in stack.bigquery().list_tables(dataset):
            rows = stack.rows(f"SELECT * FROM `{table.table_id}`", dataset=dataset)
            places[f"{dataset}.{table.table_id}"] = json.dumps(rows, default=str)
    # What BigQuery keeps of each statement: its text, its parameters, its labels.
    places["jobs"] = repr([job._properties for job in stack.bigquery().list_jobs(max_results=2_000)])
    assert "tenant_cloud_credentials" in places["jobs"]
    assert "Traceback" in places["credential.log"] and len(birds) > 15 and len(places) > 15
    for place, text in places.items():
        assert [secret for secret in birds if secret in text] == [], place


def _run(tenant: Tenant, source: dict[str, str]) -> dict[str, Any]:
    path = f"/pipelines/run/{tenant.tenant_id}/azure/cost/billing"
    started = tenant.call("POST", path, {"date": "2025-11-17", "parameters": {"source": source}})
    return tenant.wait(started["pipeline_logging_id"])
