"""The fakes of the tenant context do what its stores must do."""

from __future__ import annotations

from tests.contract.tenant_suites import NOW, Stores, TenantSuite
from tests.support.fakes import Clock
from tests.support.tenant_world import Disk, MemoryDatasets, MemoryKeyStore, MemoryQuotaStore, MemoryTenantStore


class TestMemory(TenantSuite):
    disk = Disk(Clock(NOW))

    def stores(self) -> Stores:
        tenants = MemoryTenantStore(self.disk)
        return Stores(
            quotas=MemoryQuotaStore(self.disk),
            quota_table=self.disk.quotas,
            tenants=tenants,
            onboarding=tenants,
            profile_table=self.disk.profiles,
            keys=MemoryKeyStore(self.disk),
            datasets=MemoryDatasets(self.disk),
        )
