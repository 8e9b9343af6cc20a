"""Stand-ins that can fail like the real thing: a clock, a table that conflicts, loses replies and writes partly."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from libs import errors
from libs.audit import AuditRecord


class Clock:
    """A clock that stands still until it is told; call it for the time."""

    def __init__(self, start: datetime = datetime(2025, 11, 17, 12, tzinfo=UTC)) -> None:
        self.time = start

    def __call__(self) -> datetime:
        return self.time

    def advance(self, by: timedelta | None = None, *, seconds: float = 0) -> None:
        """Moves forward."""
        self.time += (by or timedelta(0)) + timedelta(seconds=seconds)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop that skips to the next timer when nothing else can run, so that waiting costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._skipped = 0.0

    def time(self) -> float:
        return self._skipped

    def _run_once(self) -> None:
        if not self._ready:
            timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]
            self._skipped = max(self._skipped, min(timers, default=0.0))
        super()._run_once()


@dataclass
class Faults:
    """How likely each failure is, 0 to 1; may be changed while a test runs.

    ``conflict``: nothing is written and replace says False. ``lost_reply``: all is written and replace says False
    (an insert raises Ambiguous). ``partial``: some rows are written and replace says False. ``unavailable``: nothing
    is written and Unavailable is raised. ``read_unavailable``: the same for reads.
    """

    conflict: float = 0.0
    lost_reply: float = 0.0
    partial: float = 0.0
    unavailable: float = 0.0
    read_unavailable: float = 0.0


class MemoryTable[R]:
    """A ``libs.ledger.Table`` in memory; rows are frozen dataclasses with a ``version``.

    A row of version 0 that is not there is inserted, as a MERGE would. Rows are read and written as snapshots, with
    a turn of the event loop between, so that writers race as they do on the real store. ``writes`` counts calls.
    """

    def __init__(
        self, rows: Iterable[R] = (), *, key: Callable[[R], str], faults: Faults | None = None, seed: int = 0
    ) -> None:
        self.key = key
        self.rows: dict[str, R] = {key(row): row for row in rows}
        self.faults = faults or Faults()
        self.reads = 0
        self.writes = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._random = random.Random(seed)

    async def read(self, keys: Collection[str]) -> Mapping[str, R]:
        self.reads += 1
        await asyncio.sleep(0)
        if self._hit(self.faults.read_unavailable):
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        return {key: self.rows[key] for key in keys if key in self.rows}

    async def replace(self, rows: Collection[R]) -> bool:
        self.writes += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            return self._replace(list(rows))
        finally:
            self.in_flight -= 1

    def _replace(self, rows: Sequence[R]) -> bool:
        if len({self.key(row) for row in rows}) != len(rows):
            raise AssertionError("a key twice in one batch: BigQuery fails the whole statement")
        if self._hit(self.faults.unavailable):
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        if self._hit(self.faults.conflict):
            return False
        if self._hit(self.faults.partial):
            self._commit(self._random.sample(rows, self._random.randrange(len(rows))))
            return False
        return self._commit(rows) == len(rows) and not self._hit(self.faults.lost_reply)

    def _commit(self, rows: Sequence[R]) -> int:
        written = 0
        for row in rows:
            stored: Any = self.rows.get(self.key(row))
            version: int = row.version  # type: ignore[attr-defined]
            if (stored.version if stored is not None else 0) == version:
                self.rows[self.key(row)] = dataclasses.replace(row, version=version + 1)  # type: ignore[type-var]
                written += 1
        return written

    def _hit(self, chance: float) -> bool:
        return self._random.random() < chance


class MemoryInsert[R]:
    """A ``libs.ledger.Insert`` in memory: a batch id is done once, its reply may be lost."""

    def __init__(self, *, faults: Faults | None = None, seed: int = 0) -> None:
        self.rows: list[R] = []
        self.batches: dict[str, int] = {}
        self.calls = 0
        self.faults = faults or Faults()
        self._random = random.Random(seed)

    async def __call__(self, rows: Sequence[R], batch_id: str) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self._random.random() < self.faults.unavailable:
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        if batch_id not in self.batches:
            self.batches[batch_id] = len(rows)
            self.rows.extend(rows)
        if self._random.random() < self.faults.lost_reply:
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake lost the reply.")


class MemoryAudit:
    """An ``AuditLog`` in memory."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    async def append(self, record: AuditRecord) -> None:
        self.records.append(record)

    async def close(self) -> None:
        """Nothing is buffered."""
