"""Reads an API of a provider page by page into parquet files: politely, in bounded memory, and on from where an
earlier try of the step has failed.

Whole pages only are kept: after each the position behind it is noted, and when a try ends, however it ends, its file
is closed and the positions are written beside it. The next try of the same step finds both and asks for the page after.
They belong to the attempt: another attempt, of which another process may be the owner, reads from the beginning.

A record is kept as the provider wrote it. What is counted is counted here, of the provider's own words, so that what
SQL makes of the records has something to be held against.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
from google.cloud.bigquery import SchemaField

from libs import errors
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest, Scope
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.providers.worker import in_thread
from services.pipeline_executor.retry import Retry, pause

SCHEMA: Final = (
    SchemaField("scope", "STRING", "REQUIRED"),
    SchemaField("status", "STRING", "NULLABLE"),
    SchemaField("read_at", "TIMESTAMP", "REQUIRED"),
    SchemaField("record", "STRING", "REQUIRED"),
)
_PROGRESS = "progress.json"
_CALLS = Retry(attempts=8, base=timedelta(seconds=1), cap=timedelta(seconds=60))
_LONGEST_WAIT = timedelta(minutes=2)
# A run for yesterday may have waited over midnight.
_LATEST = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Record:
    """What the provider says of one finding: its word for how it stands, all of it, and of which account and region."""

    status: str | None
    body: Any
    place: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """One answer, and the position behind it; None after the last. ``places`` were looked at, whatever was found."""

    records: Sequence[Record]
    cursor: str | None
    places: Sequence[tuple[str, str]] = ()


class CursorRefusedError(Exception):
    """The provider does not know the position any more: the listing must be read from its beginning."""


class Api(Protocol):
    """A data set of a provider's API, signed in; used by one thread, but closed by any."""

    def page(self, scope: str, cursor: str | None) -> Page:
        """The page at a position of a scope, from its first one if None: one request or very few.

        Raises ``libs.errors``: ``Unavailable`` for what asking again may mend, ``FailedPrecondition`` for what the
        customer must; of those CREDENTIAL_REJECTED also for a session that has ended. ``CursorRefusedError``.
        """
        ...

    def close(self) -> None:
        """Lets go of its connections; a request in flight may end by it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What is read: the scopes (regions, subscriptions, …), one after another, and how to sign in.

    ``complete`` says that nothing was left out on purpose. ``connect`` is called again when the session has ended.
    ``pace`` is the shortest time between two requests.
    """

    scopes: Sequence[str]
    connect: Callable[[], Api]
    complete: bool = True
    pace: timedelta = timedelta(0)


async def read(listing: Listing, request: ExtractRequest) -> Extraction:
    """Reads every page that no earlier try of this step has read; ``errors`` and cancellation leave the pages read.

    Raises ``FailedPrecondition(SOURCE_HAS_NO_PAST)`` for a day that is over: an API says how things stand now.
    """
    if not timedelta(0) <= request.now.astimezone(UTC).date() - request.start_date <= _LATEST:
        raise errors.FailedPrecondition(
            "SOURCE_HAS_NO_PAST", "This source says how things stand now: run it for today or yesterday."
        )
    loop = asyncio.get_running_loop()
    identity = hashlib.sha256(
        json.dumps([request.dataset, list(listing.scopes), dict(request.source), dict(request.parameters)]).encode()
    ).hexdigest()

    def report(rows: int, size: int) -> None:
        loop.call_soon_threadsafe(request.report, rows, size)

    reading = _Reading(listing, _Pages(request.directory, identity), report)
    pages = await in_thread(reading.run, interrupt=reading.interrupt)
    return Extraction(
        files=tuple(request.directory / name for name in pages.files),
        schema=SCHEMA,
        rows=pages.rows,
        bytes=pages.bytes,
        started=pages.started,
        totals={status: {"row_count": Decimal(count)} for status, count in sorted(pages.counts.items())},
        scopes=tuple(Scope(account, region, listing.complete) for account, region in sorted(pages.places)),
        details={
            "scopes": list(listing.scopes),
            "pages": pages.pages,
            "pages_of_earlier_tries": reading.found,
        },
    )


# ------------------------------------------------------------------------------------------------- reading


class _Reading:
    """One try."""

    def __init__(self, listing: Listing, pages: _Pages, report: Callable[[int, int], None]) -> None:
        self._listing = listing
        self._pages = pages
        self._report = report
        self._api: Api | None = None
        self._answers = 0
        self.found = 0

    def interrupt(self) -> None:
        """Ends a request in flight, where the client can; from any thread."""
        if (api := self._api) is not None:
            api.close()

    def run(self, stop: threading.Event) -> _Pages:
        """In a thread that may block."""
        try:
            self._pages.find()
            self.found = self._pages.pages
            try:
                self._all(stop)
            except CursorRefusedError:
                # Once: a listing whose positions never last must not be read for ever.
                self._pages.clear()
                self.found = 0
                self._all(stop)
        except CursorRefusedError:
            self._pages.clear()
            raise errors.Unavailable(
                "SOURCE_CHANGED", "The listing changed while it was read, twice; try again."
            ) from None
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.Unavailable(
                    "STAGING_FULL", "There is no room left for the files of a run; try again later."
                ) from exc
            raise
        finally:
            self.interrupt()
        return self._pages

    def _all(self, stop: threading.Event) -> None:
        with self._pages.writing() as add:
            for scope in self._listing.scopes:
                while not self._pages.done(scope):
                    add(scope, self._page(stop, scope, self._pages.cursor(scope)))
                    self._report(self._pages.rows, self._pages.bytes)

    def _page(self, stop: threading.Event, scope: str, cursor: str | None) -> Page:
        try:
            return self._asked(stop, scope, cursor)
        except errors.FailedPrecondition as failure:
            # A session that has worked and does so no more has ended: the credential itself says whether it may begin
            # another one.
            if failure.reason != "CREDENTIAL_REJECTED" or not self._answers:
                raise
        self.interrupt()
        self._api, self._answers = None, 0
        return self._asked(stop, scope, cursor)

    def _asked(self, stop: threading.Event, scope: str, cursor: str | None) -> Page:
        tries = 0
        while True:
            wait = self._listing.pace if self._answers else timedelta(0)
            if stop.wait(wait.total_seconds()):
                raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.")
            try:
                if self._api is None:
                    self._api = self._listing.connect()
                page = self._api.page(scope, cursor)
            except errors.Error as failure:
                tries += 1
                wait = pause(_CALLS, tries, random.random(), failure.retry_after)
                if not failure.retryable or tries >= _CALLS.attempts or wait > _LONGEST_WAIT:
                    raise
                if stop.wait(wait.total_seconds()):
                    raise
                continue
            self._answers += 1
            return page


# ------------------------------------------------------------------------------------------------- pages


class _Pages:
    """The pages of a directory, and how far each scope is; used by one thread."""

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity
        self._cursors: dict[str, str | None] = {}
        self._forget()

    def _forget(self) -> None:
        self._cursors.clear()
        self.started = datetime.now(UTC)
        self.files: list[str] = []
        self.counts: dict[str, int] = {}
        self.places: set[tuple[str, str]] = set()
        self.pages = self.rows = self.bytes = 0

    def find(self) -> None:
        """Takes up what an earlier try has left, if it read the same; removes whatever else there is."""
        try:
            found = json.loads((self._directory / _PROGRESS).read_text("utf-8"))
        except FileNotFoundError:
            found = None
        if found is None or found["identity"] != self._identity:
            self.clear()
            return
        self.started = datetime.fromisoformat(found["started"])
        self._cursors.update(found["cursors"])
        self.files, self.counts = found["files"], found["counts"]
        self.places = {(account, region) for account, region in found["places"]}
        self.pages, self.rows, self.bytes = found["pages"], found["rows"], found["bytes"]

    def clear(self) -> None:
        """Forgets and removes everything."""
        self._forget()
        shutil.rmtree(self._directory)
        self._directory.mkdir(mode=0o700)

    def done(self, scope: str) -> bool:
        """Whether a scope's last page is here."""
        return scope in self._cursors and self._cursors[scope] is None

    def cursor(self, scope: str) -> str | None:
        """Where a scope's next page is, None for its first."""
        return self._cursors.get(scope)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[str, Page], None]]:
        """Opens a file and gives what adds a page to it; when it ends, by failure too, the pages added are kept."""
        name = f"records-{len(self.files)}.parquet"
        file = ParquetFile(self._directory / name, SCHEMA)
        whole = True

        def add(scope: str, page: Page) -> None:
            nonlocal whole
            whole = False
            if page.records:
                batch = _batch(scope, page.records, file.schema)
                file.write(batch)
                self.bytes += batch.nbytes
            for record in page.records:
                status = record.status or ""
                self.counts[status] = self.counts.get(status, 0) + 1
                self.places.add(record.place)
            self.places.update(page.places)
            self._cursors[scope] = page.cursor
            self.pages += 1
            self.rows += len(page.records)
            whole = True

        try:
            yield add
        finally:
            file.close()
            if whole:
                self._keep(name, file)

    def _keep(self, name: str, file: ParquetFile) -> None:
        if file.rows:
            self.files.append(name)
        progress = {
            "identity": self._identity,
            "started": self.started.isoformat(),
            "cursors": self._cursors,
            "files": self.files,
            "counts": self.counts,
            "places": sorted(self.places),
            "pages": self.pages,
            "rows": self.rows,
            "bytes": self.bytes,
        }
        written = self._directory / f"{_PROGRESS}.new"
        written.write_text(json.dumps(progress), "utf-8")
        written.replace(self._directory / _PROGRESS)


def _batch(scope: str, records: Sequence[Record], schema: pa.Schema) -> pa.RecordBatch:
    # A lone surrogate is legal in JSON text and nowhere else.
    texts = [
        json.dumps(record.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode("utf-8")
        for record in records
    ]
    columns: Mapping[str, list[Any]] = {
        "scope": [scope] * len(texts),
        "status": [record.status for record in records],
        "read_at": [datetime.now(UTC)] * len(texts),
        "record": texts,
    }
    return pa.RecordBatch.from_pydict(columns, schema=schema)
