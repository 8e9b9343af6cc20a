"""What every adapter of a store must do, whatever is behind it; run on the emulator and on the fakes.

Not collected by itself: ``tests/unit/libs/test_ledger.py`` runs the suite on ``MemoryTable``,
``tests/integration/test_ledger.py`` on ``BigQueryTable``.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from datetime import datetime

from libs.errors import ResourceExhausted
from libs.ledger import Ledger, Table
from tests.support.fakes import Clock


@dataclass(frozen=True, slots=True)
class Counter:
    """A row that grants slots up to a limit and remembers to whom."""

    key: str
    version: int = 1
    limit: int = 0
    taken: tuple[str, ...] = ()
    seen: datetime | None = None


def take(row: Counter | None, request: str, now: datetime) -> tuple[Counter | None, int]:
    """Grants ``request`` the next slot, the same one if it asks again; a missing row answers 0."""
    if row is None:
        return None, 0
    if request in row.taken:
        return row, row.taken.index(request) + 1
    if len(row.taken) >= row.limit:
        raise ResourceExhausted("FULL", "No slot is left.")
    return replace(row, taken=(*row.taken, request), seen=now), len(row.taken) + 1


class TableSuite(ABC):
    """Subclass it in a test module and give ``make``."""

    @abstractmethod
    async def make(self, rows: list[Counter]) -> Table[Counter]:
        """A table that holds exactly ``rows``, each stored with the version it carries."""

    async def test_reads_what_is_there_and_leaves_out_what_is_not(self) -> None:
        table = await self.make([Counter("a", limit=3), Counter("b", limit=0)])
        rows = await table.read(["b", "a", "absent"])
        assert rows == {"a": Counter("a", limit=3), "b": Counter("b")}
        assert await table.read([]) == {}

    async def test_replaces_and_raises_the_version(self) -> None:
        table = await self.make([Counter("a", limit=1), Counter("b", limit=1)])
        seen = Clock()()
        changed = [Counter("a", 1, 5, ("x", 'quote " and \\ back'), seen), Counter("b", 1, 6)]
        assert await table.replace(changed)
        rows = await table.read(["a", "b"])
        assert rows == {"a": replace(changed[0], version=2), "b": replace(changed[1], version=2)}

    async def test_a_stale_version_is_not_written(self) -> None:
        table = await self.make([Counter("a", limit=1)])
        assert await table.replace([Counter("a", 1, 2)])
        assert not await table.replace([Counter("a", 1, 9)])
        assert (await table.read(["a"]))["a"] == Counter("a", 2, 2)

    async def test_one_stale_row_of_a_batch_is_told(self) -> None:
        table = await self.make([Counter("a"), Counter("b", 4)])
        assert not await table.replace([Counter("a", 1, 7), Counter("b", 3, 7)])
        assert (await table.read(["b"]))["b"] == Counter("b", 4)

    async def test_of_concurrent_writers_of_one_version_at_most_one_wins(self) -> None:
        table = await self.make([Counter("a")])
        won = await asyncio.gather(*(table.replace([Counter("a", 1, n)]) for n in range(1, 7)))
        row = (await table.read(["a"]))["a"]
        assert sum(won) <= 1
        assert row.version == 2 or (row.version == 1 and not any(won))

    async def test_three_ledgers_never_grant_more_than_the_limit(self) -> None:
        table = await self.make([Counter("a", limit=25), Counter("b", limit=2)])
        ledgers = [Ledger(table, take, now=Clock()) for _ in range(3)]

        async def ask(n: int) -> int | None:
            try:
                return await ledgers[n % 3].ask("b" if n % 5 == 0 else "a", f"run-{n % 40}")
            except ResourceExhausted:
                return None

        answers = await asyncio.gather(*(ask(n) for n in range(60)))
        rows = await table.read(["a", "b"])
        for key, row in rows.items():
            assert len(row.taken) == len(set(row.taken)) <= row.limit
            for n, answer in enumerate(answers):
                if ("b" if n % 5 == 0 else "a") == key and answer is not None:
                    assert row.taken[answer - 1] == f"run-{n % 40}"
        assert len(rows["b"].taken) == 2 and len(rows["a"].taken) == 25
