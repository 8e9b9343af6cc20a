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
from libs.bigquery import Warehouse
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
