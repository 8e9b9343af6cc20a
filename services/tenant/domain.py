"""A tenant's life: profile, plan, suspension, offboarding; the use cases and what they need of a store.

The quota row is the truth about state and plan in force, because it alone decides admission; the profile is the truth
about who the tenant is and whether it is leaving. What spans both is written in an order that can be taken up again by
anyone: first the row that says what is wanted, then what follows from it. ``Tenants.advance_offboardings`` does so.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from libs.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument
from libs.tenancy import TenantId, tenant_not_found
from services.tenant.audit import Audit
from services.tenant.quotas import Limits, Plan, QuotaRows, SetPlan, SetState, TenantState

# The contexts that must have let go of a tenant before its dataset is.
CONFIRMING = frozenset({"credential", "scheduler"})
# How long the reapers have to close the runs of a tenant that leaves.
REAPING = timedelta(minutes=5)
_VERIFIED = timedelta(minutes=5)
LEAVING = frozenset({TenantState.OFFBOARDING, TenantState.DELETED})


@dataclass(frozen=True, slots=True)
class Profile:
    """Who a tenant is. ``state`` leads once it is OFFBOARDING; before, the quota row's does."""

    tenant_id: str
    version: int
    company_name: str
    admin_email: str
    state: TenantState
    created_at: datetime
    updated_at: datetime
    state_reason: str = ""
    onboarding_owner: str = ""
    confirmations: tuple[tuple[str, datetime], ...] = ()
    delete_dataset: bool = False
    offboarded_at: datetime | None = None
    deleted_at: datetime | None = None

    def confirmed(self, context: str) -> bool:
        """True if the context holds nothing of the tenant any more."""
        return any(name == context for name, _ in self.confirmations)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A profile with what is in force for it."""

    profile: Profile
    state: TenantState
    plan: Plan
    limits: Limits

    @classmethod
    def of(cls, profile: Profile, state: TenantState, plan: Plan, limits: Limits) -> Tenant:
        """The tenant its two rows make."""
        return cls(profile, profile.state if profile.state in LEAVING else state, plan, limits)


@dataclass(frozen=True, slots=True)
class Leaving:
    """A tenant that is being offboarded, and what is still to do."""

    profile: Profile
    quota_state: TenantState
    live_grants: bool
    live_keys: bool


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One record of the audit trail, as it is shown."""

    record_id: str
    time: datetime
    tenant_id: str
    actor: str
    user_id: str
    role: str
    action: str
    object_type: str
    object_id: str
    outcome: str
    reason: str
    request_id: str
    source_ip: str
    details: str


# ---------------------------------------------------------------- decisions on a profile


@dataclass(frozen=True, slots=True)
class Edit:
    """Asks for another name or address; None stays."""

    company_name: str | None = None
    admin_email: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Asks to write down a state that is in force already, and why."""

    state: TenantState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Offboard:
    """Asks for the end; until it is reached, the last asker decides about the dataset."""

    delete_dataset: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Confirm:
    """Says that a context let go."""

    context: str


@dataclass(frozen=True, slots=True)
class End:
    """Says that nothing is left to do."""


@dataclass(frozen=True, slots=True)
class See:
    """Asks for the profile."""


type ProfileRequest = Edit | Note | Offboard | Confirm | End | See


def decide_profile(row: Profile | None, request: ProfileRequest, now: datetime) -> tuple[Profile | None, Profile]:
    """The profile after ``request``, twice; refusals are raised (``libs.errors``)."""
    if row is None:
        raise tenant_not_found()
    after = _decided(row, request, now)
    if after != row:
        after = dataclasses.replace(after, updated_at=max(now, row.updated_at))
    return after, after


def _decided(row: Profile, request: ProfileRequest, now: datetime) -> Profile:
    leaving = row.state in LEAVING
    match request:
        case See():
            return row
        case Edit():
            _refuse_leaving(row)
            return dataclasses.replace(
                row,
                company_name=row.company_name if request.company_name is None else request.company_name,
                admin_email=row.admin_email if request.admin_email is None else request.admin_email,
            )
        case Note():
            return row if leaving else dataclasses.replace(row, state=request.state, state_reason=request.reason)
        case Offboard() if row.state is TenantState.DELETED:
            return row
        case Offboard():
            return dataclasses.replace(
                row,
                state=TenantState.OFFBOARDING,
                state_reason=request.reason,
                delete_dataset=request.delete_dataset,
                offboarded_at=row.offboarded_at or now,
            )
        case Confirm():
            if not leaving:
                raise FailedPrecondition("TENANT_NOT_OFFBOARDING", "The tenant is not being offboarded.")
            if row.confirmed(request.context):
                return row
            return dataclasses.replace(row, confirmations=(*row.confirmations, (request.context, now)))
        case End():
            if row.state is not TenantState.OFFBOARDING:
                return row
            return dataclasses.replace(row, state=TenantState.DELETED, deleted_at=now)


def _refuse_leaving(row: Profile) -> None:
    if row.state is TenantState.DELETED:
        raise tenant_not_found()
    if row.state is TenantState.OFFBOARDING:
        raise FailedPrecondition("TENANT_OFFBOARDING", "The tenant is being offboarded; that cannot be undone.")


# ---------------------------------------------------------------- what the use cases need


class ProfileRows(Protocol):
    """The ledger of profiles: decides with ``decide_profile``."""

    async def ask(self, key: str, request: ProfileRequest, *, deadline: timedelta | None = None) -> Profile: ...


class TenantStore(Protocol):
    """Statements that span rows or tables."""

    async def get(self, tenant_id: str) -> Tenant | None: ...

    async def page(self, after: str, limit: int, *, state: TenantState | None, plan: Plan | None) -> Sequence[Tenant]:
        """Up to ``limit`` tenants by id, after that one."""
        ...

    async def leaving(self, now: datetime) -> Sequence[Leaving]:
        """All tenants whose profile is OFFBOARDING; one statement."""
        ...

    async def unconfirmed(self, context: str) -> Sequence[str]:
        """Tenants that are OFFBOARDING and for which the context has not confirmed."""
        ...

    async def drifted(self) -> Sequence[str]:
        """Tenants whose profile or subscription says otherwise than the quota row; one statement."""
        ...

    async def follow(self, tenant_ids: Collection[str]) -> None:
        """Makes profile and subscription of these tenants say what their quota row says. Idempotent."""
        ...

    async def audit_page(
        self, tenant_id: str, before: tuple[datetime, str] | None, limit: int, *, action: str
    ) -> Sequence[AuditEntry]:
        """Up to ``limit`` records, newest first, older than that one."""
        ...


class DatasetView(Protocol):
    """A dataset as it was read."""

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def etag(self) -> str: ...


class Datasets(Protocol):
    """The tenants' datasets."""

    async def create(self, name: str, labels: Mapping[str, str]) -> DatasetView:
        """Raises ``AlreadyExists`` for one that is there, ``Unavailable`` if nobody knows."""
        ...

    async def get(self, name: str) -> DatasetView | None: ...

    async def relabel(self, name: str, labels: Mapping[str, str | None], *, etag: str) -> DatasetView:
        """Raises ``Aborted`` if the dataset is not as it was read."""
        ...

    async def delete(self, name: str) -> None:
        """Deletes it with its tables; one that is not there is fine."""
        ...

    async def ensure_tables(self, name: str, provider: str) -> list[str]:
        """Makes the run tables and the provider's (none for ""), with all their columns; names of those made."""
        ...

    def knows(self, provider: str) -> bool:
        """True for a provider that has tables."""
        ...


# ---------------------------------------------------------------- use cases


class Tenants:
    """Reads and changes tenants. Every change is audited before it is answered, and may be repeated."""

    def __init__(
        self,
        profiles: ProfileRows,
        quotas: QuotaRows,
        store: TenantStore,
        datasets: Datasets,
        audit: Audit,
        *,
        revoke_keys: Callable[[str], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        self._profiles = profiles
        self._quotas = quotas
        self._store = store
        self._datasets = datasets
        self._audit = audit
        self._revoke_keys = revoke_keys
        self._now = now
        self._verified: dict[tuple[str, str], datetime] = {}
        self.nudge = asyncio.Event()

    async def get(self, tenant_id: str) -> Tenant:
        """One tenant; raises ``NotFound``."""
        tenant = await self._store.get(tenant_id)
        if tenant is None:
            raise tenant_not_found()
        return tenant

    async def page(self, after: str, limit: int, *, state: TenantState | None, plan: Plan | None) -> Sequence[Tenant]:
        """Tenants by id."""
        return await self._store.page(after, limit, state=state, plan=plan)

    async def state(self, tenant_id: str) -> TenantState:
        """The state; raises ``NotFound`` for one that never was or is gone."""
        tenant = await self.get(tenant_id)
        if tenant.state is TenantState.DELETED:
            raise tenant_not_found()
        return tenant.state

    async def must_stay(self, tenant_id: str) -> None:
        """Raises unless the tenant is there and not about to leave."""
        _refuse_leaving(await self._profiles.ask(tenant_id, See()))

    async def update(self, tenant_id: str, edit: Edit, plan: Plan | None) -> Tenant:
        """Changes profile and plan; a plan holds from the moment its row is swapped.

        Raises ``NotFound``, ``FailedPrecondition(TENANT_OFFBOARDING)``.
        """
        await asyncio.gather(self._edit(tenant_id, edit), self._set_plan(tenant_id, plan))
        details = {name: value for name, value in dataclasses.asdict(edit).items() if value is not None}
        if plan is not None:
            details["subscription_plan"] = plan.value
        if not details:
            return await self.get(tenant_id)
        return await self._answer("tenant.update", tenant_id, details)

    async def _edit(self, tenant_id: str, edit: Edit) -> None:
        if edit != Edit():
            await self._profiles.ask(tenant_id, edit)

    async def _set_plan(self, tenant_id: str, plan: Plan | None) -> None:
        if plan is not None:
            await self._quotas.ask(tenant_id, SetPlan(plan))
            await self._store.follow([tenant_id])

    async def suspend(self, tenant_id: str, reason: str) -> Tenant:
        """Nothing new starts from here on. Raises ``NotFound``, ``FailedPrecondition(TENANT_OFFBOARDING)``."""
        return await self._switch(tenant_id, TenantState.SUSPENDED, reason, "tenant.suspend")

    async def reactivate(self, tenant_id: str) -> Tenant:
        """Ends a suspension; errors as ``suspend``."""
        return await self._switch(tenant_id, TenantState.ACTIVE, "", "tenant.reactivate")

    async def _switch(self, tenant_id: str, state: TenantState, reason: str, action: str) -> Tenant:
        await asyncio.gather(
            self._quotas.ask(tenant_id, SetState(state)), self._profiles.ask(tenant_id, Note(state, reason))
        )
        return await self._answer(action, tenant_id, {"reason": reason} if reason else {})

    async def offboard(self, tenant_id: str, *, delete_dataset: bool) -> Tenant:
        """Keys and leases are dead when this answers; the rest follows as the other contexts confirm.

        Raises ``NotFound``. A tenant that is gone stays as it is.
        """
        profile = await self._profiles.ask(tenant_id, Offboard(delete_dataset))
        if profile.state is not TenantState.DELETED:
            await self._cut_off(tenant_id)
        return await self._answer("tenant.delete", tenant_id, {"delete_dataset": delete_dataset})

    async def _answer(self, action: str, tenant_id: str, details: Mapping[str, object]) -> Tenant:
        """The tenant as a change left it, once that change is on record."""
        tenant, _ = await asyncio.gather(
            self.get(tenant_id), self._audit(action, tenant_id, "tenant", tenant_id, details=details)
        )
        return tenant

    async def _cut_off(self, tenant_id: str) -> None:
        await asyncio.gather(
            self._quotas.ask(tenant_id, SetState(TenantState.OFFBOARDING)), self._revoke_keys(tenant_id)
        )

    async def unconfirmed(self, context: str) -> Sequence[str]:
        """Tenants the context has to let go of."""
        return await self._store.unconfirmed(context)

    async def confirm(self, tenant_id: str, context: str) -> None:
        """Takes a context's word that it let go.

        Raises ``NotFound``, ``FailedPrecondition(TENANT_NOT_OFFBOARDING)``.
        """
        if context not in CONFIRMING:
            raise InvalidArgument("CONTEXT_UNKNOWN", "Only credential and scheduler confirm an offboarding.")
        await self._profiles.ask(tenant_id, Confirm(context))
        await self._audit("tenant.confirm_offboarding", tenant_id, "tenant", tenant_id, details={"context": context})
        self.nudge.set()

    async def advance_offboardings(self) -> int:
        """Takes every offboarding one step on and returns how many ended; safe to run anywhere, any number of times."""
        ended = 0
        for item in await self._store.leaving(self._now()):
            try:
                ended += await self._advance(item)
            except Error:
                # One tenant's trouble must not keep the others; the next round takes it up again.
                continue
        return ended

    async def _advance(self, item: Leaving) -> bool:
        tenant_id = item.profile.tenant_id
        if item.quota_state not in LEAVING or item.live_keys:
            await self._cut_off(tenant_id)
        began = item.profile.offboarded_at or item.profile.updated_at
        reaped = not item.live_grants or self._now() - began > REAPING
        if not reaped or not all(item.profile.confirmed(context) for context in CONFIRMING):
            return False
        if item.profile.delete_dataset:
            await self._datasets.delete(tenant_id)
        await self._quotas.ask(tenant_id, SetState(TenantState.DELETED))
        await self._store.follow([tenant_id])
        record_id = uuid.uuid5(uuid.NAMESPACE_URL, f"convergence:tenant.deleted:{tenant_id}").hex
        details = {"dataset_deleted": item.profile.delete_dataset}
        await self._audit("tenant.deleted", tenant_id, "tenant", tenant_id, details=details, record_id=record_id)
        await self._profiles.ask(tenant_id, End())
        return True

    async def repair(self) -> int:
        """Makes profiles and subscriptions follow their quota rows where a crash kept them from it."""
        drifted = await self._store.drifted()
        if drifted:
            await self._store.follow(drifted)
        return len(drifted)

    async def ensure_dataset(self, tenant_id: str, provider: str) -> tuple[bool, list[str]]:
        """Makes what is missing of the tenant's dataset; (whether it was made now, names of tables made).

        Answers from memory for five minutes once all was there. Raises ``NotFound``,
        ``FailedPrecondition(TENANT_OFFBOARDING)``, ``InvalidArgument(PROVIDER_UNKNOWN)``.
        """
        provider = provider.lower()
        if provider and not self._datasets.knows(provider):
            raise InvalidArgument("PROVIDER_UNKNOWN", "No tables are known for this provider.")
        verified = self._verified.get((tenant_id, provider))
        if verified is not None and self._now() - verified < _VERIFIED:
            return False, []
        await self.must_stay(tenant_id)
        name, created = TenantId.parse(tenant_id), False
        if await self._datasets.get(name) is None:
            # Somebody else may be quicker; both then make the tables.
            with contextlib.suppress(AlreadyExists):
                await self._datasets.create(name, {"managed_by": "convergence"})
                created = True
        made = await self._datasets.ensure_tables(name, provider)
        now = self._now()
        self._verified = {key: at for key, at in self._verified.items() if now - at < _VERIFIED}
        self._verified[(tenant_id, provider)] = now
        return created, made

    async def audit_page(
        self, tenant_id: str, before: tuple[datetime, str] | None, limit: int, *, action: str
    ) -> Sequence[AuditEntry]:
        """The tenant's audit records, newest first."""
        return await self._store.audit_page(tenant_id, before, limit, action=action)
