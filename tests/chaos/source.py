"""The billing export that all customers read: it grows while they do, and each of its states is known to the cent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.api_core.exceptions import GoogleAPICallError
from google.cloud import bigquery
from requests.exceptions import RequestException

from deploy.local.layout import CUSTOMER_PROJECT
from tests.support import billing
from tests.support.stack import Stack, Totals, source_totals

# What a client meets while the emulator is dead, or starts again.
OUT_OF_REACH = (GoogleAPICallError, RequestException, OSError)
_LOOK_SECONDS = 120.0

type State = Mapping[str, Totals]


@dataclass(slots=True)
class Source:
    """The export. ``states`` holds, for each date, all it has ever said, the oldest first; it only ever gains rows."""

    where: Mapping[str, str]
    states: dict[str, list[State]]

    @property
    def dates(self) -> Sequence[str]:
        """The dates it has rows of."""
        return list(self.states)

    def now(self, date: str) -> int:
        """The number of rows that whoever asks from now on must be given at least."""
        return count(self.states[date][-1])

    def counts(self, date: str) -> set[int]:
        """The numbers of rows that a date has ever had; each is of one state only."""
        return {count(state) for state in self.states[date]}


def count(state: State) -> int:
    """The rows of all currencies."""
    return sum(total.row_count for total in state.values())


def plant(stack: Stack) -> Source:
    """Makes an export with some rows on each of six dates, in two currencies, and sums it at the source."""
    today = datetime.now(UTC).date()
    days = [datetime(2025, 11, day, tzinfo=UTC).date() for day in (3, 4, 5, 6)] + [today - timedelta(days=1), today]
    dice = random.Random(1)
    rows = [
        billing.row(
            usage_start_time=f"{day}T{hour % 24:02}:00:00Z",
            usage_end_time=f"{day}T{hour % 24:02}:59:59Z",
            export_time=f"{day}T23:{hour % 60:02}:00Z",
            invoice={"month": f"{day:%Y%m}"},
            cost=round(dice.uniform(0, 9), 6),
            currency="USD" if hour % 3 else "EUR",
            credits=[{"name": "promotion", "amount": -round(dice.uniform(0, 1), 6), "type": "PROMOTION"}]
            if hour % 4
            else [],
        )
        for number, day in enumerate(days)
        for hour in range(30 + 7 * number)
    ]
    client = stack.bigquery(CUSTOMER_PROJECT)
    try:
        reference = billing.Customer(client).export(rows, dataset="endurance", partition=None)
    finally:
        client.close()
    where = {"project_id": CUSTOMER_PROJECT, "dataset_id": reference.dataset_id, "table_id": reference.table_id}
    return Source(where, {str(day): [source_totals(stack, *where.values(), str(day))] for day in days})


class Growth:
    """Late rows, which an export gets for days after; each is seen by whoever asks after it was summed."""

    def __init__(self, stack: Stack, source: Source, seed: int) -> None:
        self.grown = 0
        self._stack = stack
        self._source = source
        self._dice = random.Random(seed)

    async def live(self) -> None:
        """Adds a row to one date after another until it is cancelled."""
        client = self._stack.bigquery(CUSTOMER_PROJECT)
        try:
            while True:
                await asyncio.sleep(self._dice.uniform(6, 12))
                # The emulator is killed now and then: then the row is there or not, and the next look says which.
                with contextlib.suppress(*OUT_OF_REACH):
                    await asyncio.to_thread(self.grow, client, self._dice.choice(self._source.dates))
        finally:
            client.close()

    def grow(self, client: bigquery.Client, date: str) -> None:
        """One more row of a date: one that is there already, again, as exports do have equal rows."""
        table = "`{project_id}.{dataset_id}.{table_id}`".format_map(self._source.where)
        of_day = f"DATE(s.usage_start_time) = DATE '{date}'"
        sql = f"INSERT INTO {table} SELECT s.* FROM {table} AS s WHERE {of_day} ORDER BY s.cost DESC LIMIT 1"
        try:
            client.query_and_wait(sql, retry=None, job_retry=None)
        finally:
            self.look(date)

    def look(self, date: str) -> None:
        """Sums a date anew, however often that takes: a state that was never seen could be published unknown."""
        deadline = time.monotonic() + _LOOK_SECONDS
        while True:
            try:
                state = source_totals(self._stack, *self._source.where.values(), date)
                break
            except OUT_OF_REACH:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        if state != self._source.states[date][-1]:
            self._source.states[date].append(state)
            self.grown += 1
