"""Onboarding: one id becomes one tenant, however many ask at once and wherever one of them dies.

The dataset is the mutex: whoever creates it, or takes it over by etag after the time in its `onboarding` label, is the
owner and may go on until that time. Everything an owner writes carries a job id that follows from the dataset's
origin label, so that an owner that was given up on and one that took over cannot both insert a row. The end is the swap
of the label for ``onboarded_by``: only an owner that wins it may show its key, and every other key is taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from libs.errors import Aborted, AlreadyExists, Ambiguous, Error, Unavailable
from libs.tenancy import Role, TenantId
from services.tenant.audit import Audit
from services.tenant.domain import LEAVING, Datasets, DatasetView, Edit, Profile, ProfileRows
from services.tenant.keys import ApiKeys, NewKey
from services.tenant.quotas import Plan, QuotaRow, QuotaRows, SetPlan, TenantState

HOLD = timedelta(seconds=60)
# An owner starts nothing this close to its end, so that what it sent is through before another takes over.
_MARGIN = timedelta(seconds=15)
_LABEL, _ORIGIN, _DONE = "onboarding", "onboarding_origin", "onboarded_by"
_SWAPS = 4


@dataclass(frozen=True, slots=True)
class Application:
    """Who wants to be a tenant."""

    tenant_id: TenantId
    company_name: str
    admin_email: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Onboarded:
    """A new tenant: its key (shown once), whether the dataset is new, and the tables made in it."""

    key: NewKey
    dataset_created: bool
    tables_created: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """An owner's hold of a dataset; ``origin`` is the same for all who ever held this one."""

    owner: str
    until: datetime
    origin: str

    def labels(self) -> dict[str, str]:
        """As BigQuery's labels can say it."""
        return {
            _LABEL: f"{self.owner}-{int(self.until.timestamp())}",
            _ORIGIN: self.origin,
            "managed_by": "convergence",
        }


def read_hold(dataset: DatasetView) -> Hold | None:
    """The hold on a dataset; None if there is none (any more), or none that we wrote."""
    owner, _, until = dataset.labels.get(_LABEL, "").partition("-")
    origin = dataset.labels.get(_ORIGIN, "")
    if not (owner and until.isdigit() and origin):
        return None
    return Hold(owner, datetime.fromtimestamp(int(until), UTC), origin)


class OnboardingStore(Protocol):
    """A new tenant's rows. An insert leaves alone what is there, and the same job id twice inserts once.

    A job that failed wrote nothing, but its id is spent; the owner then does it under an id of its own.
    """

    async def profile(self, tenant_id: str) -> Profile | None: ...

    async def insert_profile(self, profile: Profile, *, job_id: str, owner: str) -> None: ...

    async def insert_quota(self, row: QuotaRow, *, job_id: str, owner: str) -> None: ...

    async def insert_subscription(self, row: QuotaRow, *, job_id: str, owner: str) -> None: ...

    async def follow(self, tenant_ids: Collection[str]) -> None: ...


class Onboarding:
    """Onboards tenants; safe from any number of tasks and processes."""

    def __init__(
        self,
        store: OnboardingStore,
        datasets: Datasets,
        profiles: ProfileRows,
        quotas: QuotaRows,
        keys: ApiKeys,
        audit: Audit,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._profiles = profiles
        self._quotas = quotas
        self._keys = keys
        self._audit = audit
        self._now = now

    async def onboard(self, application: Application) -> Onboarded:
        """Makes the tenant, or completes one that was left half-made.

        Raises ``AlreadyExists`` (TENANT_EXISTS, DATASET_TAKEN), ``Aborted(ONBOARDING_IN_PROGRESS)`` while another
        is at it, ``Unavailable`` (nothing is shown, a later try takes over).
        """
        hold, created = await self._take(application.tenant_id)
        made = self._keys.mint(application.tenant_id, Role.ADMIN, name="onboarding")
        try:
            tables = await self._make(application, hold, made, created=created)
        except Error as exc:
            await self._give_up(application.tenant_id, hold, made, release=not isinstance(exc, Ambiguous))
            raise
        return Onboarded(made, created, tuple(tables))

    async def _take(self, tenant_id: TenantId) -> tuple[Hold, bool]:
        """The hold on the dataset, and whether the dataset is new."""
        now = self._now()
        hold = Hold(uuid.uuid4().hex, now + HOLD, uuid.uuid4().hex)
        try:
            await self._datasets.create(tenant_id, hold.labels())
            return hold, True
        except (AlreadyExists, Unavailable):
            # Without an answer it may be ours all the same: the label says.
            found = await self._datasets.get(tenant_id)
        if found is None:
            raise Unavailable("STORE_UNAVAILABLE", "The tenant's dataset could not be made; try again.")
        current = read_hold(found)
        if current is None:
            raise _taken(found)
        if current.owner == hold.owner:
            return hold, True
        if current.until > now:
            raise _in_progress(current.until - now)
        hold = replace(hold, origin=current.origin)
        try:
            await self._datasets.relabel(tenant_id, hold.labels(), etag=found.etag)
        except (Aborted, Unavailable) as exc:
            if not await self._holds(tenant_id, hold):
                raise _in_progress(HOLD) from exc
        return hold, False

    async def _make(self, application: Application, hold: Hold, made: NewKey, *, created: bool) -> list[str]:
        tenant_id = application.tenant_id
        tables, known = await asyncio.gather(
            self._datasets.ensure_tables(tenant_id, ""), self._store.profile(tenant_id)
        )
        if known is not None and (created or known.state in LEAVING):
            await self._give_back(known, hold, created=created)
            raise AlreadyExists("TENANT_EXISTS", "A tenant of this id exists or existed; choose another id.")
        self._check_time(hold)
        await self._insert(application, hold, made)
        if not created:
            await self._overwrite(application, made)
        self._check_time(hold)
        details = {
            "company_name": application.company_name,
            "subscription_plan": application.plan.value,
            "api_key_id": made.key.api_key_id,
            "dataset_created": created,
        }
        await self._audit("tenant.onboard", tenant_id, "tenant", tenant_id, details=details)
        await self._finish(tenant_id, hold)
        return tables

    async def _insert(self, application: Application, hold: Hold, made: NewKey) -> None:
        """Inserts the rows; the profile last, because a tenant exists from then on."""
        now = self._now()
        quota = QuotaRow.fresh(application.tenant_id, application.plan, now)
        profile = Profile(
            tenant_id=application.tenant_id,
            version=1,
            company_name=application.company_name,
            admin_email=application.admin_email,
            state=TenantState.ACTIVE,
            created_at=now,
            updated_at=now,
            onboarding_owner=hold.owner,
        )
        await asyncio.gather(
            self._store.insert_quota(quota, job_id=f"onboard-{hold.origin}-quota", owner=hold.owner),
            self._store.insert_subscription(quota, job_id=f"onboard-{hold.origin}-subscription", owner=hold.owner),
            self._keys.store(made, job_id=f"onboard-{hold.owner}-key"),
        )
        await self._store.insert_profile(profile, job_id=f"onboard-{hold.origin}-profile", owner=hold.owner)

    async def _overwrite(self, application: Application, made: NewKey) -> None:
        """Makes the rows of an earlier try say what this one asks, and kills that one's key."""
        tenant_id = application.tenant_id
        await asyncio.gather(
            self._profiles.ask(tenant_id, Edit(application.company_name, application.admin_email)),
            self._quotas.ask(tenant_id, SetPlan(application.plan)),
            self._keys.revoke_others(tenant_id, made.key.api_key_id),
        )
        await self._store.follow([tenant_id])

    async def _finish(self, tenant_id: TenantId, hold: Hold) -> None:
        """Swaps the hold for the mark of success; raises if the hold was lost."""
        done = {_LABEL: None, _DONE: hold.owner}
        for _ in range(_SWAPS):
            found = await self._datasets.get(tenant_id)
            if found is not None and found.labels.get(_DONE) == hold.owner:
                return
            current = read_hold(found) if found is not None else None
            if found is None or current is None or current.owner != hold.owner:
                break
            try:
                await self._datasets.relabel(tenant_id, done, etag=found.etag)
                return
            except (Aborted, Unavailable):
                # Changed by somebody else, or done with the answer lost: reading tells.
                continue
        raise _in_progress(HOLD)

    async def _give_back(self, known: Profile, hold: Hold, *, created: bool) -> None:
        """Undoes the taking of a dataset whose tenant exists or existed."""
        tenant_id = TenantId.parse(known.tenant_id)
        if created and known.state is TenantState.DELETED:
            await self._datasets.delete(tenant_id)
            return
        found = await self._datasets.get(tenant_id)
        if found is not None:
            with contextlib.suppress(Error):
                await self._datasets.relabel(tenant_id, {_LABEL: None, _DONE: hold.owner}, etag=found.etag)

    async def _give_up(self, tenant_id: TenantId, hold: Hold, made: NewKey, *, release: bool) -> None:
        """Takes back the key nobody will see, and lets go at once unless something sent may still arrive."""
        with contextlib.suppress(Error):
            await self._keys.discard(tenant_id, made.key.api_key_id)
        if not release:
            return
        with contextlib.suppress(Error):
            found = await self._datasets.get(tenant_id)
            current = read_hold(found) if found is not None else None
            if found is not None and current is not None and current.owner == hold.owner:
                lapsed = replace(hold, until=self._now())
                await self._datasets.relabel(tenant_id, lapsed.labels(), etag=found.etag)

    async def _holds(self, tenant_id: TenantId, hold: Hold) -> bool:
        found = await self._datasets.get(tenant_id)
        current = read_hold(found) if found is not None else None
        return current is not None and current.owner == hold.owner

    def _check_time(self, hold: Hold) -> None:
        if self._now() > hold.until - _MARGIN:
            raise Unavailable(
                "ONBOARDING_TIMED_OUT", "The store was too slow; try again.", retry_after=hold.until - self._now()
            )


def _in_progress(wait: timedelta) -> Aborted:
    return Aborted(
        "ONBOARDING_IN_PROGRESS",
        "This tenant is being onboarded; ask again in a minute.",
        retry_after=max(wait, timedelta(seconds=1)),
    )


def _taken(found: DatasetView) -> AlreadyExists:
    if _DONE in found.labels:
        return AlreadyExists("TENANT_EXISTS", "A tenant of this id exists or existed; choose another id.")
    return AlreadyExists("DATASET_TAKEN", "A dataset of this name exists that is no tenant's; choose another id.")
