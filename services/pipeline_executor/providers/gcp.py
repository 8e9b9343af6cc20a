"""Reads Google Cloud: the billing export table in the customer's own project, with the tenant's own key.

Both reads of a run, the totals and the rows, are of one snapshot: the instant the source's clock showed when the run
began to look (BigQuery's time travel and a Read session's ``snapshot_time``). The table only grows while it is read,
so without this the two could differ by rows that came between. A stand-in that knows no snapshots in its Read API is
caught by comparing the counts: the step is then tried again.
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
from google.oauth2 import service_account
from pydantic import Field, model_validator

from libs import errors
from libs.bigquery import Sql, TableRef, Warehouse, build_client
from services.pipeline_executor.providers import gcp_access, gcp_export
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.providers.parquet import ParquetFile, conform_batch
from services.pipeline_executor.providers.source import SourceModel, required
from services.pipeline_executor.providers.source import read as read_source
from services.pipeline_executor.run_context import Secret

_PACKAGE = "services.pipeline_executor.providers"
_SNAPSHOT = Sql.load(_PACKAGE, "sql/gcp_snapshot.sql")
_TOTALS = Sql.load(_PACKAGE, "sql/gcp_source_totals.sql")
_TOTALS_WITHOUT_CREDITS = Sql.load(_PACKAGE, "sql/gcp_source_totals_without_credits.sql")

_SCOPES = ("https://www.googleapis.com/auth/bigquery",)
_MAX_STREAMS = 4
_TOTALS_SECONDS = 600.0
# Whole rows are compared, in all partitions since the day: what that may cost a customer with a large export.
_MAXIMUM_BYTES = 2**40
_HTTP_SECONDS = 30.0
_RETRY = bigquery.DEFAULT_RETRY.with_timeout(_HTTP_SECONDS)
_MEASURES = ("row_count", "cost", "credits", "distinct_rows")
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
    """How the customer's project is reached with one key."""

    credentials: service_account.Credentials
    project_id: str
    endpoint: str | None
    storage_endpoint: str | None


class GcpExtractor:
    """Extracts ``billing_export``: the rows of a Cloud Billing export, standard or detailed, of any age."""

    source: ClassVar[type[SourceModel]] = Source
    resumes: ClassVar[bool] = False

    async def extract(self, request: ExtractRequest, secret: Secret) -> Extraction:
        """Finds the table, totals it and reads its rows, all as of one instant, into one parquet file."""
        source = read_source(Source, request.source)
        access = _access(secret, request)
        table = await _run(_find_table, access, source, request)
        read = gcp_export.plan(table.schema)
        rows = gcp_export.rows(read, gcp_export.partitioning(table), request.start_date, request.end_date)
        snapshot, totals = await _totals(access, table, source.location, read, rows)
        expected = sum(int(measures["row_count"]) for measures in totals.values())
        path = request.directory / "rows.parquet"
        size = 0
        if expected:
            size = await _read(access, table, read, rows, snapshot, expected, path, request.report)
        return Extraction(
            files=(path,) if expected else (),
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
        )


# ------------------------------------------------------------------------------------------------- access


def _access(secret: Secret, request: ExtractRequest) -> _Access:
    credentials, project_id = gcp_access.credentials(secret, _SCOPES, local=request.endpoints.bigquery is not None)
    return _Access(credentials, project_id, request.endpoints.bigquery, request.endpoints.bigquery_storage)


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
    if access.endpoint is not None and project == request.platform_project:
        # What IAM does in the cloud: a customer's key opens nothing in the platform's project.
        raise _denied()
    with _client(access, source.location or "US") as client:
        if source.dataset_id and source.table_id:
            reference = bigquery.DatasetReference(project, source.dataset_id).table(source.table_id)
        else:
            reference = _discover(client, project, source.dataset_id)
        table = client.get_table(reference, timeout=_HTTP_SECONDS, retry=_RETRY)
    if table.table_type not in ("TABLE", "SNAPSHOT", "CLONE"):
        raise errors.FailedPrecondition(
            "SOURCE_NOT_A_TABLE",
            f"The source is a {table.table_type.lower()}: give the billing export table itself as source.table_id.",
        )
    return table


def _discover(client: bigquery.Client, project: str, dataset_id: str | None) -> bigquery.TableReference:
    datasets = [dataset_id] if dataset_id else [item.dataset_id for item in client.list_datasets(project, retry=_RETRY)]
    found: list[bigquery.TableReference] = [
        table.reference
        for dataset in datasets
        for table in client.list_tables(bigquery.DatasetReference(project, dataset), retry=_RETRY)
        if gcp_export.EXPORT_NAME.fullmatch(table.table_id)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise errors.FailedPrecondition(
            "SOURCE_NOT_FOUND",
            f"No billing export table (gcp_billing_export_v1_… or gcp_billing_export_resource_v1_…) was found in "
            f"{'dataset ' + dataset_id if dataset_id else 'project ' + project}: give source.project_id, "
            "source.dataset_id and source.table_id.",
        )
    names = sorted(f"{table.project}.{table.dataset_id}.{table.table_id}" for table in found)
    raise errors.FailedPrecondition(
        "SOURCE_AMBIGUOUS",
        f"There are {len(names)} billing export tables ({', '.join(names[:5])}{', …' if len(names) > 5 else ''}): "
        "give source.dataset_id and source.table_id of the one to read.",
        candidates=",".join(names[:20]),
    )


# ------------------------------------------------------------------------------------------------- totals


async def _totals(
    access: _Access, table: bigquery.Table, location: str | None, read: gcp_export.Plan, rows: gcp_export.Rows
) -> tuple[datetime, Mapping[str, Mapping[str, Decimal]]]:
    statement = _TOTALS if read.has_credits else _TOTALS_WITHOUT_CREDITS
    sql = statement.with_tables(
        source=TableRef(table.table_id, table.dataset_id, table.project), partition=rows.partition_column()
    )
    with _client(access, location or table.location or "US") as client:
        customer = Warehouse(client, max_workers=1, maximum_bytes_billed=_MAXIMUM_BYTES)
        try:
            found = await customer.query(_SNAPSHOT, dataset=table.dataset_id)
            snapshot: datetime = found[0]["snapshot"]
            params = {**rows.params(), "snapshot": snapshot}
            result = await customer.query(sql, dataset=table.dataset_id, params=params, timeout=_TOTALS_SECONDS)
        except errors.Error as exc:
            raise source_error(exc.__cause__ or exc) from exc.__cause__
        finally:
            customer.close()
    return snapshot, {row["currency"]: {name: Decimal(row[name]) for name in _MEASURES} for row in result}


# ------------------------------------------------------------------------------------------------- rows


async def _read(
    access: _Access,
    table: bigquery.Table,
    read: gcp_export.Plan,
    rows: gcp_export.Rows,
    snapshot: datetime,
    expected: int,
    path: Path,
    report: Callable[[int, int], None],
) -> int:
    loop = asyncio.get_running_loop()

    def report_from_thread(count: int, size: int) -> None:
        loop.call_soon_threadsafe(report, count, size)

    reader = _Reader(access, report_from_thread)
    work = asyncio.ensure_future(_run(reader.read, table, read, rows, snapshot, path))
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

    def read(
        self, table: bigquery.Table, read: gcp_export.Plan, rows: gcp_export.Rows, snapshot: datetime, path: Path
    ) -> tuple[int, int]:
        client, metadata = self._connect()
        try:
            session = client.create_read_session(
                parent=f"projects/{self._access.project_id}",
                read_session=types.ReadSession(
                    table=f"projects/{table.project}/datasets/{table.dataset_id}/tables/{table.table_id}",
                    data_format=types.DataFormat.ARROW,
                    read_options=types.ReadSession.TableReadOptions(row_restriction=rows.restriction()),
                    table_modifiers=types.ReadSession.TableModifiers(snapshot_time=snapshot),
                ),
                max_stream_count=_MAX_STREAMS,
                metadata=metadata,
                timeout=_HTTP_SECONDS,
            )
            with ParquetFile(path, read.schema) as file, ThreadPoolExecutor(max(1, len(session.streams))) as pool:
                schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
                streams = [
                    pool.submit(self._stream, client, stream.name, metadata, schema, file) for stream in session.streams
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
        file: ParquetFile,
    ) -> None:
        for response in client.read_rows(name, metadata=metadata):  # type: ignore[no-untyped-call]
            if self._stopped.is_set():
                raise errors.Unavailable("SOURCE_READ_STOPPED", "The read was stopped.")
            data = pa.py_buffer(response.arrow_record_batch.serialized_record_batch)
            file.write(conform_batch(pa.ipc.read_record_batch(data, schema), file.schema, gcp_export.EXTRA_COLUMN))
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
        "The stored key may not read the source: grant its service account roles/bigquery.dataViewer on the dataset, "
        "and roles/bigquery.jobUser and roles/bigquery.readSessionUser on its project.",
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
