"""What an extractor is asked for and what it leaves: typed files on disk, and totals found by another way.

The totals come from a query of their own in the source, never from the rows that were read: the quality checks
compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from google.cloud.bigquery import SchemaField

from libs.bigquery import TableRef, Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.providers.source import SourceModel
from services.pipeline_executor.run_context import Secret, SourceEndpoints


@dataclass(frozen=True, slots=True)
class Inside:
    """The platform's own BigQuery: the tenant whose data are read, and a staging table of the run's for what need not
    leave it."""

    warehouse: Warehouse
    tenant_id: TenantId
    target: TableRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRequest:
    """Which data set of the provider, for which UTC days (inclusive), from where, into which directory.

    ``parameters`` are the template's, checked. ``keep_unknown``: whether columns nobody has announced are kept. ``now``
    is when the try began.
    ``is_published(version)`` says whether these days stand published from exactly that version of the source.
    ``report(rows, bytes)`` takes the progress so far; it is called on the event loop.
    """

    dataset: str
    start_date: date
    end_date: date
    source: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    directory: Path
    platform_project: str
    endpoints: SourceEndpoints
    report: Callable[[int, int], None]
    inside: Inside
    keep_unknown: bool = True
    is_published: Callable[[str], bool] = lambda version: False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Scope:
    """What a scan has looked at: an account and a region, "" for all of them.

    What was there before and is missing now has vanished only where the scope is ``complete``: all checks were made
    and every page was read.
    """

    account_uid: str
    region: str = ""
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Files of one schema, or a staging table filled already, and what the source itself says should be in them.

    ``started`` is when the source was looked at, by the source's own clock: of two extractions the one that started
    later has seen more. ``totals`` is keyed by currency, or by the source's own word for a finding's status ("" where
    a row has none), then by measure. ``scopes`` is what a compliance scan covers. ``version`` is what the source
    cheaply says of its state (a manifest's etag, the newest time of export), None if it says nothing; ``unchanged``:
    these days stand published from that version, and nothing was read.
    """

    files: tuple[Path, ...]
    schema: tuple[SchemaField, ...]
    rows: int
    bytes: int
    started: datetime
    totals: Mapping[str, Mapping[str, Decimal]]
    scopes: tuple[Scope, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    unknown_columns: tuple[str, ...] = ()
    version: str | None = None
    unchanged: bool = False
    table: TableRef | None = None


class Extractor(Protocol):
    """The reader of a data set. Without state; may serve many runs at once.

    One that ``resumes`` finds its directory as its last try left it, and goes on from there; others find it empty.
    """

    @property
    def source(self) -> type[SourceModel]:
        """The fields that say where its data lie."""
        ...

    @property
    def resumes(self) -> bool:
        """Whether it goes on where its last try ended."""
        ...

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Reads the days into files; when cancelled, all its threads have ended before it returns.

        Raises ``libs.errors``: ``FailedPrecondition`` for what the customer must mend (SOURCE_NOT_FOUND,
        SOURCE_ACCESS_DENIED, CREDENTIAL_REJECTED, …), ``Unavailable`` for what another try may mend.
        """
        ...
