"""The main job through the real gateway: onboard, credential, run, read back; over HTTP, then over gRPC.

Totals are compared with sums made at the source by the BigQuery API, past all of our code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from convergence.credential.v1 import credential_pb2, credential_pb2_grpc
from convergence.pipeline_executor.v1 import pipeline_executor_pb2, pipeline_executor_pb2_grpc
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from google.protobuf import json_format, struct_pb2

from tests.support.stack import Stack, Tenant, source_totals, until

DATE = "2025-11-17"
STEPS = ["extract", "load", "transform", "focus", "quality", "publish"]
CENTRAL = {
    "tenant_profiles",
    "tenant_api_keys",
    "tenant_subscriptions",
    "tenant_usage_quotas",
    "tenant_cloud_credentials",
    "tenant_pipeline_configs",
    "scheduled_pipeline_runs",
    "pipeline_execution_queue",
}


@pytest.fixture(scope="module")
def tenant(stack: Stack) -> Tenant:
    """A tenant with the sample credential."""
    made = stack.onboard(plan="PROFESSIONAL")
    made.store_credential()
    return made


@pytest.fixture(scope="module")
def first(tenant: Tenant) -> dict[str, Any]:
    """Its first run, ended."""
    started = tenant.start(date=DATE, idempotency_key="first", user_id="alice@example.com")
    assert started["status"] in ("PENDING", "RUNNING")
    ended = tenant.wait(started["pipeline_logging_id"])
    assert ended["status"] == "COMPLETED", ended
    return ended


def sample_totals(stack: Stack, date: str = DATE) -> dict[str, Any]:
    source = stack.sample_credential["source"]
    return source_totals(stack, source["project_id"], source["dataset_id"], source["table_id"], date)


def error(answer: dict[str, Any]) -> str:
    """The reason of an error's body."""
    [info] = [one for one in answer["details"] if one["@type"].endswith("ErrorInfo")]
    return str(info["reason"])


# --- flow 0: onboard -------------------------------------------------------------------------------------------------


def test_the_central_dataset_holds_its_eight_tables(stack: Stack) -> None:
    assert {table.table_id for table in stack.bigquery().list_tables("tenants")} >= CENTRAL


def test_onboarding_makes_key_dataset_and_run_tables(stack: Stack) -> None:
    tenant_id = f"t_{uuid.uuid4().hex[:12]}"
    body = {
        "tenant_id": tenant_id,
        "company_name": "Test Corp",
        "admin_email": "test@test.com",
        "subscription_plan": "PROFESSIONAL",
    }
    with stack.admin() as http:
        answer = http.post("/api/v1/tenants/onboard", json=body)
        again = http.post("/api/v1/tenants/onboard", json=body)
    made = answer.json()
    assert answer.status_code == 200, made
    assert (made["tenant_id"], made["dataset_status"]) == (tenant_id, "CREATED")
    assert set(made["tables_created"]) == {"x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"}
    assert again.status_code == 409
    assert again.json()["code"] == 6, "ALREADY_EXISTS"

    read = Tenant(stack, tenant_id, made["api_key"]).call("GET", f"/tenants/{tenant_id}")
    assert (read["company_name"], read["subscription_plan"], read["state"]) == ("Test Corp", "PROFESSIONAL", "ACTIVE")
    usage = Tenant(stack, tenant_id, made["api_key"]).usage()
    limits = {name: usage[name]["limit"] for name in ("daily", "monthly", "concurrent")}
    assert limits == {"daily": 25, "monthly": 750, "concurrent": 3}
    hashed = stack.rows(f"SELECT * FROM tenant_api_keys WHERE tenant_id = '{tenant_id}'", dataset="tenants")
    assert len(hashed) == 1
    assert made["api_key"] not in json.dumps(hashed, default=str)


def test_onboarding_is_open_in_the_local_stack(stack: Stack) -> None:
    tenant_id = f"t_{uuid.uuid4().hex[:12]}"
    body = {"tenant_id": tenant_id, "company_name": "C", "admin_email": "a@b.co", "subscription_plan": "STARTER"}
    with stack.http() as http:
        assert http.post("/api/v1/tenants/onboard", json=body).status_code == 200


@pytest.mark.parametrize("tenant_id", ["tenants", "x_meta", "Upper", "a", "1st", "with-dash", "onboard", "ends\n"])
def test_a_bad_tenant_id_is_refused(stack: Stack, tenant_id: str) -> None:
    body = {"tenant_id": tenant_id, "company_name": "C", "admin_email": "a@b.co", "subscription_plan": "STARTER"}
    with stack.admin() as http:
        assert http.post("/api/v1/tenants/onboard", json=body).status_code == 400


# --- flow 1: credential ----------------------------------------------------------------------------------------------


def test_a_credential_goes_in_and_never_comes_out(stack: Stack) -> None:
    tenant = stack.onboard()
    made = tenant.store_credential()
    assert (made["tenant_id"], made["provider"], made["action"]) == (tenant.tenant_id, "GCP", "CREATED")
    assert made["dataset_status"] == "TABLES_CREATED"
    assert tenant.store_credential()["action"] == "UPDATED"
    listed = tenant.call("GET", f"/tenants/{tenant.tenant_id}/credentials")
    [known] = listed["credentials"]
    assert known["source"] == stack.sample_credential["source"]
    secret = stack.sample_credential["credentials"]["private_key"]
    body = secret.splitlines()[1]
    stored = stack.rows(
        f"SELECT * FROM tenant_cloud_credentials WHERE tenant_id = '{tenant.tenant_id}'", dataset="tenants"
    )
    assert len(stored) == 1
    for text in (json.dumps(made), json.dumps(listed), json.dumps(stored, default=str)):
        assert body not in text


def test_without_a_credential_nothing_runs_and_nothing_is_charged(stack: Stack) -> None:
    tenant = stack.onboard()
    refused = tenant.start(date=DATE, expect=400)
    assert error(refused) == "CREDENTIAL_NOT_FOUND"
    assert tenant.usage()["daily"]["used"] == 0


# --- flow 2: run -----------------------------------------------------------------------------------------------------


def test_the_run_publishes_what_the_source_holds(stack: Stack, tenant: Tenant, first: dict[str, Any]) -> None:
    assert (first["provider"], first["domain"], first["template"]) == ("gcp", "cost", "billing")
    assert (first["start_date"], first["end_date"], first["trigger"]) == (DATE, DATE, "MANUAL")
    assert (first["outcome"], first["user_id"], first.get("error")) == ("PUBLISHED", "alice@example.com", None)
    expected = sample_totals(stack)
    assert len(expected) >= 2, "the sample has a second currency"
    assert tenant.totals(DATE) == expected
    assert int(first["rows_published"]) == sum(total.row_count for total in expected.values())
    assert any(total.credits for total in expected.values())


def test_the_run_can_be_read_back(stack: Stack, tenant: Tenant, first: dict[str, Any]) -> None:
    run_id = first["pipeline_logging_id"]
    path = f"/pipelines/runs/{tenant.tenant_id}"
    steps = tenant.call("GET", f"{path}/{run_id}/steps")["steps"]
    assert [(step["step"], step["status"]) for step in steps] == [(name, "COMPLETED") for name in STEPS]
    assert all(step["start_time"] <= step["end_time"] for step in steps)
    assert [step["step"] for step in first["steps"]] == STEPS
    checks = tenant.call("GET", f"{path}/{run_id}/dq-results")["dq_results"]
    assert {check["status"] for check in checks} == {"PASS"}
    assert {check["check_name"] for check in checks} >= {"row_count_equals_source", "cost_equals_source"}
    runs = tenant.call("GET", path)["runs"]
    assert run_id in [run["pipeline_logging_id"] for run in runs]
    for table in ("x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"):
        sql = f"SELECT tenant_id, user_id FROM {table} WHERE pipeline_logging_id = '{run_id}'"
        rows = stack.rows(sql, dataset=tenant.tenant_id)
        assert rows, table
        assert {(row["tenant_id"], row["user_id"]) for row in rows} == {(tenant.tenant_id, "alice@example.com")}


def test_the_same_idempotency_key_is_the_same_run(tenant: Tenant, first: dict[str, Any]) -> None:
    before = tenant.usage()["daily"]["used"]
    again = tenant.start(date=DATE, idempotency_key="first", user_id="alice@example.com")
    assert again["pipeline_logging_id"] == first["pipeline_logging_id"]
    assert again["status"] == "COMPLETED"
    tenant.start(date="2025-11-16", idempotency_key="first", expect=400)
    assert tenant.usage()["daily"]["used"] == before


def test_running_again_changes_nothing(tenant: Tenant, first: dict[str, Any]) -> None:
    before = tenant.stored(DATE)
    again = tenant.run(date=DATE)
    assert again["pipeline_logging_id"] != first["pipeline_logging_id"]
    assert again["outcome"] == "UNCHANGED"
    forced = tenant.run(date=DATE, parameters={"force": True})
    assert forced["outcome"] == "PUBLISHED"
    assert tenant.stored(DATE) == before
    assert len(before) == int(first["rows_published"])


def test_a_window_replaces_its_dates_only(stack: Stack, tenant: Tenant, first: dict[str, Any]) -> None:
    before = tenant.stored(DATE)
    run = tenant.run(start_date="2025-11-14", end_date="2025-11-16")
    published = 0
    for date in ("2025-11-14", "2025-11-15", "2025-11-16"):
        assert tenant.totals(date) == sample_totals(stack, date)
        published += len(tenant.stored(date))
    assert int(run["rows_published"]) == published
    assert tenant.stored(DATE) == before


def test_a_date_without_rows_is_no_data(tenant: Tenant) -> None:
    run = tenant.run(date="2019-01-01")
    assert (run["outcome"], int(run["rows_published"])) == ("NO_DATA", 0)


def test_what_was_used_is_what_was_run(stack: Stack) -> None:
    tenant = stack.onboard(plan="PROFESSIONAL")
    tenant.store_credential()
    for _ in range(2):
        tenant.run(date=DATE)
    # A reservation is settled after the run's row has ended: a moment later, never before.
    usage = until(
        tenant.usage, lambda now: now["concurrent"]["used"] == 0, timeout=15, what="all is settled", pause=0.5
    )
    assert usage["daily"]["used"] == 2
    [row] = stack.rows(
        "SELECT pipelines_run_today, pipelines_run_month, concurrent_running FROM tenant_usage_quotas "
        f"WHERE tenant_id = '{tenant.tenant_id}'",
        dataset="tenants",
    )
    assert list(row.values()) == [2, 2, 0]


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        ({"date": "2999-01-01"}, "gcp/cost/billing", 400),
        ({"date": "17.11.2025"}, "gcp/cost/billing", 400),
        ({"date": "2025-02-30"}, "gcp/cost/billing", 400),
        ({"start_date": "2025-11-17", "end_date": "2025-11-01"}, "gcp/cost/billing", 400),
        ({"date": DATE, "parameters": {"unheard_of": 1}}, "gcp/cost/billing", 400),
        ({"date": DATE, "parameters": {"source": {"unheard_of": 1}}}, "gcp/cost/billing", 400),
        ({"date": DATE}, "gcp/cost/unheard_of", 404),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_reserved(
    tenant: Tenant, body: dict[str, Any], path: str, status: int
) -> None:
    before = tenant.usage()["daily"]["used"]
    tenant.call("POST", f"/pipelines/run/{tenant.tenant_id}/{path}", body, expect=status)
    assert tenant.usage()["daily"]["used"] == before


def test_watching_a_run_ends_with_it(stack: Stack, tenant: Tenant) -> None:
    run_id = tenant.start(date=DATE)["pipeline_logging_id"]
    path = f"/api/v1/pipelines/runs/{tenant.tenant_id}/{run_id}:watch"
    with stack.http(tenant.key) as http, http.stream("GET", path) as answer:
        assert answer.status_code == 200
        seen = [json.loads(line) for line in answer.iter_lines() if line]
    assert seen[-1]["run"]["status"] == "COMPLETED"
    assert seen[-1]["percent"] == 100
    percents = [one["percent"] for one in seen]
    assert percents == sorted(percents)


# --- the same over gRPC ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    """A plain gRPC channel to the gateway."""
    with grpc.insecure_channel(stack.grpc) as channel:
        yield channel


def test_all_flows_over_grpc(stack: Stack, channel: grpc.Channel) -> None:
    tenants = tenant_pb2_grpc.TenantServiceStub(channel)
    credentials = credential_pb2_grpc.CredentialServiceStub(channel)
    pipelines = pipeline_executor_pb2_grpc.PipelineServiceStub(channel)
    tenant_id = f"t_{uuid.uuid4().hex[:12]}"
    onboarded = tenants.OnboardTenant(
        tenant_pb2.OnboardTenantRequest(
            tenant_id=tenant_id,
            company_name="Over gRPC",
            admin_email="grpc@example.com",
            subscription_plan=tenant_pb2.Tenant.SCALE,
        ),
        metadata=[("x-api-key", stack.admin_api_key)],
        timeout=60,
    )
    key = [("x-api-key", onboarded.api_key), ("x-user-id", "bob")]
    secret, source = struct_pb2.Struct(), struct_pb2.Struct()
    secret.update(stack.sample_credential["credentials"])
    source.update(stack.sample_credential["source"])
    stored = credentials.CreateCredential(
        credential_pb2.CreateCredentialRequest(tenant_id=tenant_id, provider="gcp", credentials=secret, source=source),
        metadata=key,
        timeout=60,
    )
    assert stored.action == credential_pb2.CreateCredentialResponse.CREATED
    request = pipeline_executor_pb2.RunPipelineRequest(
        tenant_id=tenant_id, provider="gcp", domain="cost", template="billing", date=DATE, request_id="once"
    )
    started = pipelines.RunPipeline(request, metadata=key, timeout=30)
    again = pipelines.RunPipeline(request, metadata=key, timeout=30)
    assert again.pipeline_logging_id == started.pipeline_logging_id
    watch = pipeline_executor_pb2.WatchRunRequest(tenant_id=tenant_id, pipeline_logging_id=started.pipeline_logging_id)
    *_, last = pipelines.WatchRun(watch, metadata=key, timeout=120)
    assert last.run.status == pipeline_executor_pb2.Run.COMPLETED, json_format.MessageToJson(last)
    ended = pipelines.GetRun(
        pipeline_executor_pb2.GetRunRequest(tenant_id=tenant_id, pipeline_logging_id=started.pipeline_logging_id),
        metadata=key,
        timeout=30,
    )
    assert (ended.user_id, [step.step for step in ended.steps]) == ("bob", STEPS)
    assert Tenant(stack, tenant_id, onboarded.api_key).totals(DATE) == sample_totals(stack)


def test_grpc_without_a_key_is_refused(channel: grpc.Channel) -> None:
    tenants = tenant_pb2_grpc.TenantServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        tenants.GetTenant(tenant_pb2.GetTenantRequest(tenant_id="test_001"), timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def buf_curl(stack: Stack, method: str, body: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Calls an rpc by reflection through the gateway with buf's own client."""
    return subprocess.run(
        [
            Path(sys.executable).parent / "buf",
            "curl",
            "--protocol",
            "grpc",
            "--http2-prior-knowledge",
            *arguments,
            "--reflect-header",
            "*",
            "-d",
            json.dumps(body),
            f"http://{stack.grpc}/{method}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_buf_curl_by_reflection(stack: Stack, tenant: Tenant) -> None:
    method = "convergence.tenant.v1.TenantService/GetTenant"
    key = ("-H", f"x-api-key: {tenant.key}")
    done = buf_curl(stack, method, {"tenant_id": tenant.tenant_id}, *key)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tenantId"] == tenant.tenant_id
    hidden = buf_curl(stack, method, {"tenant_id": "nobody_here"}, *key)
    assert hidden.returncode != 0
    assert "not_found" in hidden.stderr


# --- figures ---------------------------------------------------------------------------------------------------------


def test_each_process_publishes_what_it_did(stack: Stack, tenant: Tenant, first: dict[str, Any]) -> None:
    def executor(name: str, *labels: str) -> float:
        return stack.figure("pipeline_executor", name, *labels)

    assert executor("convergence_runs_ended_total", 'provider="gcp"', 'status="COMPLETED"') >= 1
    assert executor("convergence_rows_published_total", 'domain="cost"') >= int(first["rows_published"])
    assert executor("convergence_statements_total", "pipelines/gcp/cost/publish.sql") >= 1
    for operation in ('operation="encrypt"', 'operation="decrypt"'):
        assert stack.figure("credential", "convergence_kms_calls_total", operation, 'outcome="OK"') >= 1
    assert stack.figure("tenant", "convergence_rpcs_total", "TenantQuotaService.ReserveRun", 'code="OK"') >= 1
    assert stack.figure("tenant", "convergence_statements_total", "replace_quotas.sql", 'operation="group_commit"') >= 1
    assert stack.figure("tenant", "convergence_keys_read_timestamp_seconds") > 0
    executor_says = httpx.get(stack.metrics["pipeline_executor"], timeout=30).text
    for provider in ("aws", "azure", "gcp"):  # an alarm sees an increase only of what was there before
        assert f'convergence_rows_quarantined_total{{domain="cost",provider="{provider}"}}' in executor_says
    for url in stack.metrics.values():
        assert tenant.tenant_id not in httpx.get(url, timeout=30).text


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_log_and_no_row(stack: Stack, tenant: Tenant, first: dict[str, Any]) -> None:
    lines = stack.sample_credential["credentials"]["private_key"].splitlines()[1:-1]
    secret_part = tenant.key[-40:-10]  # without the public key id before it and the checksum behind
    tokens = [path.read_text().strip() for path in (Path(stack.data_dir) / "peers").glob("*.token")]
    secrets = {lines[0], lines[5], tenant.key, secret_part, stack.admin_api_key, *tokens}
    for name, text in stack.logs().items():
        assert [secret for secret in secrets if secret in text] == [], name
    for dataset in ("tenants", tenant.tenant_id):
        for table in stack.bigquery().list_tables(dataset):
            rows = json.dumps(stack.rows(f"SELECT * FROM {table.table_id}", dataset=dataset), default=str)
            assert [secret for secret in secrets if secret in rows] == [], f"{dataset}.{table.table_id}"
