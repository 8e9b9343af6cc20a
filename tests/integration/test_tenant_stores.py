"""BigQuery's adapters of the tenant context do what its stores must do; onboarding survives deaths on them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from libs import errors
from libs.bigquery import Sql, Warehouse
from libs.ledger import Ledger
from services.tenant.domain import decide_profile
from services.tenant.keys import ApiKeys, KeyRing
from services.tenant.onboarding import HOLD, Onboarding, read_hold
from services.tenant.quotas import Plan, decide
from services.tenant.store import (
    BigQueryDatasets,
    BigQueryKeyStore,
    BigQueryQuotaStore,
    BigQueryTenantStore,
    profile_table,
    quota_table,
)
from tests.contract.tenant_suites import NOW, Stores, TenantSuite
from tests.support.fakes import Clock
from tests.support.tenant_world import ADMIN_KEY, Killed, Stepping, Steps, application


class TestBigQuery(TenantSuite):
    @pytest.fixture(autouse=True)
    def _use(self, central: Warehouse) -> None:
        self.warehouse = central

    def stores(self) -> Stores:
        quotas, profiles = quota_table(self.warehouse), profile_table(self.warehouse)
        tenants = BigQueryTenantStore(self.warehouse, profiles, lambda: NOW)
        return Stores(
            quotas=BigQueryQuotaStore(self.warehouse, quotas),
            quota_table=quotas,
            tenants=tenants,
            onboarding=tenants,
            profile_table=profiles,
            keys=BigQueryKeyStore(self.warehouse),
            datasets=BigQueryDatasets(self.warehouse),
        )


async def _no_audit(*_args: Any, **_more: Any) -> None:
    return None


def onboarding(warehouse: Warehouse, clock: Clock, steps: Steps) -> Onboarding:
    """The use case on the real adapters; each call of them is a step it may die at."""
    profiles = profile_table(warehouse)
    store: Any = Stepping(BigQueryTenantStore(warehouse, profiles, clock), steps)
    key_store: Any = Stepping(BigQueryKeyStore(warehouse), steps)
    datasets: Any = Stepping(BigQueryDatasets(warehouse), steps)
    ring = KeyRing(key_store, environment="test", admin_key=ADMIN_KEY, now=clock)
    keys = ApiKeys(key_store, ring, _no_audit, environment="test", now=clock)
    quotas, profile_rows = (
        Ledger(quota_table(warehouse), decide, now=clock),
        Ledger(profiles, decide_profile, now=clock),
    )
    return Onboarding(store, datasets, profile_rows, quotas, keys, _no_audit, now=clock)


# Every step is tried in memory (tests/unit/tenant/test_onboarding.py); here, one of each kind.
@pytest.mark.parametrize("step", [1, 5, 7, 9])
async def test_a_death_after_any_step_is_completed_by_the_next_try(central: Warehouse, step: int) -> None:
    clock, name = Clock(), f"dying_{step}"
    dying = onboarding(central, clock, Steps(kill_at=step, after=True))
    outcome = (await asyncio.gather(dying.onboard(application(name, company="First")), return_exceptions=True))[0]
    assert isinstance(outcome, Killed), outcome
    dataset = await central.get_dataset(name)
    assert dataset is not None
    retry = onboarding(central, clock, Steps())
    if read_hold(dataset) is None:
        with pytest.raises(errors.AlreadyExists):
            await retry.onboard(application(name))
        return
    with pytest.raises(errors.Aborted):
        await retry.onboard(application(name))
    clock.advance(HOLD + timedelta(seconds=1))
    made = await retry.onboard(application(name, plan=Plan.SCALE, company="Second"))
    rows = await central.query(
        Sql(
            "test/tenant.sql",
            "SELECT p.company_name, q.plan, s.plan AS subscribed, k.api_key_id FROM tenant_profiles AS p "
            "JOIN tenant_usage_quotas AS q ON q.tenant_id = p.tenant_id "
            "JOIN tenant_subscriptions AS s ON s.tenant_id = p.tenant_id "
            "JOIN tenant_api_keys AS k ON k.tenant_id = p.tenant_id AND k.revoked_at IS NULL "
            "WHERE p.tenant_id = @tenant_id",
        ),
        dataset="tenants",
        params={"tenant_id": name},
    )
    assert rows == [
        {"company_name": "Second", "plan": "SCALE", "subscribed": "SCALE", "api_key_id": made.key.key.api_key_id}
    ]
