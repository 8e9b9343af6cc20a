"""Compare-and-swap rows with group commit: many askers, one read and one write at a time per table and process.

BigQuery runs two mutating statements per table at a time and each takes about a second, so a statement per request
cannot work. A ``Ledger`` collects the requests that arrive while a write is in flight, decides all of them in Python
on rows it has just read, and writes the changed rows in one statement that compares their versions. Callers are the
stores of all services. The invariant: **nobody is answered before the row the answer rests on is committed**, or, if
deciding changed nothing, was read so. Everything unclear (fewer rows replaced, conflict, timeout, reset) is settled by
reading and deciding again, which is why ``decide`` must recognise a request it has already granted.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from libs import caller, errors, tracing
from libs.bigquery import Sql, Warehouse, new_job_id, rows_param

_FIRST_PAUSE = 0.05
_LAST_PAUSE = 2.0


class Table[R](Protocol):
    """Rows that carry their key and their version."""

    async def read(self, keys: Collection[str]) -> Mapping[str, R]:
        """The rows as they are now, by key; keys that have no row are left out."""
        ...

    async def replace(self, rows: Collection[R]) -> bool:
        """Writes rows whose version is still the stored one, and raises it by one.

        True: every row was replaced. False: some were not, or nobody knows; read again.
        """
        ...


type Decide[R, Q, A] = Callable[[R | None, Q, datetime], tuple[R | None, A]]
"""Pure: (row or None, request, now) → (row, answer).

Returning an equal row changes nothing; the version is never touched. Deciding the same request again on the row it
made must change nothing and give the same answer. Raising ``libs.errors.Error`` refuses the request: that error is
its answer and the row stays as it was.
"""


class Ledger[R, Q, A]:
    """Group commit of a pure decision; one per table and process, used from one event loop.

    Requests for one row are decided one after another on the same row and written once. A failed or cancelled asker
    takes nobody with it.
    """

    def __init__(
        self,
        table: Table[R],
        decide: Decide[R, Q, A],
        *,
        now: Callable[[], datetime],
        max_rows: int = 1000,
        pause: timedelta = timedelta(0),
        deadline: timedelta = timedelta(seconds=15),
    ) -> None:
        """``pause`` rests that long after each round, so that other processes find the table free."""
        self._table = table
        self._decide = decide
        self._now = now
        self._group = _Group[_Ask[Q, A], A](self._round, max_items=max_rows, key=lambda ask: ask.key, pause=pause)
        self._deadline = deadline

    async def ask(self, key: str, request: Q, *, deadline: timedelta | None = None) -> A:
        """The answer to ``request`` on row ``key``, once it is durable; decided again until it is.

        Raises what ``decide`` or a terminal failure of the table raised; ``Unavailable(STORE_BUSY)`` when the
        deadline passes before a write was sent, ``Ambiguous(STORE_OUTCOME_UNKNOWN)`` when it passes after.
        """
        ask = _Ask[Q, A](key, request, asyncio.get_running_loop().create_future())
        return await self._group.join(ask, deadline or self._deadline)

    async def close(self) -> None:
        """Returns when all that was asked is answered."""
        await self._group.idle()

    async def _round(self, asks: Sequence[_Ask[Q, A]]) -> bool:
        rows = await self._table.read(sorted({ask.key for ask in asks}))
        changed: dict[str, R] = {}
        answers: list[tuple[_Ask[Q, A], A | errors.Error]] = []
        for ask in asks:
            before = changed.get(ask.key, rows.get(ask.key))
            answer: A | errors.Error
            try:
                after, answer = self._decide(before, ask.request, self._now())
            except errors.Error as refusal:
                after, answer = before, refusal
            except Exception as defect:
                ask.fail(defect)
                continue
            if after is not None and after != before:
                changed[ask.key] = after
            if ask.key in changed:
                answers.append((ask, answer))
            else:
                ask.settle(answer)
        if not answers:
            return True
        for ask, _ in answers:
            ask.sent = True
        if not await self._table.replace(list(changed.values())):
            return False
        for ask, settled in answers:
            ask.settle(settled)
        return True


type Insert[R] = Callable[[Sequence[R], str], Awaitable[None]]
"""(rows, batch id); called again with the same rows and the same id until the outcome is known.

``Aborted`` says that nothing was written and the id is spent: the next call has another.
"""


class Appender[R]:
    """Group commit of inserts; one per table and process, used from one event loop."""

    def __init__(
        self,
        insert: Insert[R],
        *,
        max_rows: int = 1000,
        pause: timedelta = timedelta(0),
        deadline: timedelta = timedelta(seconds=15),
    ) -> None:
        self._insert = insert
        self._group = _Group[_Append[R], None](self._round, max_items=max_rows, key=None, pause=pause)
        self._deadline = deadline
        self._unsettled: tuple[list[_Append[R]], str] | None = None

    async def append(self, row: R) -> None:
        """Returns when the row is in; errors as ``Ledger.ask``.

        After ``Ambiguous`` the row may be in; appending it again may double it, so readers go by its own id.
        """
        await self._group.join(_Append(row, asyncio.get_running_loop().create_future()), self._deadline)

    async def close(self) -> None:
        """Returns when all that was appended is settled."""
        await self._group.idle()

    async def _round(self, appends: Sequence[_Append[R]]) -> bool:
        if self._unsettled is None:
            self._unsettled = list(appends), new_job_id()
        batch, batch_id = self._unsettled
        for append in batch:
            append.sent = True
        answer: errors.Error | None = None
        try:
            await self._insert([append.row for append in batch], batch_id)
        except errors.Aborted:
            self._unsettled = None
            return False
        except errors.Error as failure:
            if failure.retryable and not all(append.waiter.done() for append in batch):
                return False
            answer = failure
        self._unsettled = None
        for append in batch:
            append.settle(answer)
        return answer is None or not answer.retryable


@dataclass(eq=False, slots=True)
class _Waiting[A]:
    """One caller that waits for its answer."""

    waiter: asyncio.Future[A]
    sent: bool = False
    asked_in: Any = field(default_factory=tracing.here)

    def settle(self, answer: A | errors.Error) -> None:
        if isinstance(answer, errors.Error):
            self.fail(answer)
        elif not self.waiter.done():
            self.waiter.set_result(answer)

    def fail(self, error: BaseException) -> None:
        if not self.waiter.done():
            self.waiter.set_exception(error)


class _Ask[Q, A](_Waiting[A]):
    __slots__ = ("key", "request")

    def __init__(self, key: str, request: Q, waiter: asyncio.Future[A]) -> None:
        super().__init__(waiter)
        self.key = key
        self.request = request


class _Append[R](_Waiting[None]):
    __slots__ = ("row",)

    def __init__(self, row: R, waiter: asyncio.Future[None]) -> None:
        super().__init__(waiter)
        self.row = row


class _Group[W: _Waiting[Any], A]:
    """Runs rounds one at a time over whoever waits, until nobody does.

    A round settles the items it can; those left unsettled take part in the next one, after a jittered pause. A
    retryable failure of a round does the same; any other failure is every item's answer.
    """

    def __init__(
        self,
        run_round: Callable[[Sequence[W]], Awaitable[bool]],
        *,
        max_items: int,
        key: Callable[[W], str] | None,
        pause: timedelta,
    ) -> None:
        self._run_round = run_round
        self._max_items = max_items
        self._key = key
        self._pause = pause.total_seconds()
        self._waiting: list[W] = []
        self._task: asyncio.Task[None] | None = None

    async def join(self, item: W, deadline: timedelta) -> A:
        self._waiting.append(item)
        if self._task is None or self._task.done():
            # For many callers at once: in nobody's context, or all that follows would bear the first one's ids.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            async with asyncio.timeout(deadline.total_seconds()):
                answer: A = await item.waiter
                return answer
        except TimeoutError:
            raise _late(item) from None

    async def idle(self) -> None:
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        caller.enter("group_commit")
        failures = 0
        while self._waiting:
            batch = self._next_batch()
            if not batch:
                return
            try:
                links = [item.asked_in for item in batch if item.asked_in is not None]
                with tracing.span("group_commit", links=links, items=len(batch)):
                    settled = await self._run_round(batch)
            except errors.Error as error:
                settled = False
                if not (error.retryable or isinstance(error, errors.Aborted)):
                    settled = self._fail(batch, error)
            except Exception as defect:
                settled = self._fail(batch, defect)
            failures = 0 if settled else failures + 1
            if failures:
                await asyncio.sleep(random.uniform(0, min(_LAST_PAUSE, _FIRST_PAUSE * 2**failures)))
            elif self._pause:
                await asyncio.sleep(self._pause)

    def _next_batch(self) -> list[W]:
        """The oldest items, of at most ``max_items`` rows; they stay in ``_waiting`` until they are settled."""
        self._waiting = [item for item in self._waiting if not item.waiter.done()]
        if self._key is None:
            return self._waiting[: self._max_items]
        batch: list[W] = []
        keys: set[str] = set()
        for item in self._waiting:
            if self._key(item) not in keys and len(keys) == self._max_items:
                continue
            keys.add(self._key(item))
            batch.append(item)
        return batch

    def _fail(self, batch: Sequence[W], error: BaseException) -> bool:
        for item in batch:
            item.fail(error)
        return True


def _late(item: _Waiting[Any]) -> errors.Unavailable:
    if item.sent:
        return errors.Ambiguous(
            "STORE_OUTCOME_UNKNOWN", "The change was sent but not confirmed in time; the same request may be repeated."
        )
    return errors.Unavailable("STORE_BUSY", "The store did not get to the request in time; try again.")


class BigQueryTable[R]:
    """A ``Table`` of two ``.sql`` files.

    ``read`` takes ``@keys`` (ARRAY<STRING>) and gives one row per key. ``replace`` takes ``@rows``, the JSON text of
    ``[to_json(row), …]``, updates where key and version match, sets ``version + 1``, and is sent in chunks of at
    most ``max_bytes``.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        *,
        dataset: str,
        read: Sql,
        replace: Sql,
        key: Callable[[R], str],
        from_row: Callable[[Mapping[str, Any]], R],
        to_json: Callable[[R], Mapping[str, Any]],
        max_bytes: int = 4_000_000,
        timeout: float = 20.0,
    ) -> None:
        self._warehouse = warehouse
        self._timeout = timeout
        self._dataset = dataset
        self._read = read
        self._replace = replace
        self._key = key
        self._from_row = from_row
        self._to_json = to_json
        self._max_bytes = max_bytes

    async def read(self, keys: Collection[str]) -> Mapping[str, R]:
        """The rows as they are now, by key."""
        found = await self._warehouse.query(
            self._read, dataset=self._dataset, params={"keys": list(keys)}, timeout=self._timeout
        )
        rows = [self._from_row(row) for row in found]
        return {self._key(row): row for row in rows}

    async def replace(self, rows: Collection[R]) -> bool:
        """One UPDATE per chunk; False after a conflict, a lost version or an unknown outcome."""
        by_key = {self._key(row): self._to_json(row) for row in rows}
        for chunk in _chunks(list(by_key.values()), self._max_bytes):
            try:
                affected = await self._warehouse.execute(
                    self._replace, dataset=self._dataset, params={"rows": rows_param(chunk)}, timeout=self._timeout
                )
            except (errors.Aborted, errors.Unavailable):
                return False
            if affected != len(chunk):
                return False
        return True


def bigquery_insert[R](
    warehouse: Warehouse, *, dataset: str, sql: Sql, to_json: Callable[[R], Mapping[str, Any]]
) -> Insert[R]:
    """An ``Insert`` of one ``.sql`` file that takes ``@rows``; the batch id is the job id, so it runs once."""

    async def insert(rows: Sequence[R], batch_id: str) -> None:
        params = {"rows": rows_param(to_json(row) for row in rows)}
        await warehouse.execute(sql, dataset=dataset, params=params, job_id=batch_id, conflict_retries=5)

    return insert


def _chunks(rows: Sequence[Mapping[str, Any]], max_bytes: int) -> Iterator[list[Mapping[str, Any]]]:
    chunk: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        length = len(rows_param([row]))
        if chunk and size + length > max_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    if chunk:
        yield chunk
