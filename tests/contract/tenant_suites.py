"""What the tenant context's stores must do, whatever is behind them; run on the emulator and in memory.

Not collected by itself: ``tests/unit/tenant/test_stores.py`` runs it on the fakes that the use cases are tested with,
``tests/integration/test_tenant_stores.py`` on BigQuery's adapters, so that neither can drift from the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from libs import errors
from libs.ledger import Table
from libs.tenancy import Role
from services.tenant.domain import Datasets, Profile, TenantStore
from services.tenant.keys import ApiKey, KeyStore, new_key
from services.tenant.onboarding import OnboardingStore
from services.tenant.quotas import (
    LIMITS,
    Grant,
    GrantState,
    Plan,
    QuotaRow,
    QuotaStore,
    TenantState,
)

NOW = datetime(2025, 11, 17, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
_ids = itertools.count()


@dataclass(frozen=True)
class Stores:
    """All adapters over one store."""

    quotas: QuotaStore
    quota_table: Table[QuotaRow]
    tenants: TenantStore
    onboarding: OnboardingStore
    profile_table: Table[Profile]
    keys: KeyStore
    datasets: Datasets


def key_of(tenant_id: str, at: datetime = NOW, **changes: object) -> ApiKey:
    parts = new_key("test")
    key = ApiKey(
        api_key_id=parts.key_id,
        tenant_id=tenant_id,
        version=1,
        name="ci",
        role=Role.RUNNER,
        key_hash=parts.secret_hash,
        last4=parts.secret[-4:],
        lineage_id=parts.key_id,
        created_at=at,
        created_by="admin",
    )
    return dataclasses.replace(key, **changes)  # type: ignore[arg-type]


class TenantSuite(ABC):
    """Subclass it in a test module and give ``stores``."""

    @abstractmethod
    def stores(self) -> Stores:
        """Adapters over a store that other tests may have used."""

    @staticmethod
    def tenant_id() -> str:
        return f"suite_{next(_ids):04d}"

    async def insert(self, stores: Stores, tenant_id: str, plan: Plan = Plan.STARTER, job: str = "") -> None:
        row = QuotaRow.fresh(tenant_id, plan, NOW)
        profile = Profile(tenant_id, 1, "Acme", "a@acme.test", TenantState.ACTIVE, NOW, NOW, onboarding_owner="o")
        job = job or f"job-{tenant_id}"
        await asyncio.gather(
            stores.onboarding.insert_quota(row, job_id=f"{job}-q", owner="o"),
            stores.onboarding.insert_subscription(row, job_id=f"{job}-s", owner="o"),
            stores.onboarding.insert_profile(profile, job_id=f"{job}-p", owner="o"),
        )

    # ------------------------------------------------------------ tenants

    async def test_a_tenant_is_inserted_once_under_one_job_id_and_under_several(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        await self.insert(stores, tenant_id)
        await self.insert(stores, tenant_id, Plan.SCALE)
        await self.insert(stores, tenant_id, Plan.SCALE, job=f"other-{tenant_id}")
        tenant = await stores.tenants.get(tenant_id)
        assert tenant is not None
        assert (tenant.plan, tenant.limits, tenant.state) == (Plan.STARTER, LIMITS[Plan.STARTER], TenantState.ACTIVE)
        assert (tenant.profile.company_name, tenant.profile.created_at) == ("Acme", NOW)
        assert await stores.onboarding.profile(tenant_id) == tenant.profile
        page = await stores.tenants.page(tenant_id[:-1], 100, state=None, plan=None)
        assert [item.profile.tenant_id for item in page].count(tenant_id) == 1
        assert await stores.tenants.get(self.tenant_id()) is None

    async def test_a_profile_is_swapped_whole(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        await self.insert(stores, tenant_id)
        row = (await stores.profile_table.read([tenant_id]))[tenant_id]
        changed = dataclasses.replace(
            row,
            company_name='quote " and \\ and ü',
            admin_email="b@acme.test",
            state=TenantState.OFFBOARDING,
            state_reason="asked",
            confirmations=(("credential", NOW), ("scheduler", NOW + HOUR)),
            delete_dataset=True,
            updated_at=NOW + HOUR,
            offboarded_at=NOW,
            deleted_at=NOW + HOUR,
        )
        assert await stores.profile_table.replace([changed])
        assert not await stores.profile_table.replace([changed])
        stored = (await stores.profile_table.read([tenant_id]))[tenant_id]
        assert stored == dataclasses.replace(changed, version=2)

    async def test_a_quota_row_is_swapped_whole(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        await self.insert(stores, tenant_id)
        row = (await stores.quota_table.read([tenant_id]))[tenant_id]
        day = row.day - timedelta(days=1)
        changed = dataclasses.replace(
            row,
            plan=Plan.SCALE,
            limits=LIMITS[Plan.SCALE],
            state=TenantState.SUSPENDED,
            pipelines_run_today=2,
            pipelines_run_month=7,
            grants=(
                Grant("run-1", 1, "me", row.day, NOW + HOUR, fingerprint='f"\\'),
                Grant("run-2", 2, "me", day, NOW, GrantState.SETTLED, ended=NOW),
            ),
            history=((day, 5),),
            updated_at=NOW + HOUR,
        )
        assert await stores.quota_table.replace([changed])
        stored = (await stores.quotas.read([tenant_id, "nobody"]))[tenant_id]
        assert stored == dataclasses.replace(changed, version=2)

    async def test_expired_and_stale_rows_are_found(self) -> None:
        stores = self.stores()
        names = [self.tenant_id() for _ in range(3)]
        await asyncio.gather(*(self.insert(stores, tenant_id) for tenant_id in names))
        rows = await stores.quota_table.read(names)
        untils = dict(zip(names, (NOW + 2 * HOUR, NOW + HOUR, None), strict=True))
        for tenant_id, until in untils.items():
            row = rows[tenant_id]
            grants = () if until is None else (Grant("run", 1, "me", row.day, until),)
            assert await stores.quota_table.replace([dataclasses.replace(row, grants=grants)])

        async def expired(now: datetime) -> list[str]:
            return [row.tenant_id for row in await stores.quotas.expired(now, 1_000) if row.tenant_id in names]

        assert await expired(NOW) == []
        assert await expired(NOW + HOUR) == [names[1]]
        assert await expired(NOW + 2 * HOUR) == [names[1], names[0]]
        today = NOW.date()
        assert not set(names) & set(await stores.quotas.stale(today))
        assert set(names) <= set(await stores.quotas.stale(today + timedelta(days=1)))

    async def test_tenants_are_paged_by_id_and_filter(self) -> None:
        stores = self.stores()
        names = [self.tenant_id() for _ in range(4)]
        plans = (Plan.STARTER, Plan.SCALE, Plan.STARTER, Plan.STARTER)
        await asyncio.gather(*(self.insert(stores, *each) for each in zip(names, plans, strict=True)))
        await self._set_state(stores, names[3], TenantState.SUSPENDED)

        async def ids(state: TenantState | None = None, plan: Plan | None = None) -> list[str]:
            found, after = [], names[0][:-1]
            while page := await stores.tenants.page(after, 2, state=state, plan=plan):
                after = page[-1].profile.tenant_id
                found += [item.profile.tenant_id for item in page]
            return [tenant_id for tenant_id in found if tenant_id in names]

        assert await ids() == names
        assert await ids(plan=Plan.STARTER) == [names[0], names[2], names[3]]
        assert await ids(plan=Plan.STARTER, state=TenantState.SUSPENDED) == [names[3]]
        assert await ids(state=TenantState.DELETED) == []

    async def test_profile_and_subscription_follow_the_quota_row(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        await self.insert(stores, tenant_id)
        row = await self._set_state(stores, tenant_id, TenantState.SUSPENDED)
        row = dataclasses.replace(row, plan=Plan.SCALE, limits=LIMITS[Plan.SCALE])
        assert await stores.quota_table.replace([row])
        assert tenant_id in await stores.tenants.drifted()
        for _ in range(2):
            await stores.tenants.follow([tenant_id])
        assert tenant_id not in await stores.tenants.drifted()
        profile = await stores.onboarding.profile(tenant_id)
        assert profile is not None and profile.state is TenantState.SUSPENDED

    async def test_who_is_leaving_and_what_is_left_to_do(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        await self.insert(stores, tenant_id)
        key = key_of(tenant_id)
        await stores.keys.insert(key)
        assert tenant_id not in [item.profile.tenant_id for item in await stores.tenants.leaving(NOW)]
        profile = (await stores.profile_table.read([tenant_id]))[tenant_id]
        leaving = dataclasses.replace(
            profile, state=TenantState.OFFBOARDING, confirmations=(("credential", NOW),), offboarded_at=NOW
        )
        assert await stores.profile_table.replace([leaving])
        assert tenant_id in await stores.tenants.unconfirmed("scheduler")
        assert tenant_id not in await stores.tenants.unconfirmed("credential")

        async def left() -> tuple[TenantState, bool, bool]:
            (item,) = [i for i in await stores.tenants.leaving(NOW) if i.profile.tenant_id == tenant_id]
            return item.quota_state, item.live_grants, item.live_keys

        assert await left() == (TenantState.ACTIVE, False, True)
        row = (await stores.quota_table.read([tenant_id]))[tenant_id]
        grants = (Grant("run", 1, "me", row.day, NOW),)
        row = dataclasses.replace(row, state=TenantState.OFFBOARDING, grants=grants)
        assert await stores.quota_table.replace([row])
        assert await stores.keys.revoke(tenant_id, None, NOW) == 1
        assert await left() == (TenantState.OFFBOARDING, True, False)
        tenant = await stores.tenants.get(tenant_id)
        assert tenant is not None and tenant.state is TenantState.OFFBOARDING

    async def _set_state(self, stores: Stores, tenant_id: str, state: TenantState) -> QuotaRow:
        row = (await stores.quota_table.read([tenant_id]))[tenant_id]
        assert await stores.quota_table.replace([dataclasses.replace(row, state=state)])
        return (await stores.quota_table.read([tenant_id]))[tenant_id]

    # ------------------------------------------------------------ keys

    async def test_a_key_is_stored_once_under_one_job_id(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        key = key_of(tenant_id, expires_at=NOW + HOUR, lifetime=HOUR)
        for _ in range(2):
            await stores.keys.insert(key, job_id=f"key-{key.api_key_id}")
        assert await stores.keys.get(tenant_id, key.api_key_id) == key
        assert await stores.keys.page(tenant_id, None, 10) == [key]
        assert await stores.keys.get(self.tenant_id(), key.api_key_id) is None
        assert await stores.keys.get(tenant_id, "unknown") is None

    async def test_the_ring_is_given_live_keys_and_those_that_ended_lately(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        live, revoked, long_gone = (key_of(tenant_id) for _ in range(3))
        expired = key_of(tenant_id, expires_at=NOW + HOUR, lifetime=HOUR)
        for key in (live, revoked, long_gone, expired):
            await stores.keys.insert(key)
        await stores.keys.revoke(tenant_id, [revoked.api_key_id], NOW + 3 * HOUR)
        await stores.keys.revoke(tenant_id, [long_gone.api_key_id], NOW)
        entries = {entry.api_key_id: entry for entry in await stores.keys.load(NOW + timedelta(minutes=1))}
        assert live.api_key_id in entries and long_gone.api_key_id not in entries
        assert (entries[revoked.api_key_id].revoked, entries[live.api_key_id].revoked) == (True, False)
        entry = entries[expired.api_key_id]
        assert (entry.tenant_id, entry.role, entry.key_hash) == (tenant_id, Role.RUNNER, expired.key_hash)
        assert entry.expires_at == NOW + HOUR
        assert set(await stores.keys.live(tenant_id, NOW + 2 * HOUR)) == {live.api_key_id}

    async def test_keys_are_paged_newest_first(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        made = [key_of(tenant_id, NOW + number // 2 * HOUR) for number in range(5)]
        for key in made:
            await stores.keys.insert(key)
        wanted = sorted(made, key=lambda key: key.api_key_id)
        wanted.sort(key=lambda key: key.created_at, reverse=True)
        found: list[ApiKey] = []
        after = None
        while page := await stores.keys.page(tenant_id, after, 2):
            found += page
            after = (page[-1].created_at, page[-1].api_key_id)
        assert found == wanted

    async def test_a_rotation_is_both_halves_or_neither(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        old = key_of(tenant_id)
        await stores.keys.insert(old)
        new = key_of(tenant_id, NOW + HOUR, lineage_id=old.lineage_id, expires_at=NOW + 3 * HOUR, lifetime=2 * HOUR)
        assert await stores.keys.rotate(old, new, NOW + 2 * HOUR)
        ended = dataclasses.replace(old, version=2, expires_at=NOW + 2 * HOUR)
        assert {key.api_key_id: key for key in await stores.keys.family(tenant_id, old.api_key_id)} == {
            old.api_key_id: ended,
            new.api_key_id: new,
        }
        other = key_of(tenant_id, lineage_id=old.lineage_id)
        assert not await stores.keys.rotate(old, other, NOW)
        assert await stores.keys.get(tenant_id, other.api_key_id) is None
        assert await stores.keys.get(tenant_id, old.api_key_id) == ended
        await stores.keys.revoke(tenant_id, [old.api_key_id], NOW)
        assert not await stores.keys.rotate(dataclasses.replace(ended, version=3), other, NOW)
        assert await stores.keys.family(tenant_id, "unknown") == []

    async def test_of_rotations_at_once_one_wins(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        old = key_of(tenant_id)
        await stores.keys.insert(old)
        news = [key_of(tenant_id, lineage_id=old.lineage_id) for _ in range(5)]
        won = await asyncio.gather(*(stores.keys.rotate(old, new, NOW + HOUR) for new in news), return_exceptions=True)
        assert [outcome for outcome in won if outcome is True] == [True]
        assert all(isinstance(outcome, bool | errors.Aborted) for outcome in won)
        assert len(await stores.keys.family(tenant_id, old.api_key_id)) == 2

    async def test_revoking_is_counted_once_and_stays_within_the_tenant(self) -> None:
        stores, tenant_id, other = self.stores(), self.tenant_id(), self.tenant_id()
        keys = [key_of(tenant_id) for _ in range(3)]
        theirs = key_of(other)
        for key in (*keys, theirs):
            await stores.keys.insert(key)
        assert await stores.keys.revoke(other, [keys[0].api_key_id], NOW) == 0
        assert await stores.keys.revoke(tenant_id, [], NOW) == 0
        assert await stores.keys.revoke(tenant_id, [keys[0].api_key_id], NOW) == 1
        assert await stores.keys.revoke(tenant_id, [keys[0].api_key_id], NOW + HOUR) == 0
        revoked = await stores.keys.get(tenant_id, keys[0].api_key_id)
        assert revoked is not None and (revoked.revoked_at, revoked.version) == (NOW, 2)
        assert await stores.keys.revoke(tenant_id, None, NOW) == 2
        assert await stores.keys.live(other, NOW) == [theirs.api_key_id]

    async def test_last_use_goes_forward_and_leaves_the_version_alone(self) -> None:
        stores, tenant_id = self.stores(), self.tenant_id()
        key = key_of(tenant_id)
        await stores.keys.insert(key)
        for at in (NOW, NOW + HOUR, NOW + timedelta(minutes=1)):
            await stores.keys.touch({key.api_key_id: at, "unknown": at})
        assert await stores.keys.get(tenant_id, key.api_key_id) == dataclasses.replace(key, last_used_at=NOW + HOUR)

    # ------------------------------------------------------------ datasets

    async def test_a_dataset_is_a_mutex_and_its_labels_are_swapped_by_etag(self) -> None:
        stores, name = self.stores(), self.tenant_id()
        assert await stores.datasets.get(name) is None
        made = await asyncio.gather(
            *(stores.datasets.create(name, {"onboarding": f"o{n}-1"}) for n in range(5)), return_exceptions=True
        )
        won = [item for item in made if not isinstance(item, BaseException)]
        assert len(won) == 1
        assert all(isinstance(item, errors.AlreadyExists) for item in made if item not in won)
        found = await stores.datasets.get(name)
        assert found is not None and dict(found.labels) == dict(won[0].labels)
        changed = await stores.datasets.relabel(name, {"onboarding": None, "onboarded_by": "o"}, etag=found.etag)
        assert dict(changed.labels) == {"onboarded_by": "o"}
        with pytest.raises(errors.Aborted):
            await stores.datasets.relabel(name, {"onboarded_by": "late"}, etag=found.etag)
        assert len(await stores.datasets.ensure_tables(name, "")) == 3
        assert await stores.datasets.ensure_tables(name, "") == []
        again = await stores.datasets.get(name)
        assert again is not None and dict(again.labels) == {"onboarded_by": "o"}
        for _ in range(2):
            await stores.datasets.delete(name)
        assert await stores.datasets.get(name) is None
        assert stores.datasets.knows("gcp") and not stores.datasets.knows("central")
