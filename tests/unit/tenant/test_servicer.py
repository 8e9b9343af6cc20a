"""The four servicers under grpc_testing: what goes in and out on the wire, and under which code."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest
from convergence.tenant.v1 import tenant_pb2 as pb
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from libs.finishing import Finishing
from libs.pages import Pages
from libs.tenancy import Caller, Role
from services.tenant.servicer import TenantAuthServicer, TenantLifecycleServicer, TenantQuotaServicer, TenantServicer
from tests.support.fakes import Clock
from tests.support.grpc import Reply, TestingServer, testing_server
from tests.support.tenant_world import ADMIN_KEY, Disk, Process

SERVICES = dict(pb.DESCRIPTOR.services_by_name)
ADMIN = Caller(Role.PLATFORM_ADMIN, key_id="admin")
SCHEDULER = Caller(None, peer="scheduler")


class Wire:
    """The process's servicers, called by whoever the test says."""

    def __init__(self) -> None:
        self.disk = Disk(Clock())
        self.process = process = Process(self.disk)
        asyncio.run(process.ring.refresh())
        pages, finishing = Pages(b"secret", default_size=100), Finishing()
        self._servicers = {
            SERVICES["TenantService"]: TenantServicer(
                process.tenants, process.onboarding, process.keys, process.quotas, pages, finishing, now=self.disk.clock
            ),
            SERVICES["TenantQuotaService"]: TenantQuotaServicer(process.quotas),
            SERVICES["TenantLifecycleService"]: TenantLifecycleServicer(process.tenants, finishing),
            SERVICES["TenantAuthService"]: TenantAuthServicer(process.ring.authenticate),
        }

    def call(self, service: str, method: str, request: Message, caller: Caller = ADMIN) -> Reply:
        with testing_server(self._servicers, caller=caller) as server:
            return self._invoke(server, service, method, request)

    def ok(self, service: str, method: str, request: Message, caller: Caller = ADMIN) -> Message:
        reply = self.call(service, method, request, caller)
        assert reply.code is grpc.StatusCode.OK, reply
        assert isinstance(reply.response, Message)
        return reply.response

    @staticmethod
    def _invoke(server: TestingServer, service: str, method: str, request: Message) -> Reply:
        return server.call(SERVICES[service].methods_by_name[method], request)


@pytest.fixture
def wire() -> Iterator[Wire]:
    yield Wire()


def onboard(wire: Wire, tenant_id: str = "acme", plan: int = pb.Tenant.STARTER) -> pb.OnboardTenantResponse:
    request = pb.OnboardTenantRequest(
        tenant_id=tenant_id, company_name="Acme", admin_email="a@acme.test", subscription_plan=plan
    )
    answer = wire.ok("TenantService", "OnboardTenant", request)
    assert isinstance(answer, pb.OnboardTenantResponse)
    return answer


def test_onboard_read_update_and_delete(wire: Wire) -> None:
    made = onboard(wire)
    assert (made.tenant_id, made.dataset_status) == ("acme", pb.OnboardTenantResponse.CREATED)
    assert made.api_key.startswith(f"cvg_test_{made.api_key_id}_")
    tenant = wire.ok("TenantService", "GetTenant", pb.GetTenantRequest(tenant_id="acme"))
    assert isinstance(tenant, pb.Tenant)
    assert (tenant.company_name, tenant.subscription_plan, tenant.state) == (
        "Acme",
        pb.Tenant.STARTER,
        pb.Tenant.ACTIVE,
    )
    assert (tenant.daily_limit, tenant.monthly_limit, tenant.concurrent_limit) == (6, 180, 1)
    assert tenant.create_time.ToJsonString() == "2025-11-17T12:00:00Z"

    change = pb.UpdateTenantRequest(tenant_id="acme", company_name="New", subscription_plan=pb.Tenant.SCALE)
    tenant = wire.ok("TenantService", "UpdateTenant", change)
    assert (tenant.company_name, tenant.admin_email, tenant.daily_limit) == ("New", "a@acme.test", 100)
    tenant = wire.ok("TenantService", "SuspendTenant", pb.SuspendTenantRequest(tenant_id="acme", reason="unpaid"))
    assert tenant.state == pb.Tenant.SUSPENDED
    tenant = wire.ok("TenantService", "ReactivateTenant", pb.ReactivateTenantRequest(tenant_id="acme"))
    assert tenant.state == pb.Tenant.ACTIVE
    tenant = wire.ok("TenantService", "DeleteTenant", pb.DeleteTenantRequest(tenant_id="acme"))
    assert tenant.state == pb.Tenant.OFFBOARDING

    for peer in ("credential", "scheduler"):
        caller = Caller(None, peer=peer)
        listed = wire.ok("TenantLifecycleService", "ListOffboardingTenants", pb.ListOffboardingTenantsRequest(), caller)
        assert listed.tenant_ids == ["acme"]
        confirmation = pb.ConfirmOffboardingRequest(tenant_id="acme")
        wire.ok("TenantLifecycleService", "ConfirmOffboarding", confirmation, caller)
        listed = wire.ok("TenantLifecycleService", "ListOffboardingTenants", pb.ListOffboardingTenantsRequest(), caller)
        assert listed.tenant_ids == []


HOSTILE = [
    "", "a", "ab", "1abc", "_abc", "Acme", "ACME", "acme\n", "acme ", " acme", "acme;drop", "acme.x", "acme-x",
    "acme/..", "acme`", "acme'", 'acme"', "acme\x00", "ａcme", "acmé", "асме", "x_acme", "tenants", "onboard",
    "information_schema", "a" * 51, "acme%20", "INFORMATION_SCHEMA", "acme*", "{acme}", "$acme", "acme\u200b",
    "../acme", "acme\\",
]  # fmt: skip


@pytest.mark.parametrize("tenant_id", HOSTILE)
def test_hostile_ids_are_refused_before_anything_is_touched(wire: Wire, tenant_id: str) -> None:
    request = pb.OnboardTenantRequest(
        tenant_id=tenant_id, company_name="x", admin_email="a@b.test", subscription_plan=pb.Tenant.STARTER
    )
    reply = wire.call("TenantService", "OnboardTenant", request)
    assert (reply.code, reply.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TENANT_ID_INVALID")
    for method in ("GetTenant", "DeleteTenant", "SuspendTenant", "GetUsage", "ListApiKeys", "ListAuditRecords"):
        made = SERVICES["TenantService"].methods_by_name[method].input_type._concrete_class(tenant_id=tenant_id)
        assert wire.call("TenantService", method, made).reason == "TENANT_NOT_FOUND"
    state = pb.GetTenantStateRequest(tenant_id=tenant_id)
    assert wire.call("TenantLifecycleService", "GetTenantState", state, SCHEDULER).reason == "TENANT_NOT_FOUND"
    assert wire.disk.datasets == {} and wire.disk.audit == []


def test_tenants_are_listed_in_pages_by_filter(wire: Wire) -> None:
    for number, plan in enumerate((pb.Tenant.STARTER, pb.Tenant.SCALE, pb.Tenant.STARTER, pb.Tenant.STARTER)):
        onboard(wire, f"tenant_{number}", plan)
    wire.ok("TenantService", "SuspendTenant", pb.SuspendTenantRequest(tenant_id="tenant_3"))

    def ids(**filters: int) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = pb.ListTenantsRequest(page_size=1, page_token=token, **filters)  # type: ignore[arg-type]
            page = wire.ok("TenantService", "ListTenants", request)
            assert len(page.tenants) <= 1
            found += [tenant.tenant_id for tenant in page.tenants]
            token = page.next_page_token
            if not token:
                return found

    assert ids() == ["tenant_0", "tenant_1", "tenant_2", "tenant_3"]
    assert ids(subscription_plan=pb.Tenant.STARTER) == ["tenant_0", "tenant_2", "tenant_3"]
    assert ids(subscription_plan=pb.Tenant.STARTER, state=pb.Tenant.ACTIVE) == ["tenant_0", "tenant_2"]
    assert ids(state=pb.Tenant.DELETED) == []
    first = wire.ok("TenantService", "ListTenants", pb.ListTenantsRequest(page_size=1))
    other = pb.ListTenantsRequest(page_size=1, page_token=first.next_page_token, state=pb.Tenant.ACTIVE)
    assert wire.call("TenantService", "ListTenants", other).reason == "PAGE_TOKEN_INVALID"


def test_keys_are_made_listed_rotated_and_revoked(wire: Wire) -> None:
    first = onboard(wire)
    made = wire.ok("TenantService", "CreateApiKey", pb.CreateApiKeyRequest(tenant_id="acme", name="ci"))
    assert made.role == pb.ApiKey.RUNNER and not made.HasField("expire_time")
    wire.disk.clock.advance(seconds=1)
    rotation = pb.RotateApiKeyRequest(tenant_id="acme", api_key_id=made.api_key_id, overlap_seconds=60)
    rotated = wire.ok("TenantService", "RotateApiKey", rotation)
    assert (rotated.name, rotated.role) == ("ci", pb.ApiKey.RUNNER)
    wire.disk.clock.advance(seconds=1)
    revoked = wire.ok(
        "TenantService", "DeleteApiKey", pb.DeleteApiKeyRequest(tenant_id="acme", api_key_id=rotated.api_key_id)
    )
    assert revoked.state == pb.ApiKey.REVOKED
    listed = wire.ok("TenantService", "ListApiKeys", pb.ListApiKeysRequest(tenant_id="acme", page_size=2))
    assert [key.api_key_id for key in listed.api_keys][:1] == [rotated.api_key_id]
    rest = pb.ListApiKeysRequest(tenant_id="acme", page_size=2, page_token=listed.next_page_token)
    more = wire.ok("TenantService", "ListApiKeys", rest)
    every = [*listed.api_keys, *more.api_keys]
    assert {key.api_key_id for key in every} == {first.api_key_id, made.api_key_id, rotated.api_key_id}
    secrets = [key.split("_")[3] for key in (first.api_key, made.api_key, rotated.api_key)]
    assert not any(secret in str(every) for secret in secrets)
    assert {key.last4 for key in every} == {secret[-4:] for secret in secrets}
    past = pb.CreateApiKeyRequest(tenant_id="acme")
    past.expire_time.FromDatetime(wire.disk.clock() - timedelta(seconds=1))
    assert wire.call("TenantService", "CreateApiKey", past).reason == "EXPIRE_TIME_PAST"
    unknown = pb.DeleteApiKeyRequest(tenant_id="acme", api_key_id="unknown")
    assert wire.call("TenantService", "DeleteApiKey", unknown).reason == "API_KEY_NOT_FOUND"


def test_a_refusal_carries_what_was_exhausted_and_when_to_come_back(wire: Wire) -> None:
    onboard(wire)
    request = pb.ReserveRunRequest(tenant_id="acme", run_id=str(uuid.uuid4()), attempt=1, owner="me", fingerprint="f")
    granted = wire.ok("TenantQuotaService", "ReserveRun", request)
    assert granted.created and granted.grant.state == pb.Grant.LIVE and granted.grant.day == "2025-11-17"
    assert granted.grant.until.ToJsonString() == "2025-11-17T12:01:00Z"
    request.run_id = str(uuid.uuid4())
    reply = wire.call("TenantQuotaService", "ReserveRun", request)
    assert (reply.code, reply.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_CONCURRENT_EXCEEDED")
    details = {detail.TypeName().rpartition(".")[2]: detail for detail in reply.status.details}
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert details["QuotaFailure"].Unpack(failure) and details["RetryInfo"].Unpack(retry)
    assert (failure.violations[0].subject, failure.violations[0].quota_id) == ("tenant:acme", "CONCURRENT_RUNS")
    assert retry.retry_delay.seconds == 60
    assert reply.trailers["retry-after"] == "60"
    assert reply.trailers["ratelimit-policy"] == '"concurrent_runs";q=1'


def test_grants_are_renewed_settled_and_listed(wire: Wire) -> None:
    onboard(wire)
    run_id = str(uuid.uuid4())
    wire.ok(
        "TenantQuotaService", "ReserveRun", pb.ReserveRunRequest(tenant_id="acme", run_id=run_id, attempt=1, owner="me")
    )
    wire.disk.clock.advance(seconds=30)
    keys = [pb.RenewGrantsRequest.Key(tenant_id=tenant, run_id=run_id, attempt=1) for tenant in ("acme", "nobody")]
    renewal = wire.ok("TenantQuotaService", "RenewGrants", pb.RenewGrantsRequest(owner="me", grants=keys))
    assert renewal.renewed[0].until.ToJsonString() == "2025-11-17T12:01:30Z"
    assert list(renewal.lost) == keys[1:]
    wire.disk.clock.advance(seconds=60)
    expired = wire.ok("TenantQuotaService", "ListExpiredGrants", pb.ListExpiredGrantsRequest())
    assert [grant.run_id for grant in expired.grants] == [run_id]
    settlement = pb.SettleGrantRequest(tenant_id="acme", run_id=run_id, attempt=1, state=pb.Grant.REAPED)
    settled = wire.ok("TenantQuotaService", "SettleGrant", settlement)
    assert settled.grant.state == pb.Grant.REAPED
    settlement.attempt = 2
    assert not wire.ok("TenantQuotaService", "SettleGrant", settlement).HasField("grant")
    allowances = pb.ListAllowancesRequest(tenant_ids=["nobody", "acme"])
    found = wire.ok("TenantQuotaService", "ListAllowances", allowances, SCHEDULER)
    assert [(item.state, item.free_slots, item.daily_remaining) for item in found.allowances] == [
        (pb.Tenant.STATE_UNSPECIFIED, 0, 0),
        (pb.Tenant.ACTIVE, 1, 5),
    ]
    wire.disk.clock.advance(timedelta(days=1))
    reset = wire.ok("TenantQuotaService", "ResetDailyQuotas", pb.ResetDailyQuotasRequest(), SCHEDULER)
    assert reset.reset_count == 1
    usage = wire.ok("TenantService", "GetUsage", pb.GetUsageRequest(tenant_id="acme"))
    assert [(day.date, day.used) for day in usage.history] == [("2025-11-17", 1)]
    assert (usage.daily.used, usage.monthly.used, usage.concurrent.used) == (0, 1, 0)
    assert usage.daily.reset_time.ToJsonString() == "2025-11-19T00:00:00Z"
    assert not usage.concurrent.HasField("reset_time")


def test_a_caller_hears_who_it_is(wire: Wire) -> None:
    runner = Caller(Role.RUNNER, "acme", "key_1")
    for caller, said in ((ADMIN, ("", "PLATFORM_ADMIN", "admin")), (runner, ("acme", "RUNNER", "key_1"))):
        answer = wire.ok("TenantService", "GetCaller", pb.GetCallerRequest(), caller)
        assert isinstance(answer, pb.Caller)
        assert (answer.tenant_id, answer.role, answer.api_key_id) == said


def test_authentication_for_the_other_contexts(wire: Wire) -> None:
    made = onboard(wire)
    asyncio.run(wire.process.ring.refresh())
    who = wire.ok("TenantAuthService", "Authenticate", pb.AuthenticateRequest(api_key=made.api_key), SCHEDULER)
    assert (who.tenant_id, who.role, who.api_key_id) == ("acme", "ADMIN", made.api_key_id)
    who = wire.ok("TenantAuthService", "Authenticate", pb.AuthenticateRequest(api_key=ADMIN_KEY), SCHEDULER)
    assert (who.tenant_id, who.role) == ("", "PLATFORM_ADMIN")
    reply = wire.call("TenantAuthService", "Authenticate", pb.AuthenticateRequest(api_key="nonsense"), SCHEDULER)
    assert (reply.code, reply.reason) == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")
    assert "nonsense" not in str(reply.status)


def test_a_provider_is_ensured(wire: Wire) -> None:
    onboard(wire)
    request = pb.EnsureDatasetRequest(tenant_id="acme", provider="GCP")
    made = wire.ok("TenantLifecycleService", "EnsureDataset", request, Caller(None, peer="credential"))
    assert (made.dataset_status, made.tables_created) == (pb.OnboardTenantResponse.EXISTS, ["gcp_cost"])
    request.provider = "oracle"
    reply = wire.call("TenantLifecycleService", "EnsureDataset", request, Caller(None, peer="credential"))
    assert reply.reason == "PROVIDER_UNKNOWN"
    state = wire.ok("TenantLifecycleService", "GetTenantState", pb.GetTenantStateRequest(tenant_id="acme"), SCHEDULER)
    assert state.state == pb.Tenant.ACTIVE
