"""The tenant context's stubs and the audit trail, behind the Protocols that the use cases need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc

from libs import caller, errors
from libs.audit import AuditLog, AuditRecord, Outcome
from libs.tenancy import Caller, Role
from services.credential.domain import Event

_ENSURE_SECONDS = 55.0


class Keys:
    """Asks tenant whose key it is, for clients that call this service's own port."""

    def __init__(self, stub: tenant_pb2_grpc.TenantAuthServiceStub) -> None:
        self._stub = stub

    async def authenticate(self, api_key: str) -> Caller:
        """Raises ``Unauthenticated`` for a key that is not live, ``Unavailable`` while nobody can know."""
        answer = await self._stub.Authenticate(tenant_pb2.AuthenticateRequest(api_key=api_key))
        return Caller(Role(answer.role), answer.tenant_id, answer.api_key_id)


class TenantLifecycle:
    """``domain.Tenants`` and ``upkeep.Leaving``."""

    def __init__(self, stub: tenant_pb2_grpc.TenantLifecycleServiceStub) -> None:
        self._stub = stub

    async def ensure_dataset(self, tenant_id: str, provider: str) -> bool:
        """True if any of the provider's tables had to be made."""
        request = tenant_pb2.EnsureDatasetRequest(tenant_id=tenant_id, provider=provider)
        try:
            answer = await self._stub.EnsureDataset(request, timeout=_ENSURE_SECONDS)
        except errors.InvalidArgument as refusal:
            # A provider whose pipelines are still to come has no tables; its credentials may be stored before.
            if refusal.reason != "PROVIDER_UNKNOWN":
                raise
            request.ClearField("provider")
            answer = await self._stub.EnsureDataset(request, timeout=_ENSURE_SECONDS)
        return bool(answer.tables_created)

    async def is_leaving(self, tenant_id: str) -> bool:
        """True if the tenant is being offboarded or is gone. Asked to its end, however late its caller is."""
        try:
            with caller.detached():
                answer = await self._stub.GetTenantState(tenant_pb2.GetTenantStateRequest(tenant_id=tenant_id))
        except errors.NotFound:
            return True
        return answer.state not in (tenant_pb2.Tenant.ACTIVE, tenant_pb2.Tenant.SUSPENDED)

    async def list_offboarding(self) -> Sequence[str]:
        """The tenants that wait for this context to let go of them."""
        answer = await self._stub.ListOffboardingTenants(tenant_pb2.ListOffboardingTenantsRequest())
        return list(answer.tenant_ids)

    async def confirm_offboarding(self, tenant_id: str) -> None:
        """Says that this context holds nothing of the tenant any more."""
        await self._stub.ConfirmOffboarding(tenant_pb2.ConfirmOffboardingRequest(tenant_id=tenant_id))


class AuditTrail:
    """``domain.Trail``: an event with who is calling, from where and under which request id."""

    def __init__(self, log: AuditLog, *, now: Callable[[], datetime]) -> None:
        self._log = log
        self._now = now

    async def append(self, event: Event) -> None:
        """Returns when the record is durable."""
        who = caller.current()
        await self._log.append(
            AuditRecord(
                time=self._now(),
                tenant_id=event.tenant_id,
                action=event.action,
                object_type="credential",
                object_id=event.credential_id,
                outcome=Outcome(event.outcome),
                reason=event.reason,
                actor_key_id=who.key_id,
                user_id=who.user_id,
                role=who.role.value if who.role else "",
                peer=who.peer,
                request_id=caller.request_id(),
                source_ip=who.source_ip,
                details=dict(event.details),
            )
        )
