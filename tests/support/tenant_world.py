"""The tenant context in memory: real use cases over stores that conflict, lose replies, and die between steps."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from libs import errors
from libs.ledger import Ledger
from services.tenant.domain import AuditEntry, Leaving, Profile, Tenant, Tenants, decide_profile
from services.tenant.keys import ApiKey, ApiKeys, KeyEntry, KeyRing
from services.tenant.onboarding import Application, Onboarding
from services.tenant.quotas import GrantState, Plan, QuotaRow, Quotas, TenantState, decide
from tests.support.fakes import Clock, Faults, MemoryTable

ADMIN_KEY = "admin-key-of-the-tests-0123456789"


class Killed(BaseException):
    """The process is gone: nothing after this line runs."""


@dataclass
class Steps:
    """Counts the store's calls and kills the process at one of them, before or after its effect."""

    kill_at: int | None = None
    after: bool = False
    taken: int = 0
    dead: bool = False

    def before_effect(self) -> int:
        """The step's number; it is not taken by a dead process."""
        if self.dead:
            raise Killed
        self.taken += 1
        if self.taken == self.kill_at and not self.after:
            self._die()
        return self.taken

    def after_effect(self, step: int) -> None:
        """Nobody hears of the effect if the process died meanwhile."""
        if self.dead:
            raise Killed
        if step == self.kill_at:
            self._die()

    def _die(self) -> None:
        self.dead = True
        raise Killed


class Stepping:
    """Wraps a store so that every call is one step."""

    def __init__(self, inner: Any, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            step = self._steps.before_effect()
            result = await found(*args, **kwargs)
            self._steps.after_effect(step)
            return result

        return call


@dataclass(frozen=True)
class MemoryDataset:
    """A dataset's labels and tables."""

    labels: Mapping[str, str]
    etag: str
    tables: frozenset[str] = frozenset()


@dataclass
class Recorded:
    """An audit record, as a use case asked for it."""

    action: str
    tenant_id: str
    object_type: str
    object_id: str
    details: Mapping[str, Any]
    record_id: str | None


@dataclass
class Disk:
    """What outlives processes: all tables and datasets."""

    clock: Clock
    quotas: MemoryTable[QuotaRow] = field(default_factory=lambda: MemoryTable(key=lambda row: row.tenant_id))
    profiles: MemoryTable[Profile] = field(default_factory=lambda: MemoryTable(key=lambda row: row.tenant_id))
    subscriptions: dict[str, Plan] = field(default_factory=dict)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    datasets: dict[str, MemoryDataset] = field(default_factory=dict)
    audit: list[Recorded] = field(default_factory=list)
    jobs: set[str] = field(default_factory=set)
    key_loads: list[datetime] = field(default_factory=list)
    down: bool = False
    _etags: Iterator[int] = field(default_factory=itertools.count)

    def etag(self) -> str:
        return f"etag-{next(self._etags)}"

    async def turn(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")

    def live_keys(self, tenant_id: str) -> list[ApiKey]:
        return [key for key in self.keys.values() if key.tenant_id == tenant_id and key.live(self.clock())]

    def faults(self, faults: Faults) -> None:
        self.quotas.faults = self.profiles.faults = faults


class MemoryQuotaStore:
    """``quotas.QuotaStore``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def read(self, keys: Collection[str]) -> Mapping[str, QuotaRow]:
        return await self._disk.quotas.read(keys)

    async def expired(self, now: datetime, limit: int) -> Sequence[QuotaRow]:
        await self._disk.turn()
        rows = [row for row in self._disk.quotas.rows.values() if row.next_expiry and row.next_expiry <= now]
        return sorted(rows, key=lambda row: row.next_expiry or now)[:limit]

    async def stale(self, today: date) -> Sequence[str]:
        await self._disk.turn()
        return [row.tenant_id for row in self._disk.quotas.rows.values() if row.day < today]


class MemoryTenantStore:
    """``domain.TenantStore`` and ``onboarding.OnboardingStore``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def get(self, tenant_id: str) -> Tenant | None:
        await self._disk.turn()
        return self._tenant(tenant_id)

    def _tenant(self, tenant_id: str) -> Tenant | None:
        profile, quota = self._disk.profiles.rows.get(tenant_id), self._disk.quotas.rows.get(tenant_id)
        return Tenant.of(profile, quota.state, quota.plan, quota.limits) if profile and quota else None

    async def page(self, after: str, limit: int, *, state: TenantState | None, plan: Plan | None) -> Sequence[Tenant]:
        await self._disk.turn()
        found = [self._tenant(tenant_id) for tenant_id in sorted(self._disk.profiles.rows) if tenant_id > after]
        kept = [item for item in found if item and state in (None, item.state) and plan in (None, item.plan)]
        return kept[:limit]

    async def leaving(self, now: datetime) -> Sequence[Leaving]:
        await self._disk.turn()
        return [
            Leaving(
                profile,
                self._disk.quotas.rows[profile.tenant_id].state,
                self._disk.quotas.rows[profile.tenant_id].next_expiry is not None,
                bool(self._disk.live_keys(profile.tenant_id)),
            )
            for profile in self._disk.profiles.rows.values()
            if profile.state is TenantState.OFFBOARDING
        ]

    async def unconfirmed(self, context: str) -> Sequence[str]:
        await self._disk.turn()
        return [
            profile.tenant_id
            for profile in self._disk.profiles.rows.values()
            if profile.state is TenantState.OFFBOARDING and not profile.confirmed(context)
        ]

    async def drifted(self) -> Sequence[str]:
        await self._disk.turn()
        return [
            row.tenant_id for row in self._disk.quotas.rows.values() if self._followed(row) != self._said(row.tenant_id)
        ]

    @staticmethod
    def _followed(row: QuotaRow) -> tuple[Plan, TenantState]:
        return row.plan, row.state

    def _said(self, tenant_id: str) -> tuple[Plan, TenantState]:
        profile = self._disk.profiles.rows[tenant_id]
        return self._disk.subscriptions[tenant_id], profile.state

    async def follow(self, tenant_ids: Collection[str]) -> None:
        await self._disk.turn()
        for tenant_id in tenant_ids:
            row = self._disk.quotas.rows[tenant_id]
            self._disk.subscriptions[tenant_id] = row.plan
            profile = self._disk.profiles.rows.get(tenant_id)
            switchable = (TenantState.ACTIVE, TenantState.SUSPENDED)
            if profile and profile.state in switchable and row.state in switchable and profile.state != row.state:
                changed = dataclasses.replace(profile, state=row.state, version=profile.version + 1)
                self._disk.profiles.rows[tenant_id] = changed

    async def audit_page(
        self, tenant_id: str, before: tuple[datetime, str] | None, limit: int, *, action: str
    ) -> Sequence[AuditEntry]:
        await self._disk.turn()
        return []

    async def profile(self, tenant_id: str) -> Profile | None:
        await self._disk.turn()
        return self._disk.profiles.rows.get(tenant_id)

    async def insert_profile(self, profile: Profile, *, job_id: str, owner: str) -> None:
        await self._once(job_id, lambda: self._disk.profiles.rows.setdefault(profile.tenant_id, profile))

    async def insert_quota(self, row: QuotaRow, *, job_id: str, owner: str) -> None:
        await self._once(job_id, lambda: self._disk.quotas.rows.setdefault(row.tenant_id, row))

    async def insert_subscription(self, row: QuotaRow, *, job_id: str, owner: str) -> None:
        await self._once(job_id, lambda: self._disk.subscriptions.setdefault(row.tenant_id, row.plan))

    async def _once(self, job_id: str, effect: Callable[[], object]) -> None:
        await self._disk.turn()
        if job_id not in self._disk.jobs:
            self._disk.jobs.add(job_id)
            effect()


class MemoryKeyStore:
    """``keys.KeyStore``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def load(self, dead_since: datetime) -> Sequence[KeyEntry]:
        self._disk.key_loads.append(self._disk.clock())
        snapshot = [
            KeyEntry(key.api_key_id, key.tenant_id, key.role, key.key_hash, key.expires_at, key.revoked_at is not None)
            for key in self._disk.keys.values()
            if not (key.revoked_at and key.revoked_at <= dead_since)
        ]
        await self._disk.turn()
        return snapshot

    async def get(self, tenant_id: str, api_key_id: str) -> ApiKey | None:
        await self._disk.turn()
        key = self._disk.keys.get(api_key_id)
        return key if key and key.tenant_id == tenant_id else None

    async def family(self, tenant_id: str, api_key_id: str) -> Sequence[ApiKey]:
        mine = await self.page(tenant_id, None, 10**6)
        lineages = {key.lineage_id for key in mine if key.api_key_id == api_key_id}
        return [key for key in mine if key.lineage_id in lineages]

    async def live(self, tenant_id: str, now: datetime) -> Sequence[str]:
        return [key.api_key_id for key in await self.page(tenant_id, None, 10**6) if key.live(now)]

    async def page(self, tenant_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[ApiKey]:
        await self._disk.turn()
        mine = [key for key in self._disk.keys.values() if key.tenant_id == tenant_id]
        mine.sort(key=lambda key: key.api_key_id)
        mine.sort(key=lambda key: key.created_at, reverse=True)
        if after is not None:
            places = [(key.created_at, key.api_key_id) for key in mine]
            mine = mine[places.index(after) + 1 :]
        return mine[:limit]

    async def insert(self, key: ApiKey, *, job_id: str | None = None) -> None:
        await self._disk.turn()
        if job_id is None or job_id not in self._disk.jobs:
            self._disk.jobs.add(job_id or key.api_key_id)
            self._disk.keys[key.api_key_id] = key

    async def rotate(self, old: ApiKey, new: ApiKey, old_expires_at: datetime) -> bool:
        await self._disk.turn()
        stored = self._disk.keys[old.api_key_id]
        if stored.version != old.version or stored.revoked_at is not None:
            return False
        self._disk.keys[old.api_key_id] = dataclasses.replace(
            stored, version=stored.version + 1, expires_at=old_expires_at
        )
        self._disk.keys[new.api_key_id] = new
        return True

    async def revoke(self, tenant_id: str, api_key_ids: Sequence[str] | None, now: datetime) -> int:
        await self._disk.turn()
        done = 0
        for key in list(self._disk.keys.values()):
            wanted = api_key_ids is None or key.api_key_id in api_key_ids
            if key.tenant_id == tenant_id and wanted and key.revoked_at is None:
                changed = dataclasses.replace(key, revoked_at=now, version=key.version + 1)
                self._disk.keys[key.api_key_id] = changed
                done += 1
        return done

    async def touch(self, used: Mapping[str, datetime]) -> None:
        await self._disk.turn()
        for key_id, at in used.items():
            key = self._disk.keys.get(key_id)
            if key is not None and (key.last_used_at is None or key.last_used_at < at):
                self._disk.keys[key_id] = dataclasses.replace(key, last_used_at=at)


class MemoryDatasets:
    """``domain.Datasets``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def create(self, name: str, labels: Mapping[str, str]) -> MemoryDataset:
        await self._disk.turn()
        if name in self._disk.datasets:
            raise errors.AlreadyExists("DATASET_EXISTS", "The dataset exists already.")
        _check_labels(labels)
        made = self._disk.datasets[name] = MemoryDataset(dict(labels), self._disk.etag())
        return made

    async def get(self, name: str) -> MemoryDataset | None:
        await self._disk.turn()
        return self._disk.datasets.get(name)

    async def relabel(self, name: str, labels: Mapping[str, str | None], *, etag: str) -> MemoryDataset:
        await self._disk.turn()
        found = self._disk.datasets.get(name)
        if found is None or found.etag != etag:
            raise errors.Aborted("DATASET_CHANGED", "The dataset changed meanwhile.")
        merged = {key: value for key, value in {**found.labels, **labels}.items() if value is not None}
        _check_labels(merged)
        made = self._disk.datasets[name] = MemoryDataset(merged, self._disk.etag(), found.tables)
        return made

    async def delete(self, name: str) -> None:
        await self._disk.turn()
        self._disk.datasets.pop(name, None)

    async def ensure_tables(self, name: str, provider: str) -> list[str]:
        await self._disk.turn()
        found = self._disk.datasets[name]
        wanted = {"x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"}
        wanted |= {f"{provider}_cost"} if provider else set()
        self._disk.datasets[name] = dataclasses.replace(found, tables=found.tables | wanted)
        return sorted(wanted - found.tables)

    def knows(self, provider: str) -> bool:
        return provider in ("gcp", "aws", "azure")


def _check_labels(labels: Mapping[str, str]) -> None:
    legal = set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    for name, value in labels.items():
        assert len(name) <= 63 and len(value) <= 63 and set(name + value) <= legal, (name, value)


class Process:
    """One tenant process over a disk; kill it at any step, start another."""

    def __init__(self, disk: Disk, steps: Steps | None = None) -> None:
        self.disk = disk
        self.steps = steps or Steps()
        clock = disk.clock
        self.quota_ledger = Ledger(stepping(disk.quotas, self.steps), decide, now=clock)
        profile_ledger = Ledger(stepping(disk.profiles, self.steps), decide_profile, now=clock)
        store = stepping(MemoryTenantStore(disk), self.steps)
        key_store = stepping(MemoryKeyStore(disk), self.steps)
        datasets = stepping(MemoryDatasets(disk), self.steps)
        audit = self._audit
        self.ring = KeyRing(MemoryKeyStore(disk), environment="test", admin_key=ADMIN_KEY, now=clock, sleep=self._sleep)
        self.keys = ApiKeys(key_store, self.ring, audit, environment="test", now=clock)
        self.quotas = Quotas(self.quota_ledger, MemoryQuotaStore(disk), now=clock)
        self.tenants = Tenants(
            profile_ledger, self.quota_ledger, store, datasets, audit, revoke_keys=self.keys.revoke_all, now=clock
        )
        self.onboarding = Onboarding(store, datasets, profile_ledger, self.quota_ledger, self.keys, audit, now=clock)

    async def _audit(
        self,
        action: str,
        tenant_id: str,
        object_type: str,
        object_id: str,
        *,
        details: Mapping[str, Any] | None = None,
        record_id: str | None = None,
    ) -> None:
        step = self.steps.before_effect()
        await self.disk.turn()
        self.disk.audit.append(Recorded(action, tenant_id, object_type, object_id, details or {}, record_id))
        self.steps.after_effect(step)

    async def _sleep(self, seconds: float) -> None:
        self.disk.clock.advance(seconds=seconds)
        await asyncio.sleep(0)


def stepping(inner: Any, steps: Steps) -> Any:
    return Stepping(inner, steps)


def application(tenant_id: str = "acme", plan: Plan = Plan.STARTER, company: str = "Acme") -> Application:
    """An application with all that is asked."""
    from libs.tenancy import TenantId

    return Application(TenantId.parse(tenant_id), company, "admin@acme.test", plan)


async def stays(tenant_id: str) -> None:
    """``must_stay`` of a tenant that does."""


async def survive[T](work: Coroutine[Any, Any, T]) -> T | None:
    """The result of work whose process may be killed: None if it was."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=30)
    try:
        return task.result()
    except Killed:
        return None


def live_grants(row: QuotaRow) -> int:
    """LIVE grants, expired or not."""
    return sum(grant.state is GrantState.LIVE for grant in row.grants)


LONG = timedelta(seconds=61)
