"""Reads Azure: Cost Management exports in the customer's own storage account, by service principal or SAS.

One run reads, of each billing period that its days touch, the newest complete delivery. Files come one after another
onto disk, where they are checked against the manifest, decoded once by Arrow and summed once by the standard library;
only one is there at a time. A blob is asked for by the etag it was listed with, so that a delivery that changes while
it is read is noticed, never mixed.

Where the data lie follows from the names of the source: no address a customer writes is asked, except on one machine,
where storage is stood in for.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import decimal
import gzip
import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, ClassVar

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import Field

from libs import errors
from services.pipeline_executor.providers import azure_export as export
from services.pipeline_executor.providers import bounds
from services.pipeline_executor.providers.cells import as_text, day_of
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.providers.object_store import AzureContainer, Store, open_store
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.providers.source import SourceModel
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.providers.worker import in_thread
from services.pipeline_executor.run_context import Secret

_BLOCK = 8 * 2**20
_BATCH_ROWS = 64 * 1024
_DIGITS = 76
_VIEWS: Mapping[str, tuple[str, ...]] = {
    "cost_export": (export.ACTUAL, export.AMORTIZED),
    "focus_export": (export.FOCUS,),
}
_LAYOUTS = {"cost_export": export.cost_layout, "focus_export": export.focus_layout}


class Source(SourceModel):
    """Where the exports lie. ``endpoint_url`` is for a stand-in on one machine, and refused everywhere else."""

    storage_account: str = Field(pattern=r"^[a-z0-9]{3,24}$")
    container: str = Field(pattern=r"^(?:\$root|[a-z0-9](?:-?[a-z0-9]){2,62})$")
    directory: str | None = Field(default=None, pattern=r"^[\x20-\x7e]{1,1024}$")
    export_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_\-]{1,128}$")
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[\x21-\x7e]{1,500}$")


class AzureExtractor:
    """Extracts ``cost_export``, actual and amortized, and ``focus_export``: EA and MCA, CSV, CSV.gz and parquet."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = False

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Finds the deliveries and reads the rows of the days into one parquet file; the sums are found beside it."""
        source = read_source(Source, request.source)
        place = AzureContainer(source.storage_account, source.container, source.endpoint_url)
        store = await open_store(place, secret, request.endpoints)
        started = datetime.now(UTC)
        found = await _deliveries(store, source, request)
        readings = export.readings(found, _VIEWS[request.dataset], request.start_date, request.end_date)
        views = sorted({reading.delivery.view for reading in readings})
        version = json.dumps(
            [[*_shown(reading).values(), *(part.etag for part in reading.delivery.parts)] for reading in readings]
        )
        if request.is_published(version):
            return Extraction(
                files=(), schema=(), rows=0, bytes=0, started=started, totals={}, version=version, unchanged=True,
                details={"deliveries": [_shown(reading) for reading in readings]},
            )  # fmt: skip
        layout = _LAYOUTS[request.dataset]()
        path = request.directory / "rows.parquet"
        work = _Work(
            layout, "".join(views) if len(views) == 1 else export.BOTH, request.directory, request.keep_unknown
        )
        with ParquetFile(path, layout.schema) as target:
            for reading in readings:
                if reading.days:
                    await _read(store, reading, work, target, request.report)
        return Extraction(
            files=(path,) if target.rows else (),
            schema=layout.schema,
            rows=target.rows,
            bytes=target.bytes,
            started=started,
            totals=work.totals.sums,
            details={
                "source": f"{source.storage_account}/{source.container}/{source.directory or ''}",
                "deliveries": [_shown(reading) for reading in readings],
                "missing_columns": sorted(work.missing),
                "extra_columns": export.unknown(work.extra),
            },
            unknown_columns=tuple(export.unknown(work.extra)),
            version=version,
        )


def _shown(reading: export.Reading) -> Mapping[str, Any]:
    delivery = reading.delivery
    return {
        "export": delivery.export,
        "view": delivery.view,
        "period": f"{delivery.start}/{delivery.end}",
        "run": delivery.run.strip("/"),
        "written": delivery.written.isoformat(),
        "files": len(delivery.parts),
        "days": len(reading.days),
    }


# ------------------------------------------------------------------------------------------------- deliveries


async def _deliveries(store: Store, source: Source, request: ExtractRequest) -> Sequence[export.Delivery]:
    blobs = [
        export.Blob(item.path, item.size, item.modified, item.etag)
        for item in await store.objects(source.directory or "")
    ]
    every = export.folders(blobs, source.export_name)
    if not every:
        raise errors.FailedPrecondition(
            "SOURCE_NOT_FOUND",
            f"No cost export was found in container {source.container}"
            + (f", directory {source.directory}" if source.directory else "")
            + (f", under the name {source.export_name}" if source.export_name else "")
            + ": give source.directory and source.export_name as the export has them.",
        )
    touched = export.overlapping(every, request.start_date, request.end_date)
    texts: dict[str, bytes] = {}
    for path in export.manifests(touched):
        texts[path] = await store.read(path)
    return export.deliveries(touched, texts, source.container)


# ------------------------------------------------------------------------------------------------- rows


@dataclass
class _Work:
    """What the files of a run share: layout, sums, drift and a place on disk for one of them."""

    layout: export.Layout
    views: str
    directory: Path
    keep_unknown: bool = True

    def __post_init__(self) -> None:
        self.totals = export.Totals()
        self.extra: set[str] = set()
        self.missing: set[str] = set()


async def _read(
    store: Store,
    reading: export.Reading,
    work: _Work,
    target: ParquetFile,
    report: Callable[[int, int], None],
) -> None:
    delivery = reading.delivery
    total = 0
    for part in delivery.parts:
        path = work.directory / f"part{''.join(Path(part.path).suffixes[-2:]).lower()}"
        await store.fetch(part.path, path, etag=part.etag, size=part.size)
        count = await in_thread(_decode, path, part, reading, work, target)
        await asyncio.to_thread(path.unlink)
        if part.rows is not None and count != part.rows:
            raise _incomplete(delivery, f"file {_name(part)} has {count} rows, its manifest says {part.rows}")
        total += count
        report(target.rows, target.bytes)
    if delivery.rows is not None and total != delivery.rows:
        raise _incomplete(delivery, f"its files have {total} rows, its manifest says {delivery.rows}")


def _name(part: export.Part) -> str:
    return part.path.rpartition("/")[2]


def _incomplete(delivery: export.Delivery, what: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "DELIVERY_INCOMPLETE",
        f"The newest delivery of export {delivery.export} for {delivery.start} to {delivery.end} is incomplete: "
        f"{what}. Run the export again.",
    )


def _decode(
    stop: threading.Event, path: Path, part: export.Part, reading: export.Reading, work: _Work, target: ParquetFile
) -> int:
    """Decodes one file and sums it by another way; how many rows the whole file has."""
    delivery = reading.delivery
    window = export.Window(delivery.start, delivery.end, reading.days)
    constants = {"cost_view": delivery.view, "cost_views": work.views}
    count = 0
    try:
        for batch in _batches(path):
            if stop.is_set():
                raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.")
            made = export.plan(work.layout, batch.schema.names, _name(part))
            work.extra |= set(made.extra)
            work.missing |= set(made.missing)
            if not work.keep_unknown:
                unknown = set(export.unknown(made.extra))
                batch = batch.select([column for column in batch.schema.names if column not in unknown])
            rows = export.rows(batch, work.layout, made, window, constants, _name(part))
            if rows.num_rows:
                target.write(rows)
            count += batch.num_rows
        _sum(stop, path, part, delivery.view, window, work)
    except bounds.Unbelievable as exc:
        raise exc.of(_name(part)) from None
    except (pa.ArrowException, EOFError, gzip.BadGzipFile, zlib.error, csv.Error, OSError, UnicodeDecodeError) as exc:
        raise errors.FailedPrecondition(
            "SOURCE_FILE_DAMAGED",
            f"File {_name(part)} of export {delivery.export} cannot be read to its end: it is truncated or damaged. "
            "Run the export again.",
        ) from exc
    return count


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.name.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            bounds.check_columns(file.metadata.num_columns)
            yield from file.iter_batches(batch_size=_BATCH_ROWS)
        return
    with pa.input_stream(str(path), compression="gzip" if path.name.endswith(".gz") else None) as stream:
        names = _header(path)
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK, column_names=names, skip_rows=1),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
        with reader:
            unpacked = 0
            for batch in reader:
                unpacked += batch.nbytes
                bounds.check_unpacked(path, unpacked)
                yield batch


@contextlib.contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield file


def _header(path: Path) -> list[str]:
    """The names of the columns; a second one of a name, in any letter case, gets a number."""
    found = bounds.header(path)
    names: list[str] = []
    seen: dict[str, int] = {}
    for name in found:
        key = name.strip().lower()
        seen[key] = seen.get(key, 0) + 1
        names.append(name.strip() if seen[key] == 1 else f"{name.strip()}_{seen[key]}")
    return names


def _sum(stop: threading.Event, path: Path, part: export.Part, view: str, window: export.Window, work: _Work) -> None:
    """Adds the file's rows of the window to the totals, read without Arrow where the file is text."""
    layout = work.layout
    measures = [name.format(view=view.lower()) for name in layout.sums.values()]
    with decimal.localcontext(prec=_DIGITS):
        for charged, start, end, currency, *costs in _cells(path, part, layout):
            if stop.is_set():
                return
            try:
                last = day_of(end) - timedelta(layout.end_is_exclusive) if end else None
                day = window.day(day_of(charged) if charged else None, day_of(start) if start else None, last)
                values = [export.number(cost) for cost in costs]
            except ValueError:
                raise export.invalid(_name(part), f"{layout.charge_day}, period or {layout.cost}") from None
            if day in window.days:
                work.totals.add(currency, dict(zip(measures, values, strict=True)))


def _cells(path: Path, part: export.Part, layout: export.Layout) -> Iterator[tuple[str | None, ...]]:
    asked = (layout.charge_day, layout.period_start, layout.period_end, layout.currency, *layout.sums)
    if path.name.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            ours = {ours: theirs for theirs, ours in _plan(layout, file.schema_arrow.names, part).names.items()}
            for batch in file.iter_batches(columns=[ours[name] for name in asked if name in ours]):
                columns = [
                    as_text(batch.column(ours[name])).to_pylist() if name in ours else [None] * batch.num_rows
                    for name in asked
                ]
                yield from zip(*columns, strict=True)
        return
    names = _header(path)
    ours = {ours: theirs for theirs, ours in _plan(layout, names, part).names.items()}
    places = [names.index(ours[name]) if name in ours else None for name in asked]
    with _text(path) as file:
        reader = csv.reader(file)
        next(reader, None)
        for row in reader:
            if row:
                yield tuple(None if place is None else row[place].strip() or None for place in places)


def _plan(layout: export.Layout, names: Sequence[str], part: export.Part) -> export.Plan:
    return export.plan(layout, names, _name(part))
