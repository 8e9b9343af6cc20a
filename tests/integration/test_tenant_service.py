"""The tenant process on the emulator: onboarding, keys, quotas and life through its real ports."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from convergence.tenant.v1 import tenant_pb2 as pb
from convergence.tenant.v1 import tenant_pb2_grpc as pb_grpc

from libs import errors
from libs.bigquery import Sql, Warehouse
from tests.support.tenant import Replica, key, make_settings


@pytest.fixture
async def replica(central: Warehouse, project_id: str, tmp_path: Path) -> AsyncIterator[Replica]:
    async with Replica(make_settings(tmp_path, project_id, onboarding="open"), central) as running:
        yield running


async def onboard(replica: Replica, tenant_id: str, plan: pb.Tenant.Plan.ValueType = pb.Tenant.STARTER) -> str:
    request = pb.OnboardTenantRequest(
        tenant_id=tenant_id, company_name="Test Corp", admin_email="test@test.com", subscription_plan=plan
    )
    answer = await replica.public().OnboardTenant(request, metadata=key())
    return answer.api_key


async def test_onboarding_makes_a_tenant_that_can_be_read_with_its_key(replica: Replica, central: Warehouse) -> None:
    request = pb.OnboardTenantRequest(
        tenant_id="test_001",
        company_name="Test Corp",
        admin_email="test@test.com",
        subscription_plan=pb.Tenant.PROFESSIONAL,
    )
    made = await replica.public().OnboardTenant(request)
    assert made.tenant_id == "test_001"
    assert made.dataset_status == pb.OnboardTenantResponse.CREATED
    assert sorted(made.tables_created) == ["x_meta_dq_results", "x_meta_pipeline_runs", "x_meta_step_logs"]
    assert await central.list_tables("test_001") == sorted(made.tables_created)

    tenant = await replica.public().GetTenant(pb.GetTenantRequest(tenant_id="test_001"), metadata=key(made.api_key))
    assert (tenant.company_name, tenant.admin_email) == ("Test Corp", "test@test.com")
    assert tenant.state == pb.Tenant.ACTIVE
    assert tenant.subscription_plan == pb.Tenant.PROFESSIONAL
    assert (tenant.daily_limit, tenant.monthly_limit, tenant.concurrent_limit) == (25, 750, 3)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replica.public().OnboardTenant(request)
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS

    dataset = await central.get_dataset("test_001")
    assert dataset is not None and "onboarding" not in dataset.labels


async def test_the_gateway_is_told_who_a_key_is(replica: Replica) -> None:
    text = await onboard(replica, "authz_a")
    async with httpx.AsyncClient() as http:
        path = f"{replica.authz}/api/v1/tenants/authz_a"
        allowed = await http.get(path, headers={"x-api-key": text})
        assert allowed.status_code == 200
        assert allowed.headers["x-tenant-id"] == "authz_a"
        assert allowed.headers["x-role"] == "ADMIN"
        assert allowed.headers["x-key-id"] == text.split("_")[2]
        assert allowed.headers["x-envoy-auth-headers-to-remove"] == "x-api-key"

        admin = await http.get(path, headers=dict(key()))
        assert (admin.headers["x-tenant-id"], admin.headers["x-role"]) == ("", "PLATFORM_ADMIN")

        for bad in ({}, {"x-api-key": text[:-1] + "x"}, {"x-api-key": f"{text},{text}"}, {"x-api-key": ""}):
            refused = await http.get(path, headers=bad)
            assert refused.status_code == 401
            assert refused.json()["details"][0]["reason"].startswith("API_KEY_")
            assert "x-tenant-id" not in refused.headers

        onboarding = await http.post(f"{replica.authz}/api/v1/tenants/onboard")
        assert (onboarding.status_code, onboarding.headers["x-role"]) == (200, "ONBOARDER")
        assert (await http.get(f"{replica.authz}/api/v1/tenants")).status_code == 401


async def test_reserving_settling_and_usage(replica: Replica) -> None:
    text = await onboard(replica, "quota_a")
    quota = replica.internal(pb_grpc.TenantQuotaServiceStub)
    run = str(uuid.uuid4())
    wanted = pb.ReserveRunRequest(tenant_id="quota_a", run_id=run, attempt=1, owner="me", fingerprint="f")
    first = await quota.ReserveRun(wanted)
    assert first.created and first.grant.state == pb.Grant.LIVE
    again = await quota.ReserveRun(wanted)
    assert not again.created and again.grant == first.grant

    with pytest.raises(errors.ResourceExhausted) as full:
        await quota.ReserveRun(
            pb.ReserveRunRequest(tenant_id="quota_a", run_id=str(uuid.uuid4()), attempt=1, owner="me")
        )
    assert full.value.reason == "QUOTA_CONCURRENT_EXCEEDED"
    assert [item.quota_id for item in full.value.quota_violations] == ["CONCURRENT_RUNS"]
    assert full.value.retry_after is not None

    grants = [pb.RenewGrantsRequest.Key(tenant_id="quota_a", run_id=run, attempt=1)]
    grants.append(pb.RenewGrantsRequest.Key(tenant_id="nobody", run_id=run, attempt=1))
    renewed = await quota.RenewGrants(pb.RenewGrantsRequest(owner="me", grants=grants))
    assert [grant.run_id for grant in renewed.renewed] == [run]
    assert [item.tenant_id for item in renewed.lost] == ["nobody"]

    settled = await quota.SettleGrant(
        pb.SettleGrantRequest(tenant_id="quota_a", run_id=run, attempt=1, state=pb.Grant.SETTLED)
    )
    assert settled.grant.state == pb.Grant.SETTLED
    usage = await replica.public().GetUsage(pb.GetUsageRequest(tenant_id="quota_a"), metadata=key(text))
    assert (usage.daily.limit, usage.daily.used, usage.daily.remaining) == (6, 1, 5)
    assert (usage.monthly.used, usage.concurrent.used) == (1, 0)

    scheduler = replica.internal(pb_grpc.TenantQuotaServiceStub, "scheduler")
    found = await scheduler.ListAllowances(pb.ListAllowancesRequest(tenant_ids=["quota_a", "nobody"]))
    assert [(item.free_slots, item.daily_remaining) for item in found.allowances] == [(1, 5), (0, 0)]
    assert (await quota.ListExpiredGrants(pb.ListExpiredGrantsRequest())).grants == []
    assert (await scheduler.ResetDailyQuotas(pb.ResetDailyQuotasRequest())).reset_count == 0


async def test_ensuring_a_dataset_again_costs_no_statement(replica: Replica, central: Warehouse) -> None:
    await onboard(replica, "ensured")
    lifecycle = replica.internal(pb_grpc.TenantLifecycleServiceStub, "credential")
    first = await lifecycle.EnsureDataset(pb.EnsureDatasetRequest(tenant_id="ensured", provider=""))
    assert first.dataset_status == pb.OnboardTenantResponse.EXISTS and not first.tables_created
    state = await lifecycle.GetTenantState(pb.GetTenantStateRequest(tenant_id="ensured"))
    assert state.state == pb.Tenant.ACTIVE
    with pytest.raises(errors.NotFound):
        await lifecycle.EnsureDataset(pb.EnsureDatasetRequest(tenant_id="missing"))
    with pytest.raises(errors.InvalidArgument):
        await lifecycle.EnsureDataset(pb.EnsureDatasetRequest(tenant_id="ensured", provider="central"))


async def test_fifty_onboardings_of_one_id_make_one_tenant(replica: Replica, central: Warehouse) -> None:
    async def attempt() -> str:
        try:
            return await onboard(replica, "wanted")
        except grpc.aio.AioRpcError as exc:
            return exc.code().name

    answers = await asyncio.gather(*(attempt() for _ in range(50)))
    made = [answer for answer in answers if answer.startswith("cvg_test_")]
    assert len(made) == 1
    assert set(answers) - set(made) <= {"ALREADY_EXISTS", "ABORTED"}
    keys = await replica.public().ListApiKeys(pb.ListApiKeysRequest(tenant_id="wanted"), metadata=key(made[0]))
    assert [item.api_key_id for item in keys.api_keys] == [made[0].split("_")[2]]


async def call_code(work: grpc.aio.UnaryUnaryCall) -> str:
    """OK, or the code the call failed with."""
    try:
        await work
    except grpc.aio.AioRpcError as exc:
        return exc.code().name
    return "OK"


async def test_plan_suspension_and_their_rows(replica: Replica, central: Warehouse) -> None:
    text = await onboard(replica, "changing")
    public = replica.public()
    change = pb.UpdateTenantRequest(tenant_id="changing", company_name="New", subscription_plan=pb.Tenant.SCALE)
    tenant = await public.UpdateTenant(change, metadata=key(text))
    assert (tenant.company_name, tenant.daily_limit, tenant.subscription_plan) == ("New", 100, pb.Tenant.SCALE)
    assert tenant.update_time.ToDatetime() > tenant.create_time.ToDatetime()
    suspend = pb.SuspendTenantRequest(tenant_id="changing", reason="unpaid")
    assert (await public.SuspendTenant(suspend, metadata=key())).state == pb.Tenant.SUSPENDED
    assert await call_code(public.SuspendTenant(suspend, metadata=key(text))) == "PERMISSION_DENIED"
    assert (await public.GetTenant(pb.GetTenantRequest(tenant_id="changing"), metadata=key(text))).daily_limit == 100

    quota = replica.internal(pb_grpc.TenantQuotaServiceStub)
    wanted = pb.ReserveRunRequest(tenant_id="changing", run_id=str(uuid.uuid4()), attempt=1, owner="me")
    with pytest.raises(errors.FailedPrecondition) as refused:
        await quota.ReserveRun(wanted)
    assert refused.value.reason == "SUBSCRIPTION_INACTIVE"
    row = await _one(central, "tenant_profiles", "state, state_reason", "changing")
    assert row == {"state": "SUSPENDED", "state_reason": "unpaid"}
    back = await public.ReactivateTenant(pb.ReactivateTenantRequest(tenant_id="changing"), metadata=key())
    assert back.state == pb.Tenant.ACTIVE
    assert (await quota.ReserveRun(wanted)).created
    row = await _one(central, "tenant_subscriptions", "plan, daily_limit, state", "changing")
    assert row == {"plan": "SCALE", "daily_limit": 100, "state": "ACTIVE"}
    row = await _one(
        central, "tenant_usage_quotas", "pipelines_run_today, pipelines_run_month, concurrent_running", "changing"
    )
    assert row == {"pipelines_run_today": 1, "pipelines_run_month": 1, "concurrent_running": 1}


async def test_keys_are_rotated_and_revoked_on_the_store(replica: Replica) -> None:
    text = await onboard(replica, "rotating")
    public = replica.public()
    made = await public.CreateApiKey(pb.CreateApiKeyRequest(tenant_id="rotating", name="ci"), metadata=key(text))
    rotation = pb.RotateApiKeyRequest(tenant_id="rotating", api_key_id=made.api_key_id, overlap_seconds=3600)
    first, *rest = await asyncio.gather(
        *(public.RotateApiKey(rotation, metadata=key(text)) for _ in range(5)), return_exceptions=True
    )
    answers = [first, *rest]
    rotated = [answer for answer in answers if isinstance(answer, pb.NewApiKey)]
    codes = {answer.code().name for answer in answers if isinstance(answer, grpc.aio.AioRpcError)}
    assert len(rotated) == 1 and codes <= {"ABORTED", "FAILED_PRECONDITION"}
    listed = await public.ListApiKeys(pb.ListApiKeysRequest(tenant_id="rotating"), metadata=key(text))
    assert {item.api_key_id for item in listed.api_keys if item.name == "ci"} == {
        made.api_key_id,
        rotated[0].api_key_id,
    }
    assert all(item.state == pb.ApiKey.ACTIVE for item in listed.api_keys)
    usage = pb.GetUsageRequest(tenant_id="rotating")
    for live in (made.api_key, rotated[0].api_key):
        assert await call_code(public.GetUsage(usage, metadata=key(live))) == "OK"
        keys = pb.ListApiKeysRequest(tenant_id="rotating")
        assert await call_code(public.ListApiKeys(keys, metadata=key(live))) == "PERMISSION_DENIED"

    gone = pb.DeleteApiKeyRequest(tenant_id="rotating", api_key_id=made.api_key_id)
    for _ in range(2):
        assert (await public.DeleteApiKey(gone, metadata=key(text))).state == pb.ApiKey.REVOKED
    assert await call_code(public.GetUsage(usage, metadata=key(made.api_key))) == "UNAUTHENTICATED"

    page = await public.ListAuditRecords(
        pb.ListAuditRecordsRequest(tenant_id="rotating", page_size=2), metadata=key(text, x_user_id="alice")
    )
    more = await public.ListAuditRecords(
        pb.ListAuditRecordsRequest(tenant_id="rotating", page_token=page.next_page_token, page_size=2),
        metadata=key(text),
    )
    records = [*page.audit_records, *more.audit_records]
    assert [record.action for record in records] == [
        "api_key.revoke",
        "api_key.revoke",
        "api_key.rotate",
        "api_key.create",
    ]
    assert {record.actor for record in records} == {text.split("_")[2]}
    assert {record.outcome for record in records} == {"OK"} and all(record.request_id for record in records)
    only = pb.ListAuditRecordsRequest(tenant_id="rotating", action="tenant.onboard")
    found = await public.ListAuditRecords(only, metadata=key(text))
    assert [(record.action, record.actor) for record in found.audit_records] == [("tenant.onboard", "admin")]


async def test_offboarding_ends_with_the_dataset_gone(replica: Replica, central: Warehouse) -> None:
    text = await onboard(replica, "leaving")
    public = replica.public()
    usage = pb.GetUsageRequest(tenant_id="leaving")
    assert await call_code(public.GetUsage(usage, metadata=key(text))) == "OK"
    gone = pb.DeleteTenantRequest(tenant_id="leaving", delete_dataset=True)
    assert (await public.DeleteTenant(gone, metadata=key())).state == pb.Tenant.OFFBOARDING
    assert await call_code(public.GetUsage(usage, metadata=key(text))) == "UNAUTHENTICATED"
    for peer in ("credential", "scheduler"):
        lifecycle = replica.internal(pb_grpc.TenantLifecycleServiceStub, peer)
        listed = await lifecycle.ListOffboardingTenants(pb.ListOffboardingTenantsRequest())
        assert listed.tenant_ids == ["leaving"]
        await lifecycle.ConfirmOffboarding(pb.ConfirmOffboardingRequest(tenant_id="leaving"))
    async with asyncio.timeout(30):
        read = pb.GetTenantRequest(tenant_id="leaving")
        while (await public.GetTenant(read, metadata=key())).state != pb.Tenant.DELETED:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await central.get_dataset("leaving") is None
    assert (await public.DeleteTenant(gone, metadata=key())).state == pb.Tenant.DELETED
    again = pb.OnboardTenantRequest(
        tenant_id="leaving", company_name="x", admin_email="a@b.test", subscription_plan=pb.Tenant.STARTER
    )
    assert await call_code(public.OnboardTenant(again)) == "ALREADY_EXISTS"
    assert await central.get_dataset("leaving") is None
    listed = await public.ListTenants(pb.ListTenantsRequest(state=pb.Tenant.DELETED), metadata=key())
    assert [tenant.tenant_id for tenant in listed.tenants] == ["leaving"]


async def test_denials_are_in_the_tenants_own_trail(central: Warehouse, project_id: str, tmp_path: Path) -> None:
    async with Replica(make_settings(tmp_path, project_id, onboarding="open"), central) as running:
        admin = await onboard(running, "denied")
        public = running.public()
        made = await public.CreateApiKey(pb.CreateApiKeyRequest(tenant_id="denied"), metadata=key(admin))
        for _ in range(5):
            keys = pb.ListApiKeysRequest(tenant_id="denied")
            assert await call_code(public.ListApiKeys(keys, metadata=key(made.api_key))) == "PERMISSION_DENIED"
            other = pb.GetUsageRequest(tenant_id="somebody_else")
            assert await call_code(public.GetUsage(other, metadata=key(made.api_key))) == "NOT_FOUND"
        await public.DeleteApiKey(
            pb.DeleteApiKeyRequest(tenant_id="denied", api_key_id=made.api_key_id), metadata=key(admin)
        )
        for _ in range(3):
            usage = pb.GetUsageRequest(tenant_id="denied")
            assert await call_code(public.GetUsage(usage, metadata=key(made.api_key))) == "UNAUTHENTICATED"
    sql = Sql(
        "test/denials.sql",
        "SELECT a.reason, SUM(CAST(JSON_VALUE(a.details, '$.count') AS INT64)) AS n FROM audit_log AS a "
        "WHERE a.tenant_id = 'denied' AND a.action = 'access.deny' AND a.object_id = @key GROUP BY a.reason",
    )
    rows = await central.query(sql, dataset="tenants", params={"key": made.api_key_id})
    assert {row["reason"]: row["n"] for row in rows} == {"ROLE_TOO_LOW": 5, "TENANT_NOT_FOUND": 5, "REVOKED": 3}


async def test_last_use_is_written_in_one_statement_when_the_process_ends(
    central: Warehouse, project_id: str, tmp_path: Path
) -> None:
    async with Replica(make_settings(tmp_path, project_id, onboarding="open"), central) as running:
        texts = [await onboard(running, name) for name in ("used_a", "used_b")]
        for name, text in zip(("used_a", "used_b"), texts, strict=True):
            await running.public().GetUsage(pb.GetUsageRequest(tenant_id=name), metadata=key(text))
        before = central.statements["services.tenant/sql/touch_api_keys.sql"]
    assert central.statements["services.tenant/sql/touch_api_keys.sql"] == before + 1
    row = await _one(central, "tenant_api_keys", "last_used_at IS NOT NULL AS used", "used_a")
    assert row == {"used": True}


async def _one(central: Warehouse, table: str, columns: str, tenant_id: str) -> dict[str, object]:
    sql = Sql("test/one.sql", f"SELECT {columns} FROM {table} AS t WHERE t.tenant_id = @tenant_id")
    (row,) = await central.query(sql, dataset="tenants", params={"tenant_id": tenant_id})
    return row
