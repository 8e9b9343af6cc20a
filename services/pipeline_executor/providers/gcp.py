"""Reads Google Cloud: the billing export table in the customer's own project, with the tenant's own key, or as the
platform's own account, where the customer lets it read the export and stores no key (``granted_access``).

Both reads of a run, the totals and the rows, are of one snapshot: the instant the source's clock showed when the run
began to look (BigQuery's time travel and a Read session's ``snapshot_time``). The table only grows while it is read,
so without this the two could differ by rows that came between. A stand-in that knows no snapshots in its Read API is
caught by comparing the counts: the step is then tried again.

What is granted to the platform is granted to all of its tenants alike, so the customer says whose it is: by the label
``convergence_tenant`` of the dataset, which only those can set who may change the dataset. It is looked at before and
after each read, and only a table is read, never a view: a view would be resolved with the platform's rights to what
others have granted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pyarrow as pa
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, types
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport
from pydantic import Field, model_validator

from libs import errors
from libs.bigquery import Sql, TableRef, Warehouse, build_client
from services.pipeline_executor.providers import gcp_access, gcp_export
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest, Inside
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.providers.source import SourceModel, required
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.run_context import Secret

_PACKAGE = "services.pipeline_executor.providers"
_SNAPSHOT = Sql.load(_PACKAGE, "sql/gcp_snapshot.sql")
_TOTALS = Sql.load(_PACKAGE, "sql/gcp_source_totals.sql")
_TOTALS_WITHOUT_CREDITS = Sql.load(_PACKAGE, "sql/gcp_source_totals_without_credits.sql")

_GRANTED = Sql.load(_PACKAGE, "sql/gcp_granted_rows.sql")
_VERSION = Sql.load(_PACKAGE, "sql/gcp_source_version.sql")
_FOCUS_TOTALS = Sql.load(_PACKAGE, "sql/gcp_focus_totals.sql")

_SCOPES = ("https://www.googleapis.com/auth/bigquery",)
GRANTED = "granted_access"
OWNER_LABEL = "convergence_tenant"
_MAX_STREAMS = 4
_GRANTED_SECONDS = 1800.0
_TOTALS_SECONDS = 600.0
# Whole rows are compared, in all partitions since the day: what that may cost a customer with a large export.
_MAXIMUM_BYTES = 2**40
# What it may cost the platform, which pays for reads of what was granted.
_GRANTED_BYTES = 100 * 2**30
_HTTP_SECONDS = 30.0
_RETRY = bigquery.DEFAULT_RETRY.with_timeout(_HTTP_SECONDS)
_THROTTLED = frozenset({"rateLimitExceeded", "jobRateLimitExceeded", "quotaExceeded", "concurrentQueriesExceeded"})
_NOT_A_NUMBER = re.compile(r"numeric|decimal|could not cast|out of range|overflow|nan\b", re.IGNORECASE)


class Source(SourceModel):
    """Where the billing export lies; all of it may be left out where the key's project holds exactly one."""

    project_id: str | None = Field(default=None, pattern=gcp_access.PROJECT)
    dataset_id: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,1023}$")
    table_id: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,1023}$")
    location: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9-]{1,40}$")

    @model_validator(mode="after")
    def _a_table_is_in_a_dataset(self) -> Source:
        if self.table_id is not None and self.dataset_id is None:
            raise required("dataset_id")
        return self


@dataclass(frozen=True, slots=True)
class _Access:
    """How the customer's project is reached: with its key, or by what it has granted to the platform's account."""

    credentials: Any
    project_id: str
    endpoint: str | None
    storage_endpoint: str | None
    granted_to: str | None = None


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of export: what its tables are called, how one is read, and what is summed in it."""

    words: str
    table_name: re.Pattern[str]
    example: str
    plan: Callable[[Sequence[bigquery.SchemaField]], gcp_export.Plan]
    measures: tuple[str, ...]


_KINDS = {
    "billing_export": _Kind(
        "billing export", gcp_export.EXPORT_NAME, "gcp_billing_export_v1_… or gcp_billing_export_resource_v1_…",
        gcp_export.plan, ("row_count", "cost", "credits", "distinct_rows"),
    ),
    "focus_export": _Kind(
        "FOCUS export", gcp_export.FOCUS_EXPORT_NAME, "gcp_billing_export_focus_…", gcp_export.focus_plan,
        ("row_count", "billed_cost", "effective_cost"),
    ),
}  # fmt: skip


class GcpExtractor:
    """Extracts ``billing_export``, a Cloud Billing export, standard or detailed, of any age, and ``focus_export``."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = False

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Finds the table, totals it and reads its rows, all as of one instant, into one parquet file."""
        source = read_source(Source, request.source)
        access = _access(secret, request)
        kind = _KINDS[request.dataset]
        table = await _run(_find_table, access, source, request)
        read = kind.plan(table.schema)
        rows = gcp_export.rows(read, gcp_export.partitioning(table), request.start_date, request.end_date)
        found = await _totals(access, table, source.location, kind, read, rows, request.is_published)
        snapshot, totals = found.snapshot, found.totals
        if found.unchanged:
            return Extraction(
                files=(), schema=(), rows=0, bytes=0, started=snapshot, totals={}, version=found.version,
                unchanged=True,
                details={"source": f"{table.project}.{table.dataset_id}.{table.table_id}"},
            )  # fmt: skip
        expected = sum(int(measures["row_count"]) for measures in totals.values())
        path = request.directory / "rows.parquet"
        size, staged = 0, None
        if expected:
            reader = _Reading(read, rows, snapshot, request.keep_unknown)
            if access.granted_to and request.dataset == "billing_export" and not read.extra:
                staged = request.inside.target
                await _copy(request.inside, table, reader, expected)
            else:
                size = await _read(access, table, reader, expected, path, request.report)
        if access.granted_to:
            await _run(_confirm, access, table)
        return Extraction(
            files=(path,) if expected and staged is None else (),
            table=staged,
            schema=read.schema,
            rows=expected,
            bytes=size,
            started=snapshot,
            totals=totals,
            details={
                "source": f"{table.project}.{table.dataset_id}.{table.table_id}",
                "snapshot": snapshot.isoformat(),
                "restriction": rows.restriction(),
                "missing_columns": list(read.missing),
                "extra_columns": list(read.extra),
            },
            unknown_columns=read.extra,
            version=found.version,
        )


# ------------------------------------------------------------------------------------------------- access


def _access(secret: Secret, request: ExtractRequest) -> _Access:
    endpoints = request.endpoints
    if secret.reveal().get("type") == GRANTED:
        return _Access(
            request.inside.warehouse.client._credentials, request.platform_project, endpoints.bigquery,
            endpoints.bigquery_storage, str(request.inside.tenant_id),
        )  # fmt: skip
    credentials, project_id = gcp_access.credentials(secret, _SCOPES, local=endpoints.bigquery is not None)
    return _Access(credentials, project_id, endpoints.bigquery, endpoints.bigquery_storage)


@contextlib.contextmanager
def _client(access: _Access, location: str) -> Iterator[bigquery.Client]:
    client = build_client(
        access.project_id, endpoint=access.endpoint, credentials=access.credentials, location=location, pool=8
    )
    try:
        yield client
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _find_table(access: _Access, source: Source, request: ExtractRequest) -> bigquery.Table:
    project = source.project_id or access.project_id
    if access.granted_to and not (source.project_id and source.dataset_id):
        raise errors.FailedPrecondition(
            "SOURCE_INVALID", "Access that was granted to the platform needs source.project_id and source.dataset_id."
        )
    if (access.endpoint or access.granted_to) and project == request.platform_project:
        # What IAM does in the cloud: a customer's key opens nothing in the platform's project. The platform's own
        # account opens everything there.
        raise _denied()
    with _client(access, source.location or "US") as client:
        if access.granted_to:
            _check_owner(client, bigquery.DatasetReference(project, str(source.dataset_id)), access.granted_to)
        if source.dataset_id and source.table_id:
            reference = bigquery.DatasetReference(project, source.dataset_id).table(source.table_id)
        else:
            reference = _discover(client, project, source.dataset_id, _KINDS[request.dataset])
        table = client.get_table(reference, timeout=_HTTP_SECONDS, retry=_RETRY)
    if table.table_type not in ("TABLE", "SNAPSHOT", "CLONE"):
        raise errors.FailedPrecondition(
            "SOURCE_NOT_A_TABLE",
            f"The source is a {table.table_type.lower()}: give the {_KINDS[request.dataset].words} table itself as "
            "source.table_id.",
        )
    return table


def _check_owner(client: bigquery.Client, dataset: bigquery.DatasetReference, tenant_id: str) -> None:
    labels = client.get_dataset(dataset, timeout=_HTTP_SECONDS, retry=_RETRY).labels
    if labels.get(OWNER_LABEL) != tenant_id:
        raise errors.FailedPrecondition(
            "SOURCE_NOT_YOURS",
            f"Dataset {dataset.project}.{dataset.dataset_id} does not say that it is this tenant's: set its label "
            f"{OWNER_LABEL} to {tenant_id}.",
        )


def _confirm(access: _Access, table: bigquery.Table) -> None:
    """Raises unless what was read is still this tenant's and still the same table."""
    with _client(access, table.location or "US") as client:
        dataset = bigquery.DatasetReference(table.project, table.dataset_id)
        _check_owner(client, dataset, str(access.granted_to))
        now = client.get_table(table.reference, timeout=_HTTP_SECONDS, retry=_RETRY)
    if (now.table_type, now.created) != (table.table_type, table.created):
        raise errors.Unavailable("SOURCE_CHANGED", "The source table was replaced while it was read; try again.")


def _discover(client: bigquery.Client, project: str, dataset_id: str | None, kind: _Kind) -> bigquery.TableReference:
    datasets = [dataset_id] if dataset_id else [item.dataset_id for item in client.list_datasets(project, retry=_RETRY)]
    found: list[bigquery.TableReference] = [
        table.reference
        for dataset in datasets
        for table in client.list_tables(bigquery.DatasetReference(project, dataset), retry=_RETRY)
        if kind.table_name.fullmatch(table.table_id)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise errors.FailedPrecondition(
            "SOURCE_NOT_FOUND",
            f"No {kind.words} table ({kind.example}) was found in "
            f"{'dataset ' + dataset_id if dataset_id else 'project ' + project}: give source.project_id, "
            "source.dataset_id and source.table_id.",
        )
    names = sorted(f"{table.project}.{table.dataset_id}.{table.table_id}" for table in found)
    raise errors.FailedPrecondition(
        "SOURCE_AMBIGUOUS",
        f"There are {len(names)} {kind.words} tables ({', '.join(names[:5])}{', …' if len(names) > 5 else ''}): "
        "give source.dataset_id and source.table_id of the one to read.",
        candidates=",".join(names[:20]),
    )


# ------------------------------------------------------------------------------------------------- totals


@dataclass(frozen=True, slots=True)
class _Found:
    """What the source says of the run's rows, as of one instant."""

    snapshot: datetime
    totals: Mapping[str, Mapping[str, Decimal]]
    version: str | None
    unchanged: bool = False


async def _totals(
    access: _Access,
    table: bigquery.Table,
    location: str | None,
    kind: _Kind,
    read: gcp_export.Plan,
    rows: gcp_export.Rows,
    is_published: Callable[[str], bool],
) -> _Found:
    statement = _TOTALS if read.has_credits else _TOTALS_WITHOUT_CREDITS
    if read.time_column == "ChargePeriodStart":
        statement = _FOCUS_TOTALS
    names = {
        "source": TableRef(table.table_id, table.dataset_id, table.project), "partition": rows.partition_column()
    }  # fmt: skip
    version: str | None = None
    with _client(access, location or table.location or "US") as client:
        most = _GRANTED_BYTES if access.granted_to else _MAXIMUM_BYTES
        customer = Warehouse(client, max_workers=1, maximum_bytes_billed=most)
        try:
            found = await customer.query(_SNAPSHOT, dataset=table.dataset_id)
            snapshot: datetime = found[0]["snapshot"]
            params = {**rows.params(), "snapshot": snapshot}
            if read.written_column is not None:
                ask = _VERSION.with_tables(
                    **names, time=TableRef(read.time_column), written=TableRef(read.written_column)
                )
                found = await customer.query(ask, dataset=table.dataset_id, params=params, timeout=_TOTALS_SECONDS)
                version = f"{table.created}/{found[0]['version']}"
                if is_published(version):
                    return _Found(snapshot, {}, version, unchanged=True)
            sql = statement.with_tables(**names)
            result = await customer.query(sql, dataset=table.dataset_id, params=params, timeout=_TOTALS_SECONDS)
        except errors.Error as exc:
            raise source_error(exc.__cause__ or exc) from exc.__cause__
        finally:
            customer.close()
    totals = {row["currency"]: {name: Decimal(row[name]) for name in kind.measures} for row in result}
    return _Found(snapshot, totals, version)


# ------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class _Reading:
    """Which rows are read, as of when, and into what."""

    plan: gcp_export.Plan
    rows: gcp_export.Rows
    snapshot: datetime
    keep_unknown: bool


async def _copy(inside: Inside, table: bigquery.Table, reading: _Reading, expected: int) -> None:
    """Puts the rows into the staging table inside BigQuery; no byte of them comes here."""
    home = inside.warehouse.client.location
    if table.location and home and table.location.lower() != home.lower():
        raise errors.FailedPrecondition(
            "SOURCE_ELSEWHERE",
            f"The source lies in {table.location}, this platform in {home}, and BigQuery joins no places: store a key.",
        )
    sql = _GRANTED.with_tables(
        source=TableRef(table.table_id, table.dataset_id, table.project),
        partition=reading.rows.partition_column(),
        target=inside.target,
    )
    params = {**reading.rows.params(), "snapshot": reading.snapshot}
    await inside.warehouse.script(
        sql, dataset=inside.tenant_id, params=params, timeout=_GRANTED_SECONDS, conflict_retries=3
    )
    made = bigquery.DatasetReference(inside.warehouse.project_id, inside.tenant_id).table(inside.target.table)
    found = await inside.warehouse.run(inside.warehouse.client.get_table, made, timeout=_HTTP_SECONDS)
    if found.num_rows != expected:
        raise errors.Unavailable(
            "SOURCE_CHANGED", f"The source gave {found.num_rows} rows, but counts {expected}: it changed meanwhile."
        )


async def _read(
    access: _Access,
    table: bigquery.Table,
    reading: _Reading,
    expected: int,
    path: Path,
    report: Callable[[int, int], None],
) -> int:
    loop = asyncio.get_running_loop()

    def report_from_thread(count: int, size: int) -> None:
        loop.call_soon_threadsafe(report, count, size)

    reader = _Reader(access, report_from_thread)
    work = asyncio.ensure_future(_run(reader.read, table, reading, path))
    try:
        count, size = await asyncio.shield(work)
    except asyncio.CancelledError:
        reader.stop()
        await asyncio.wait([work])
        work.exception()
        raise
    if count != expected:
        raise errors.Unavailable(
            "SOURCE_CHANGED", f"The source gave {count} rows, but counts {expected}: it changed while it was read."
        )
    return size


class _Reader:
    """One Read session's streams into one file; ``stop`` may be called from any thread."""

    def __init__(self, access: _Access, report: Callable[[int, int], None]) -> None:
        self._access = access
        self._report = report
        self._stopped = threading.Event()
        self._close: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Ends the reading soon; ``read`` then raises."""
        self._stopped.set()
        self._close()

    def read(self, table: bigquery.Table, reading: _Reading, path: Path) -> tuple[int, int]:
        client, metadata = self._connect()
        try:
            session = client.create_read_session(
                parent=f"projects/{self._access.project_id}",
                read_session=types.ReadSession(
                    table=f"projects/{table.project}/datasets/{table.dataset_id}/tables/{table.table_id}",
                    data_format=types.DataFormat.ARROW,
                    read_options=types.ReadSession.TableReadOptions(row_restriction=reading.rows.restriction()),
                    table_modifiers=types.ReadSession.TableModifiers(snapshot_time=reading.snapshot),
                ),
                max_stream_count=_MAX_STREAMS,
                metadata=metadata,
                timeout=_HTTP_SECONDS,
            )
            with (
                ParquetFile(path, reading.plan.schema) as file,
                ThreadPoolExecutor(max(1, len(session.streams))) as pool,
            ):
                schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
                streams = [
                    pool.submit(self._stream, client, stream.name, metadata, schema, reading, file)
                    for stream in session.streams
                ]
                self._wait(streams)
            return file.rows, file.bytes
        finally:
            self._close()

    def _wait(self, streams: Sequence[Any]) -> None:
        try:
            for stream in streams:
                stream.result()
        except BaseException:
            self.stop()
            raise

    def _stream(
        self,
        client: BigQueryReadClient,
        name: str,
        metadata: Sequence[tuple[str, str]],
        schema: pa.Schema,
        reading: _Reading,
        file: ParquetFile,
    ) -> None:
        for response in client.read_rows(name, metadata=metadata):  # type: ignore[no-untyped-call]
            if self._stopped.is_set():
                raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.")
            data = pa.py_buffer(response.arrow_record_batch.serialized_record_batch)
            batch = pa.ipc.read_record_batch(data, schema)
            file.write(reading.plan.staged(batch, keep_unknown=reading.keep_unknown))
            self._report(file.rows, file.bytes)

    def _connect(self) -> tuple[BigQueryReadClient, Sequence[tuple[str, str]]]:
        endpoint = self._access.storage_endpoint
        if endpoint is None:
            client = BigQueryReadClient(credentials=self._access.credentials)  # type: ignore[no-untyped-call]
            self._close = client.transport.close
            return client, ()
        channel = grpc.insecure_channel(endpoint, options=[("grpc.max_receive_message_length", -1)])
        self._close = channel.close
        local = BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))  # type: ignore[no-untyped-call]
        return local, gcp_access.headers(self._access.credentials, f"http://{endpoint}")


# ------------------------------------------------------------------------------------------------- errors


async def _run[**P, T](call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a blocking call on a thread of its own (reads are long), its failures turned into domain errors."""
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(1, thread_name_prefix="gcp")
        stack.callback(pool.shutdown, wait=False)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, lambda: call(*args, **kwargs))
        except Exception as exc:
            raise source_error(exc) from exc


def source_error(exc: BaseException) -> errors.Error:
    """What a failure of the customer's cloud means to the customer; never the provider's own text, never a secret."""
    match exc:
        case errors.Error():
            return exc
        case auth.TransportError():
            return _unavailable()
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return errors.Unavailable("STAGING_FULL", "There is no room left for the files of a run; try again later.")
        case auth.GoogleAuthError() | api.Unauthorized():
            return errors.FailedPrecondition(
                "CREDENTIAL_REJECTED",
                "Google refused the stored key: it was deleted, disabled or expired. Store a new one.",
            )
        case api.GoogleAPICallError() if _reasons(exc) & _THROTTLED or isinstance(exc, api.TooManyRequests):
            return errors.Unavailable("SOURCE_THROTTLED", "Google limits the rate of reads from the source; try again.")
        case api.Forbidden():
            return _denied()
        case api.NotFound():
            return errors.FailedPrecondition(
                "SOURCE_NOT_FOUND",
                "The source table or dataset does not exist, or not in that location: check source.project_id, "
                "source.dataset_id, source.table_id and source.location.",
            )
        case api.BadRequest():
            return _refused(exc)
        case (
            api.ServerError()
            | api.RetryError()
            | api.Cancelled()
            | requests.exceptions.RequestException()
            | ConnectionError()
        ):
            return _unavailable()
    return errors.Internal("SOURCE_FAILED", "Reading the source failed unexpectedly.")


def _reasons(exc: api.GoogleAPICallError) -> set[str]:
    return {str(item.get("reason", "")) for item in exc.errors if isinstance(item, Mapping)}


def _unavailable() -> errors.Unavailable:
    return errors.Unavailable("SOURCE_UNAVAILABLE", "Google did not answer while the source was read; try again.")


def _denied() -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "SOURCE_ACCESS_DENIED",
        "The source may not be read: grant the stored key's account (the platform's, where no key is stored) "
        "roles/bigquery.dataViewer on the dataset; a key's also needs roles/bigquery.jobUser and "
        "roles/bigquery.readSessionUser on its project.",
    )


def _refused(exc: api.BadRequest) -> errors.FailedPrecondition:
    if "bytesBilledLimitExceeded" in _reasons(exc):
        return errors.FailedPrecondition(
            "SOURCE_TOO_LARGE", "The source would have to be scanned beyond the limit: is the table partitioned by day?"
        )
    if _NOT_A_NUMBER.search(str(exc)):
        return errors.FailedPrecondition(
            "SOURCE_VALUE_INVALID", "A cost or credit amount in the source is not a number that NUMERIC can hold."
        )
    return errors.FailedPrecondition("SOURCE_REFUSED", "BigQuery refused to read the source table as a billing export.")
