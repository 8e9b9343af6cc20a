"""The tenant context's four gRPC services: decode, call, encode. No rules live here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from convergence.tenant.v1 import tenant_pb2 as pb
from convergence.tenant.v1 import tenant_pb2_grpc as pb_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from libs import caller
from libs.errors import InvalidArgument
from libs.finishing import Finishing
from libs.pages import Page, Pages
from libs.tenancy import Caller, Role, TenantId
from services.tenant.domain import AuditEntry, Edit, Tenant, Tenants
from services.tenant.keys import ApiKey, ApiKeys, NewKey
from services.tenant.onboarding import Application, Onboarding
from services.tenant.quotas import (
    Allowance,
    Grant,
    GrantState,
    Plan,
    Quota,
    Quotas,
    Reserve,
    Settle,
    TenantState,
    Usage,
)

type Context = grpc.aio.ServicerContext[Any, Any]


class TenantServicer(pb_grpc.TenantServiceServicer):
    """``TenantService``: public, through the gateway."""

    def __init__(
        self,
        tenants: Tenants,
        onboarding: Onboarding,
        keys: ApiKeys,
        quotas: Quotas,
        pages: Pages,
        finishing: Finishing,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._tenants = tenants
        self._onboarding = onboarding
        self._keys = keys
        self._quotas = quotas
        self._pages = pages
        self._finishing = finishing
        self._now = now

    async def OnboardTenant(self, request: pb.OnboardTenantRequest, context: Context) -> pb.OnboardTenantResponse:
        application = Application(
            TenantId.parse(request.tenant_id),
            request.company_name,
            request.admin_email,
            Plan(pb.Tenant.Plan.Name(request.subscription_plan)),
        )
        done = await self._finishing.to_its_end(self._onboarding.onboard(application))
        status = pb.OnboardTenantResponse.CREATED if done.dataset_created else pb.OnboardTenantResponse.EXISTS
        return pb.OnboardTenantResponse(
            tenant_id=application.tenant_id,
            api_key=done.key.text,
            api_key_id=done.key.key.api_key_id,
            dataset_status=status,
            tables_created=done.tables_created,
        )

    async def GetCaller(self, request: pb.GetCallerRequest, context: Context) -> pb.Caller:
        who = caller.current()
        return pb.Caller(tenant_id=who.tenant_id, role=who.role.value if who.role else "", api_key_id=who.key_id)

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Context) -> pb.ListTenantsResponse:
        state = TenantState(pb.Tenant.State.Name(request.state)) if request.state else None
        plan = Plan(pb.Tenant.Plan.Name(request.subscription_plan)) if request.subscription_plan else None
        listing = _Listing(self._pages, "tenants", {"state": state or "", "plan": plan or ""})
        page = listing.open(request)
        after = page.cursor[0] if page.cursor else ""
        found = await self._tenants.page(after, page.size + 1, state=state, plan=plan)
        shown, token = listing.cut(found, page, lambda tenant: [tenant.profile.tenant_id])
        return pb.ListTenantsResponse(tenants=[_tenant(tenant) for tenant in shown], next_page_token=token)

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.Tenant:
        return _tenant(await self._tenants.get(request.tenant_id))

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Context) -> pb.Tenant:
        edit = Edit(
            request.company_name if request.HasField("company_name") else None,
            request.admin_email if request.HasField("admin_email") else None,
        )
        plan = None
        if request.HasField("subscription_plan"):
            plan = Plan(pb.Tenant.Plan.Name(request.subscription_plan))
        return _tenant(await self._finishing.to_its_end(self._tenants.update(request.tenant_id, edit, plan)))

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: Context) -> pb.Tenant:
        work = self._tenants.offboard(request.tenant_id, delete_dataset=request.delete_dataset)
        return _tenant(await self._finishing.to_its_end(work))

    async def SuspendTenant(self, request: pb.SuspendTenantRequest, context: Context) -> pb.Tenant:
        return _tenant(await self._finishing.to_its_end(self._tenants.suspend(request.tenant_id, request.reason)))

    async def ReactivateTenant(self, request: pb.ReactivateTenantRequest, context: Context) -> pb.Tenant:
        return _tenant(await self._finishing.to_its_end(self._tenants.reactivate(request.tenant_id)))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.Usage:
        return _usage(await self._quotas.usage(request.tenant_id))

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Context
    ) -> pb.ListAuditRecordsResponse:
        await self._tenants.get(request.tenant_id)
        listing = _Listing(self._pages, f"{request.tenant_id}/audit", {"action": request.action})
        page = listing.open(request)
        found = await self._tenants.audit_page(
            request.tenant_id, _moment(page.cursor), page.size + 1, action=request.action
        )
        shown, token = listing.cut(found, page, lambda item: [item.time.isoformat(), item.record_id])
        return pb.ListAuditRecordsResponse(audit_records=[_entry(entry) for entry in shown], next_page_token=token)

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> pb.NewApiKey:
        role = Role(pb.ApiKey.Role.Name(request.role)) if request.role else Role.RUNNER
        made = await self._finishing.to_its_end(
            self._keys.create(
                request.tenant_id,
                name=request.name,
                role=role,
                expires_at=_datetime(request.expire_time) if request.HasField("expire_time") else None,
                created_by=caller.current().key_id,
                must_stay=self._tenants.must_stay,
            )
        )
        return _new_key(made)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        await self._tenants.get(request.tenant_id)
        listing = _Listing(self._pages, f"{request.tenant_id}/api-keys", {})
        page = listing.open(request)
        found = await self._keys.page(request.tenant_id, _moment(page.cursor), page.size + 1)
        shown, token = listing.cut(found, page, lambda key: [key.created_at.isoformat(), key.api_key_id])
        return pb.ListApiKeysResponse(api_keys=[_key(key, self._now()) for key in shown], next_page_token=token)

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, context: Context) -> pb.ApiKey:
        work = self._keys.revoke(request.tenant_id, request.api_key_id)
        return _key(await self._finishing.to_its_end(work), self._now())

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, context: Context) -> pb.NewApiKey:
        overlap = timedelta(seconds=request.overlap_seconds)
        work = self._keys.rotate(request.tenant_id, request.api_key_id, overlap, caller.current().key_id)
        return _new_key(await self._finishing.to_its_end(work))


class TenantQuotaServicer(pb_grpc.TenantQuotaServiceServicer):
    """``TenantQuotaService``: for the executor and the scheduler."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def ReserveRun(self, request: pb.ReserveRunRequest, context: Context) -> pb.ReserveRunResponse:
        wanted = Reserve(request.run_id, request.attempt, request.owner, request.fingerprint)
        found = await self._quotas.reserve(request.tenant_id, wanted)
        return pb.ReserveRunResponse(grant=_grant(request.tenant_id, found.grant), created=found.created)

    async def RenewGrants(self, request: pb.RenewGrantsRequest, context: Context) -> pb.RenewGrantsResponse:
        attempts = [(key.tenant_id, key.run_id, key.attempt) for key in request.grants]
        found = await self._quotas.renew(request.owner, attempts)
        response = pb.RenewGrantsResponse()
        for tenant_id, renewal in found.items():
            response.renewed.extend(_grant(tenant_id, grant) for grant in renewal.renewed)
            for run_id, attempt in renewal.lost:
                response.lost.add(tenant_id=tenant_id, run_id=run_id, attempt=attempt)
        return response

    async def SettleGrant(self, request: pb.SettleGrantRequest, context: Context) -> pb.SettleGrantResponse:
        wanted = Settle(request.run_id, request.attempt, GrantState(pb.Grant.State.Name(request.state)))
        found = await self._quotas.settle(request.tenant_id, wanted)
        return pb.SettleGrantResponse(grant=_grant(request.tenant_id, found) if found else None)

    async def ListExpiredGrants(
        self, request: pb.ListExpiredGrantsRequest, context: Context
    ) -> pb.ListExpiredGrantsResponse:
        found = await self._quotas.expired(request.page_size or 100)
        return pb.ListExpiredGrantsResponse(grants=[_grant(tenant_id, grant) for tenant_id, grant in found])

    async def ListAllowances(self, request: pb.ListAllowancesRequest, context: Context) -> pb.ListAllowancesResponse:
        found = await self._quotas.allowances(request.tenant_ids)
        return pb.ListAllowancesResponse(allowances=[_allowance(item) for item in found])

    async def ResetDailyQuotas(
        self, request: pb.ResetDailyQuotasRequest, context: Context
    ) -> pb.ResetDailyQuotasResponse:
        return pb.ResetDailyQuotasResponse(reset_count=await self._quotas.reset_daily())


class TenantLifecycleServicer(pb_grpc.TenantLifecycleServiceServicer):
    """``TenantLifecycleService``: for the contexts that follow a tenant's life."""

    def __init__(self, tenants: Tenants, finishing: Finishing) -> None:
        self._tenants = tenants
        self._finishing = finishing

    async def GetTenantState(self, request: pb.GetTenantStateRequest, context: Context) -> pb.GetTenantStateResponse:
        return pb.GetTenantStateResponse(state=_state(await self._tenants.state(request.tenant_id)))

    async def EnsureDataset(self, request: pb.EnsureDatasetRequest, context: Context) -> pb.EnsureDatasetResponse:
        work = self._tenants.ensure_dataset(request.tenant_id, request.provider)
        created, made = await self._finishing.to_its_end(work)
        status = pb.OnboardTenantResponse.CREATED if created else pb.OnboardTenantResponse.EXISTS
        return pb.EnsureDatasetResponse(dataset_status=status, tables_created=made)

    async def ListOffboardingTenants(
        self, request: pb.ListOffboardingTenantsRequest, context: Context
    ) -> pb.ListOffboardingTenantsResponse:
        found = await self._tenants.unconfirmed(caller.current().peer)
        return pb.ListOffboardingTenantsResponse(tenant_ids=found)

    async def ConfirmOffboarding(
        self, request: pb.ConfirmOffboardingRequest, context: Context
    ) -> pb.ConfirmOffboardingResponse:
        await self._finishing.to_its_end(self._tenants.confirm(request.tenant_id, caller.current().peer))
        return pb.ConfirmOffboardingResponse()


class TenantAuthServicer(pb_grpc.TenantAuthServiceServicer):
    """``TenantAuthService``: for keys that reach another context's own port."""

    def __init__(self, authenticate: Callable[[str], Awaitable[Caller]]) -> None:
        self._authenticate = authenticate

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Context) -> pb.AuthenticateResponse:
        who = await self._authenticate(request.api_key)
        role = who.role.value if who.role else ""
        return pb.AuthenticateResponse(tenant_id=who.tenant_id, role=role, api_key_id=who.key_id)


@dataclass(frozen=True, slots=True)
class _Listing:
    """The pages of one list with one filter."""

    pages: Pages
    scope: str
    filter: Mapping[str, str]

    def open(self, request: pb.ListTenantsRequest | pb.ListAuditRecordsRequest | pb.ListApiKeysRequest) -> Page:
        return self.pages.open(request.page_size, request.page_token, scope=self.scope, filter=self.filter)

    def cut[R](self, rows: Sequence[R], page: Page, cursor_of: Callable[[R], Sequence[str]]) -> tuple[list[R], str]:
        return self.pages.cut(rows, page, cursor_of, scope=self.scope, filter=self.filter)


# ---------------------------------------------------------------- encoding


def _tenant(tenant: Tenant) -> pb.Tenant:
    profile = tenant.profile
    return pb.Tenant(
        tenant_id=profile.tenant_id,
        company_name=profile.company_name,
        admin_email=profile.admin_email,
        subscription_plan=pb.Tenant.Plan.Value(tenant.plan.value),
        state=_state(tenant.state),
        create_time=_timestamp(profile.created_at),
        update_time=_timestamp(profile.updated_at),
        daily_limit=tenant.limits.daily,
        monthly_limit=tenant.limits.monthly,
        concurrent_limit=tenant.limits.concurrent,
    )


def _state(state: TenantState) -> pb.Tenant.State.ValueType:
    return pb.Tenant.State.Value(state.value)


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        tenant_id=usage.tenant_id,
        daily=_quota(usage.daily),
        monthly=_quota(usage.monthly),
        concurrent=_quota(usage.concurrent),
        history=[pb.Usage.Day(date=day.isoformat(), used=used) for day, used in usage.history],
    )


def _quota(quota: Quota) -> pb.Usage.Quota:
    return pb.Usage.Quota(
        limit=quota.limit, used=quota.used, remaining=quota.remaining, reset_time=_timestamp(quota.reset_time)
    )


def _grant(tenant_id: str, grant: Grant) -> pb.Grant:
    return pb.Grant(
        tenant_id=tenant_id,
        run_id=grant.run_id,
        attempt=grant.attempt,
        owner=grant.owner,
        day=grant.day.isoformat(),
        until=_timestamp(grant.until),
        state=pb.Grant.State.Value(grant.state.value),
        fingerprint=grant.fingerprint,
    )


def _allowance(item: Allowance) -> pb.ListAllowancesResponse.Allowance:
    return pb.ListAllowancesResponse.Allowance(
        tenant_id=item.tenant_id,
        state=_state(item.state) if item.state else pb.Tenant.STATE_UNSPECIFIED,
        free_slots=item.free_slots,
        daily_remaining=item.daily_remaining,
        monthly_remaining=item.monthly_remaining,
        reset_time=_timestamp(item.reset_time),
    )


def _key(key: ApiKey, now: datetime) -> pb.ApiKey:
    return pb.ApiKey(
        api_key_id=key.api_key_id,
        tenant_id=key.tenant_id,
        name=key.name,
        role=pb.ApiKey.Role.Value(key.role.value),
        state=pb.ApiKey.State.Value(key.state(now).value),
        last4=key.last4,
        create_time=_timestamp(key.created_at),
        expire_time=_timestamp(key.expires_at),
        last_used_time=_timestamp(key.last_used_at),
    )


def _new_key(made: NewKey) -> pb.NewApiKey:
    return pb.NewApiKey(
        api_key_id=made.key.api_key_id,
        api_key=made.text,
        role=pb.ApiKey.Role.Value(made.key.role.value),
        expire_time=_timestamp(made.key.expires_at),
        name=made.key.name,
    )


def _entry(entry: AuditEntry) -> pb.AuditRecord:
    return pb.AuditRecord(
        record_id=entry.record_id,
        time=_timestamp(entry.time),
        tenant_id=entry.tenant_id,
        actor=entry.actor,
        user_id=entry.user_id,
        role=entry.role,
        action=entry.action,
        object_type=entry.object_type,
        object_id=entry.object_id,
        outcome=entry.outcome,
        reason=entry.reason,
        request_id=entry.request_id,
        source_ip=entry.source_ip,
        details=entry.details,
    )


def _timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def _datetime(stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument("EXPIRE_TIME_INVALID", "expire_time is not a time.") from None


def _moment(cursor: tuple[str, ...]) -> tuple[datetime, str] | None:
    return (datetime.fromisoformat(cursor[0]), cursor[1]) if cursor else None
