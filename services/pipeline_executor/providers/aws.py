"""Reads AWS: cost and usage reports (legacy and 2.0) and FOCUS exports in the customer's own bucket, by key or role.

One run reads, of each billing period that its days touch, the newest delivery. Files come one after another onto disk,
where they are decoded once by DuckDB and summed once by Arrow; the next one comes meanwhile, and no third is there. An
object is asked for by the etag it was listed with, and the manifest is looked at again at the end, so that a delivery
that changes while it is read is noticed, never mixed.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
from pydantic import Field

from libs import errors
from services.pipeline_executor.providers import aws_export as export
from services.pipeline_executor.providers import aws_rows as rows
from services.pipeline_executor.providers import bounds
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.providers.object_store import Listed, S3Bucket, Store, open_store
from services.pipeline_executor.providers.source import SourceModel
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.providers.worker import in_thread
from services.pipeline_executor.run_context import Secret

_LAYOUTS = {"cost_and_usage_report": rows.report_layout, "focus_export": rows.focus_layout}


class Source(SourceModel):
    """Where the exports lie. ``endpoint_url`` is for a stand-in on one machine, and refused everywhere else."""

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$")
    prefix: str | None = Field(default=None, pattern=r"^[\x20-\x7e]{1,1024}$")
    export_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9!_.*'()\-]{1,128}$")
    region: str | None = Field(default=None, pattern=r"^[a-z]{2}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$")
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[\x21-\x7e]{1,500}$")


class AwsExtractor:
    """Extracts ``cost_and_usage_report``, legacy and 2.0, and ``focus_export``: gzip CSV and parquet."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = False

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Finds the deliveries and reads the rows of the days, a parquet file for each of theirs."""
        source = read_source(Source, request.source)
        store = await open_store(S3Bucket(source.bucket, source.region, source.endpoint_url), secret, request.endpoints)
        started = datetime.now(UTC)
        readings = await _readings(store, source, request)
        version = _version(readings)
        if request.is_published(version):
            return _unchanged(readings, started, version)
        work = _Work(_LAYOUTS[request.dataset](), request)
        engine = rows.connect(request.directory)
        try:
            for reading in readings:
                await _read(store, reading, work, engine)
        finally:
            engine.close()
        return Extraction(
            files=tuple(work.files),
            schema=work.layout.schema,
            rows=work.rows,
            bytes=work.bytes,
            started=started,
            totals=work.totals.sums,
            details={
                "source": f"{source.bucket}/{source.prefix or ''}",
                "deliveries": [_shown(reading) for reading in readings],
                "missing_columns": sorted(work.drift.missing),
                "extra_columns": sorted(work.drift.extra),
                "seconds": {name: round(value, 3) for name, value in work.seconds.items()},
            },
            unknown_columns=tuple(sorted(work.drift.extra)),
            version=version,
        )


def _version(readings: Sequence[export.Reading]) -> str:
    """The etags of all that a run would read: what was not written anew is the same."""
    found = [
        [reading.delivery.root, str(reading.delivery.start), reading.delivery.manifest.etag, reading.delivery.run]
        + [f"{part.path}:{part.etag}" for part in reading.delivery.parts]
        for reading in readings
    ]
    return json.dumps(found, sort_keys=True)


def _unchanged(readings: Sequence[export.Reading], started: datetime, version: str) -> Extraction:
    return Extraction(
        files=(), schema=(), rows=0, bytes=0, started=started, totals={}, version=version, unchanged=True,
        details={"deliveries": [_shown(reading) for reading in readings]},
    )  # fmt: skip


def _shown(reading: export.Reading) -> Mapping[str, Any]:
    delivery = reading.delivery
    return {
        "export": delivery.export,
        "period": f"{delivery.start}/{delivery.end}",
        "run": delivery.run,
        "written": delivery.manifest.modified.isoformat(),
        "manifest": (delivery.manifest.etag or "").strip('"'),
        "files": len(delivery.parts),
        "days": (reading.last - reading.first).days + 1,
    }


async def _readings(store: Store, source: Source, request: ExtractRequest) -> Sequence[export.Reading]:
    objects = {item.path: item for item in await store.objects(source.prefix or "")}
    every = export.manifests(objects.values(), source.export_name, request.start_date, request.end_date)
    if not every:
        raise errors.FailedPrecondition(
            "SOURCE_NOT_FOUND",
            f"No export has a manifest for these days in bucket {source.bucket}"
            + (f", under {source.prefix}" if source.prefix else "")
            + (f", by the name {source.export_name}" if source.export_name else "")
            + ": give source.prefix and source.export_name as the export has them.",
        )
    found = []
    for item in every:
        text = await store.read(item.manifest.path, etag=item.manifest.etag)
        found.append(export.delivery(item, text, source.bucket, objects, datetime.now(UTC)))
    focus = request.dataset == "focus_export"
    return export.readings(found, focus=focus, first=request.start_date, last=request.end_date)


# ------------------------------------------------------------------------------------------------- rows


@dataclass
class _Work:
    """What the files of a run share."""

    layout: rows.Layout
    request: ExtractRequest
    totals: rows.Totals = field(default_factory=rows.Totals)
    drift: rows.Drift = field(default_factory=rows.Drift)
    files: list[Path] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


async def _read(store: Store, reading: export.Reading, work: _Work, engine: duckdb.DuckDBPyConnection) -> None:
    delivery = reading.delivery
    window = rows.Window(delivery.start, delivery.end, reading.first, reading.last)

    async def fetch(place: int) -> Path:
        part = delivery.parts[place]
        path = work.request.directory / f"part-{place % 2}{_suffix(part)}"
        await store.fetch(part.path, path, etag=part.etag, size=part.size)
        return path

    ahead = asyncio.ensure_future(fetch(0)) if delivery.parts else None
    try:
        for place, part in enumerate(delivery.parts):
            assert ahead is not None
            began = time.monotonic()
            path = await ahead
            work.seconds["waited for files"] += time.monotonic() - began
            # The next one comes while this one is decoded.
            ahead = asyncio.ensure_future(fetch(place + 1)) if place + 1 < len(delivery.parts) else None
            await in_thread(_decode, path, part, delivery, window, work, engine, interrupt=engine.interrupt)
            await asyncio.to_thread(path.unlink)
            work.request.report(work.rows, work.bytes)
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
    # Written anew while it was read: other files than those of this manifest may have been among them.
    await store.read(delivery.manifest.path, etag=delivery.manifest.etag)


def _suffix(part: Listed) -> str:
    name = part.path.lower()
    return ".parquet" if name.endswith(".parquet") else ".csv.gz" if name.endswith(".gz") else ".csv"


def _decode(
    stop: threading.Event,
    path: Path,
    part: Listed,
    delivery: export.Delivery,
    window: rows.Window,
    work: _Work,
    engine: duckdb.DuckDBPyConnection,
) -> None:
    """Decodes one file into one of ours and sums it by another reader."""
    name = part.path.rpartition("/")[2]
    target = work.request.directory / f"rows-{len(work.files)}.parquet"
    try:
        columns = rows.header(path)
        made = rows.plan(work.layout, columns, name)
        unknown = {column for column in made.extra if not column.lower().startswith("x_")}
        if not work.request.keep_unknown:
            made = replace(made, extra={column: at for column, at in made.extra.items() if column not in unknown})
        # First: Arrow notices an end that is missing, which DuckDB takes for the end.
        began = time.monotonic()
        work.totals.add(path, made, work.layout, window)
        work.seconds["summed"] += time.monotonic() - began
        if stop.is_set():
            raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.")
        began = time.monotonic()
        count = rows.convert(engine, path, made, work.layout, window, target)
        work.seconds["decoded"] += time.monotonic() - began
    except bounds.Unbelievable as exc:
        raise exc.of(name) from None
    except duckdb.InterruptException:
        raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.") from None
    except (duckdb.ConversionException, pa.ArrowInvalid) as exc:
        if _is_damage(exc):
            raise _damaged(name, delivery) from exc
        raise errors.FailedPrecondition(
            "SOURCE_VALUE_INVALID",
            f"File {name} has a value in {work.layout.start}, {', '.join(work.layout.sums)} or another date that "
            "cannot be read.",
        ) from exc
    except (duckdb.Error, pa.ArrowException, EOFError, gzip.BadGzipFile, zlib.error, csv.Error, OSError) as exc:
        raise _damaged(name, delivery) from exc
    except UnicodeDecodeError as exc:
        raise _damaged(name, delivery) from exc
    work.drift.extra |= unknown
    work.drift.missing |= {
        column.name
        for column in work.layout.schema
        if column.name not in made.own and column.name not in (*work.layout.json, *_OURS)
    }
    if count:
        work.files.append(target)
        work.rows += count
        work.bytes += target.stat().st_size


_OURS = ("usage_date", "billing_period", rows.EXTRA)


def _is_damage(exc: Exception) -> bool:
    text = str(exc)
    return isinstance(exc, pa.ArrowInvalid) and ("Parquet" in text or "CSV" in text)


def _damaged(name: str, delivery: export.Delivery) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "SOURCE_FILE_DAMAGED",
        f"File {name} of export {delivery.export} cannot be read to its end: it is truncated or damaged. Its next "
        "refresh replaces it.",
    )
