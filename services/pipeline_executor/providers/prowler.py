"""Reads Prowler's outputs, OCSF JSON or CSV, from a tenant's own bucket or container, for any of the clouds.

One run reads the outputs of one day, the newest first, and takes each account from the first one that has it. Files
come one after another onto disk, where they are decoded record by record and counted once more by DuckDB; only one is
there at a time. Which objects are outputs, and of which day, follows from their names: ``decide`` is pure.
"""

from __future__ import annotations

import asyncio
import csv
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, ClassVar, Final

import duckdb
import pyarrow as pa
from google.cloud.bigquery import SchemaField
from pydantic import Field

from libs import errors
from services.pipeline_executor.providers import aws_rows
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest, Scope
from services.pipeline_executor.providers.object_store import (
    AzureContainer,
    GcsBucket,
    Listed,
    Place,
    S3Bucket,
    Store,
    open_store,
)
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.providers.source import SourceModel
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.providers.worker import in_thread
from services.pipeline_executor.run_context import Secret

SCHEMA: Final = (
    SchemaField("account_uid", "STRING", description="Account, subscription or project."),
    SchemaField("record", "STRING", description="One finding as JSON text."),
)
_OCSF = ".ocsf.json"
_CSV = ".csv"
_STAMP = re.compile(r"(?<!\d)(20\d{12})(?!\d)")
_READ = 4 * 2**20
_MOST_RECORD = 64 * 2**20
_BATCH = 2_000
_NEEDED = ("ACCOUNT_UID", "CHECK_ID", "STATUS", "SEVERITY", "RESOURCE_UID")
csv.field_size_limit(_MOST_RECORD)


class _Source(SourceModel):
    """``prowler_prefix`` is the outputs' folder; the place may be the one that holds cost exports too."""

    prowler_prefix: str | None = Field(default=None, pattern=r"^[\x20-\x7e]{1,1024}$")
    # Of a stand-in on one machine; refused everywhere else.
    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[\x21-\x7e]{1,500}$")

    def place(self) -> Place:
        """Where the outputs lie."""
        raise NotImplementedError


class AwsSource(_Source):
    """A bucket of S3."""

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$")
    region: str | None = Field(default=None, pattern=r"^[a-z]{2}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$")

    def place(self) -> Place:
        """The bucket."""
        return S3Bucket(self.bucket, self.region, self.endpoint_url)


class AzureSource(_Source):
    """A container of a storage account."""

    storage_account: str = Field(pattern=r"^[a-z0-9]{3,24}$")
    container: str = Field(pattern=r"^(?:\$root|[a-z0-9](?:-?[a-z0-9]){2,62})$")

    def place(self) -> Place:
        """The container."""
        return AzureContainer(self.storage_account, self.container, self.endpoint_url)


class GcpSource(_Source):
    """A bucket of Cloud Storage."""

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9._\-]{1,220}[a-z0-9]$")

    def place(self) -> Place:
        """The bucket."""
        return GcsBucket(self.bucket, self.endpoint_url)


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a scan; ``made`` is when it was written, by its name or else by the store."""

    item: Listed
    made: datetime
    is_csv: bool


def decide(objects: Sequence[Listed], day: date) -> tuple[bool, list[Output]]:
    """Whether there are outputs at all, and those of the day, the newest first.

    Anything named ``….ocsf.json`` is one, and a ``….csv`` with ``prowler`` in its path, but for the reports by
    framework that Prowler writes into a folder ``compliance``. Where a scan has left both forms, the CSV is not read.
    """
    found: list[Output] = []
    ocsf = {item.path.removesuffix(_OCSF) for item in objects if item.path.endswith(_OCSF)}
    for item in objects:
        path = item.path.lower()
        folders = path.split("/")[:-1]
        is_csv = path.endswith(_CSV) and "prowler" in path and "compliance" not in folders
        if not (path.endswith(_OCSF) or (is_csv and item.path[: -len(_CSV)] not in ocsf)):
            continue
        found.append(Output(item, _made(item), is_csv))
    that_day = [output for output in found if output.made.date() == day]
    return bool(found), sorted(that_day, key=lambda output: (output.made, output.item.path), reverse=True)


def _made(item: Listed) -> datetime:
    for stamp in reversed(_STAMP.findall(item.path.rpartition("/")[2])):
        try:
            return datetime.strptime(stamp, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            continue
    return item.modified.astimezone(UTC)


class ProwlerExtractor:
    """Extracts ``prowler``; one for each provider, told apart by where it keeps objects."""

    resumes: ClassVar[bool] = False

    def __init__(self, source: type[_Source]) -> None:
        self.source = source

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Finds the day's outputs and reads them into one parquet file."""
        source = read_source(self.source, request.source)
        place, folder = source.place(), source.prowler_prefix or ""
        store = await open_store(place, secret, request.endpoints)
        started = datetime.now(UTC)
        any_, outputs = decide(await store.objects(folder), request.start_date)
        if not any_:
            raise errors.FailedPrecondition(
                "SOURCE_NOT_FOUND",
                f"There is no Prowler output in {place.where}"
                + (f", under {folder}" if folder else "")
                + ": neither a file that ends in .ocsf.json nor a .csv with prowler in its path.",
            )
        path = request.directory / "rows.parquet"
        with ParquetFile(path, SCHEMA) as target:
            work = _Work(request.directory, target)
            for output in outputs:
                await _read(store, output, work)
                request.report(target.rows, target.bytes)
        if lost := [name for name, account in work.truncated if account not in work.accounts]:
            raise errors.FailedPrecondition(
                "DELIVERY_INCOMPLETE",
                f"Output {lost[0]} is truncated, and no other one of {request.start_date} has its account: upload it "
                "again.",
            )
        complete = request.parameters.get("partial") is not True
        return Extraction(
            files=(path,) if target.rows else (),
            schema=SCHEMA,
            rows=target.rows,
            bytes=target.bytes,
            started=started,
            totals=work.totals(),
            scopes=tuple(Scope(account, complete=complete) for account in sorted(work.accounts)),
            details={
                "source": f"{place.where}{f', {folder}' if folder else ''}",
                "outputs": work.shown,
                "truncated": [name for name, _ in work.truncated],
                "accounts": len(work.accounts),
            },
        )


# ------------------------------------------------------------------------------------------------- records


@dataclass
class _Work:
    """What the outputs of a run share. ``counted`` has the records by account and status, as DuckDB counts them."""

    directory: Path
    target: ParquetFile
    counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    truncated: list[tuple[str, str]] = field(default_factory=list)
    shown: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def accounts(self) -> frozenset[str]:
        """Accounts that were read."""
        return frozenset(account for account, _ in self.counted)

    def totals(self) -> Mapping[str, Mapping[str, Decimal]]:
        """Records by status."""
        found: Counter[str] = Counter()
        for (_, status), count in self.counted.items():
            found[status] += count
        return {status: {"row_count": Decimal(count)} for status, count in found.items()}


async def _read(store: Store, output: Output, work: _Work) -> None:
    name = output.item.path.rpartition("/")[2]
    path = work.directory / f"output{_CSV if output.is_csv else '.json'}"
    await store.fetch(output.item.path, path, etag=output.item.etag, size=output.item.size)
    try:
        before = work.target.rows
        engine = aws_rows.connect(work.directory)
        try:
            await in_thread(_decode, path, output.is_csv, name, work, engine, interrupt=engine.interrupt)
        finally:
            engine.close()
        work.shown.append(
            {"file": output.item.path, "made": output.made.isoformat(), "records": work.target.rows - before}
        )
    finally:
        await asyncio.to_thread(path.unlink)


def _decode(
    stop: threading.Event, path: Path, is_csv: bool, name: str, work: _Work, engine: duckdb.DuckDBPyConnection
) -> None:
    """Writes the records of accounts that no newer output has had, and counts them by another reader."""
    read: Callable[[Path], Iterator[tuple[str, str]]] = _csv_records if is_csv else _json_records
    taken = work.accounts
    try:
        if not is_csv and not _ends(path):
            work.truncated.append((name, next((account for account, _ in read(path)), "")))
            return
        held: list[tuple[str, str]] = []
        for account, record in read(path):
            if stop.is_set():
                raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.")
            if account in taken:
                continue
            held.append((account, record))
            if len(held) == _BATCH:
                _write(work.target, held)
                held = []
        _write(work.target, held)
        found = _count(engine, path, is_csv)
        work.counted.update({key: count for key, count in found.items() if key[0] not in taken})
    except duckdb.InterruptException:
        raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.") from None
    except _NotProwler as exc:
        raise errors.FailedPrecondition("SOURCE_FILE_INVALID", f"File {name} is no Prowler output: {exc}.") from None
    except (ValueError, csv.Error, duckdb.Error, OSError) as exc:
        raise errors.FailedPrecondition(
            "SOURCE_FILE_DAMAGED", f"File {name} cannot be read to its end: upload it again."
        ) from exc


class _NotProwler(Exception):
    """What a file lacks."""


def _write(target: ParquetFile, rows: Sequence[tuple[str, str]]) -> None:
    if rows:
        columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(2)]
        target.write(pa.RecordBatch.from_arrays(columns, schema=target.schema))


def _ends(path: Path) -> bool:
    """Whether a JSON array is closed."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 64))
        return file.read().rstrip().endswith(b"]")


def _json_records(path: Path) -> Iterator[tuple[str, str]]:
    """Account and text of each element of a JSON array, a few megabytes in memory at a time."""
    decoder = json.JSONDecoder()
    with path.open("r", encoding="utf-8-sig") as file:
        text, place = _skip(file, "", 0, " \t\r\n")
        if text[place : place + 1] != "[":
            raise _NotProwler("it does not begin as a JSON array")
        place += 1
        while True:
            text, place = _skip(file, text, place, " \t\r\n,")
            if text[place : place + 1] in ("]", ""):
                return
            while True:
                try:
                    value, end = decoder.raw_decode(text, place)
                    break
                except json.JSONDecodeError:
                    more = file.read(_READ)
                    if not more or len(text) - place > _MOST_RECORD:
                        raise
                    text, place = text[place:] + more, 0
            if not isinstance(value, dict) or value.get("class_uid") not in (2003, 2004):
                raise _NotProwler("a record has another class than 2004")
            yield _account(value), text[place:end]
            place = end


def _skip(file: IO[str], text: str, place: int, letters: str) -> tuple[str, int]:
    """The text from the next letter on that is none of these."""
    while True:
        while place < len(text) and text[place] in letters:
            place += 1
        if place < len(text):
            return text, place
        text, place = file.read(_READ), 0
        if not text:
            return "", 0


def _account(record: Mapping[str, Any]) -> str:
    cloud = record.get("cloud")
    account = cloud.get("account") if isinstance(cloud, dict) else None
    uid = account.get("uid") if isinstance(account, dict) else None
    return uid if isinstance(uid, str) else ""


def _csv_records(path: Path) -> Iterator[tuple[str, str]]:
    """Account and row of each line of Prowler's CSV, as a JSON object."""
    with path.open("r", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=";", strict=True)
        if lacking := [name for name in _NEEDED if name not in (reader.fieldnames or ())]:
            raise _NotProwler(f"it lacks the column {lacking[0]}")
        for row in reader:
            if None in row or None in row.values():
                raise csv.Error("a line of another length")
            yield row["ACCOUNT_UID"], json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _count(engine: duckdb.DuckDBPyConnection, path: Path, is_csv: bool) -> Counter[tuple[str, str]]:
    """Records per account and status, by DuckDB's own reader of the form."""
    if is_csv:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=";"), [])
        relation = engine.read_csv(
            str(path), header=False, skiprows=1, delimiter=";", quotechar='"', escapechar='"', auto_detect=False,
            columns={f"c{place}": "VARCHAR" for place in range(len(names))}, parallel=False,
        )  # fmt: skip
        account, status = (duckdb.ColumnExpression(f"c{names.index(name)}") for name in ("ACCOUNT_UID", "STATUS"))
    else:
        columns = {"cloud": "JSON", "status_code": "VARCHAR"}
        relation = engine.read_json(
            str(path), format="array", records="true", columns=columns, maximum_object_size=_MOST_RECORD
        )
        inside = duckdb.ConstantExpression("$.account.uid")
        account = duckdb.FunctionExpression("json_extract_string", duckdb.ColumnExpression("cloud"), inside)
        status = duckdb.ColumnExpression("status_code")
    rows = relation.select(account.alias("account"), duckdb.FunctionExpression("upper", status).alias("status"))
    counted = rows.count("*", groups="account, status", projected_columns="account, status")
    return Counter({(account or "", status or ""): count for account, status, count in counted.fetchall()})
