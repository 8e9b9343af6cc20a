"""The in-memory store keeps the same promises as the real one, so what is shown on it counts."""

from __future__ import annotations

from tests.support.scheduler import MemoryStore
from tests.support.scheduler_suite import StoreSuite


class TestMemoryStore(StoreSuite):
    async def make(self) -> MemoryStore:
        return MemoryStore()
