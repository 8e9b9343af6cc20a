"""The one module that talks to BigQuery: runs a named ``.sql`` file with typed ``@params`` in one dataset.

Called by every ``store.py`` and by the executor's steps. Keep three promises: no identifier is ever pasted into SQL
except through ``TableRef``; every write has a job id of ours, so that its outcome can be looked up; nothing but
``libs.errors`` leaves this module.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import random
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google.auth
import grpc
from google.api_core import exceptions as api
from google.api_core.client_options import ClientOptions
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials, Credentials
from google.cloud import bigquery
from requests.adapters import HTTPAdapter

from libs import caller, errors, metrics, tracing
from libs.bigquery_errors import TRANSIENT, is_conflict, to_domain_error
from libs.statements import PLACEHOLDER, Scalar, Sql, TableRef, Typed, Value, parameter, rows_param
from libs.tables import TableSchema, View

if TYPE_CHECKING:
    from libs.settings import ServiceSettings

__all__ = [
    "Dataset",
    "Scalar",
    "Sql",
    "TableRef",
    "Typed",
    "Value",
    "Warehouse",
    "build_client",
    "connect",
    "is_conflict",
    "new_job_id",
    "rows_param",
    "to_domain_error",
]

_LABEL = re.compile(r"[^a-z0-9_-]")
_HTTP_SECONDS = 20.0
_DEFINITIONS = 4
# None switches the client's own retries off; its annotations leave that out.
_NO_RETRY: Any = None
_gone: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("convergence_gone", default=None)
_RETRY: Retry = bigquery.DEFAULT_RETRY.with_timeout(_HTTP_SECONDS)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset's labels, and the etag by which they may be swapped."""

    name: str
    labels: Mapping[str, str]
    etag: str
    location: str


def new_job_id(prefix: str = "cv") -> str:
    """A job id nobody else has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def build_client(
    project_id: str,
    *,
    endpoint: str | None = None,
    credentials: Credentials | None = None,
    location: str = "US",
    pool: int = 32,
) -> bigquery.Client:
    """The synchronous client with an HTTP pool as large as its threads; anonymous against a local ``endpoint``."""
    if endpoint is not None and credentials is None:
        credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    client = bigquery.Client(
        project=project_id,
        credentials=credentials,
        location=location,
        client_options=ClientOptions(api_endpoint=endpoint) if endpoint else None,
    )
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_connections=pool, pool_maxsize=pool))
    return client


def connect(settings: ServiceSettings, *, max_workers: int = 16) -> Warehouse:
    """The warehouse that a process's settings name; credentials from their key file, or the workload's own."""
    credentials = None
    if settings.google_application_credentials is not None and settings.bigquery_endpoint is None:
        credentials, _ = google.auth.load_credentials_from_file(  # type: ignore[no-untyped-call]
            str(settings.google_application_credentials), scopes=["https://www.googleapis.com/auth/cloud-platform"]
        )
    client = build_client(
        settings.gcp_project_id,
        endpoint=settings.bigquery_endpoint,
        credentials=credentials,
        location=settings.bigquery_location,
        pool=2 * max_workers,
    )
    storage = settings.bigquery_storage_endpoint
    channel = grpc.insecure_channel(storage) if storage else None
    labels = {"service": settings.service} if settings.service else None
    return Warehouse(client, storage_channel=channel, max_workers=max_workers, labels=labels)


def _label(text: str) -> str:
    return _LABEL.sub("_", text.lower())[:63]


class _JobFailed(Exception):
    """The job is DONE, changed nothing and its id is spent."""

    def __init__(self, error: errors.Error) -> None:
        super().__init__(error.reason)
        self.error = error


@dataclass(slots=True)
class _Deadline:
    seconds: float
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def http(self) -> float:
        return max(0.5, min(_HTTP_SECONDS, self.left()))


def _rest(seconds: float) -> None:
    """Waits before another try. Raises if the asker has gone: tries for nobody would keep a slow store slow."""
    gone = _gone.get()
    if gone is None:
        time.sleep(seconds)
    elif gone.wait(seconds):
        raise errors.Unavailable("STORE_ABANDONED", "Nobody waits for this statement any more.")


def _ids() -> dict[str, str]:
    """The labels by which a job is found from a log line, and what an rpc costs from BigQuery's own list of jobs."""
    ids = {"operation": caller.operation(), "request_id": caller.request_id(), "trace_id": caller.trace_id()}
    return {name: value for name, value in ids.items() if value}


@contextmanager
def _measured(name: str) -> Iterator[None]:
    """Publishes how long a statement took, and why it failed if it did."""
    start = time.monotonic()
    try:
        with tracing.span(name, "CLIENT", db__system="bigquery"):
            yield
    except errors.Error as error:
        metrics.STATEMENT_FAILURES.labels(name, error.reason).inc()
        raise
    finally:
        metrics.STATEMENT_SECONDS.labels(name).observe(time.monotonic() - start)


def _bill(name: str, done: Any) -> None:
    """Publishes what a statement cost; answers that came without a job say only what was read."""
    if job_id := getattr(done, "job_id", None):
        tracing.note(bigquery__job_id=str(job_id))
    billed = getattr(done, "total_bytes_billed", None) or getattr(done, "total_bytes_processed", None)
    if isinstance(billed, int):
        metrics.BYTES_BILLED.labels(name).inc(billed)


class Warehouse:
    """Runs statements for one project on a bounded pool of threads; safe to share between tasks and threads.

    ``statements`` counts what was sent, by ``Sql.name``: tests and benches hold it against a budget. All methods
    raise ``libs.errors`` only: ``FailedPrecondition`` (STORE_OBJECT_MISSING, STORE_ACCESS_DENIED, STORE_BYTES_LIMIT),
    ``Unavailable`` (STORE_UNAVAILABLE, STORE_RATE_LIMITED), ``Ambiguous`` (STORE_OUTCOME_UNKNOWN), ``Aborted``
    (STORE_CONFLICT, or the word of an ``ASSERT … AS 'assert:WORD'``), ``Internal`` (STORE_REJECTED).
    """

    def __init__(
        self,
        client: bigquery.Client,
        *,
        storage_channel: grpc.Channel | None = None,
        maximum_bytes_billed: int = 100 * 2**30,
        max_workers: int = 16,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.client = client
        self.project_id: str = client.project
        self.storage_channel = storage_channel
        self.statements: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._bytes = maximum_bytes_billed
        self._labels = dict(labels or {})
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers, thread_name_prefix="bigquery")
        # Tables of many tenants at once wait here, in turn, and not at the store, where each one's time runs out.
        self._definitions = concurrent.futures.ThreadPoolExecutor(_DEFINITIONS, thread_name_prefix="bigquery-tables")
        self._complete: set[tuple[str, str, TableSchema | View]] = set()

    def close(self) -> None:
        """Waits for no one: statements in flight go on at the server."""
        for pool in (self._pool, self._definitions):
            pool.shutdown(wait=False, cancel_futures=True)
        self.client.close()  # type: ignore[no-untyped-call]

    async def run[**P, T](self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a blocking call of the client library on the pool, its failures turned into domain errors."""
        return await self._on(self._pool, call, *args, **kwargs)

    async def _on[**P, T](
        self, pool: concurrent.futures.Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        # The thread knows whom it works for, as the task does, and when nobody waits for it any more.
        context, gone = contextvars.copy_context(), threading.Event()
        context.run(_gone.set, gone)
        work = functools.partial(context.run, functools.partial(call, *args, **kwargs))
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except asyncio.CancelledError:
            gone.set()
            raise
        except (_JobFailed, errors.Error):
            raise
        except Exception as exc:
            raise to_domain_error(exc, getattr(call, "__name__", "call")) from exc

    # ---------------------------------------------------------------- statements

    async def query(
        self,
        sql: Sql,
        *,
        dataset: str,
        params: Mapping[str, Value] | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> list[dict[str, Any]]:
        """Rows of one SELECT, as of now (no cached result); a transient failure is tried again until ``timeout``."""
        config = self._config(sql, dataset, params, labels)
        with _measured(sql.name):
            return await self.run(self._query, sql, config, _Deadline(timeout))

    async def execute(
        self,
        sql: Sql,
        *,
        dataset: str,
        params: Mapping[str, Value] | None = None,
        job_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        conflict_retries: int = 0,
    ) -> int:
        """Runs one DML statement and returns the rows it affected; the same ``job_id`` twice is done once.

        A lost reply is looked up by job id before anything is decided. A job that failed in a conflict or by chance
        changed nothing and is tried ``conflict_retries`` more times, each under an id of its own derived from
        ``job_id``; then ``Aborted(STORE_CONFLICT)`` or ``Unavailable``. ``Ambiguous`` if the outcome is still unknown
        at ``timeout``.
        """
        with _measured(sql.name):
            result = await self._write(sql, dataset, params, job_id, labels, timeout, conflict_retries)
        return int(result.num_dml_affected_rows or 0)

    async def script(
        self,
        sql: Sql,
        *,
        dataset: str,
        params: Mapping[str, Value] | None = None,
        job_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        conflict_retries: int = 0,
    ) -> list[dict[str, Any]]:
        """Runs a multi-statement script like ``execute``; returns the rows of its last statement, if it is a SELECT.

        BigQuery counts no rows for a script: one that must say how many ends with a SELECT of them.
        """
        with _measured(sql.name):
            result = await self._write(sql, dataset, params, job_id, labels, timeout, conflict_retries)
        return await self.run(_dicts, result)

    async def _write(
        self,
        sql: Sql,
        dataset: str,
        params: Mapping[str, Value] | None,
        job_id: str | None,
        labels: Mapping[str, str] | None,
        timeout: float,
        conflict_retries: int,
    ) -> Any:
        config = self._config(sql, dataset, params, labels)
        base, deadline = job_id or new_job_id(), _Deadline(timeout)
        for attempt in range(conflict_retries + 1):
            own_id = base if attempt == 0 else f"{base}-{attempt + 1}"
            try:
                start = functools.partial(self._begin, sql, config, own_id)
                return await self.run(self._settle, sql.name, own_id, start, deadline)
            except _JobFailed as failed:
                if attempt == conflict_retries or deadline.left() <= 0:
                    raise failed.error from failed.__cause__
            await asyncio.sleep(random.uniform(0, min(2.0, 0.1 * 2**attempt)))
        raise AssertionError("unreachable")

    def _config(
        self,
        sql: Sql,
        dataset: str,
        params: Mapping[str, Value] | None,
        labels: Mapping[str, str] | None,
    ) -> bigquery.QueryJobConfig:
        if left := PLACEHOLDER.findall(sql.text):
            raise ValueError(f"{sql.name}: no table given for {left}")
        statement = sql.name.rpartition("/")[2].removesuffix(".sql")
        config = bigquery.QueryJobConfig(
            default_dataset=bigquery.DatasetReference(self.project_id, dataset),
            query_parameters=[parameter(name, value) for name, value in (params or {}).items()],
            use_query_cache=False,
            maximum_bytes_billed=self._bytes,
        )
        merged = {**self._labels, "statement": statement, "dataset": dataset, **_ids(), **(labels or {})}
        config.labels = {_label(key): _label(value) for key, value in merged.items()}
        return config

    def _count(self, name: str) -> None:
        with self._counting:
            self.statements[name] += 1
        metrics.STATEMENTS.labels(name, caller.operation()).inc()

    def _query(self, sql: Sql, config: bigquery.QueryJobConfig, deadline: _Deadline) -> list[dict[str, Any]]:
        pause = 0.1
        while True:
            self._count(sql.name)
            try:
                rows = self.client.query_and_wait(
                    sql.text,
                    job_config=config,
                    api_timeout=deadline.http(),
                    wait_timeout=max(1.0, deadline.left()),
                    retry=_NO_RETRY,
                    job_retry=_NO_RETRY,
                )
                _bill(sql.name, rows)
                return _dicts(rows)
            except Exception as exc:
                error = to_domain_error(exc, sql.name)
                if not (isinstance(error, errors.Unavailable) or is_conflict(error)) or deadline.left() <= pause:
                    raise error from exc
            _rest(random.uniform(pause / 2, pause))
            pause = min(2.0, pause * 2)

    def _begin(self, sql: Sql, config: bigquery.QueryJobConfig, job_id: str, deadline: _Deadline) -> bigquery.QueryJob:
        self._count(sql.name)
        return self.client.query(
            sql.text, job_config=config, job_id=job_id, retry=_NO_RETRY, job_retry=_NO_RETRY, timeout=deadline.http()
        )

    def _settle(self, what: str, job_id: str, start: Callable[[_Deadline], Any], deadline: _Deadline) -> Any:
        """Submits the job and returns its result; one id is accepted once, so submitting again never runs it twice."""
        job: Any = None
        pause = 0.1
        while True:
            try:
                if job is None:
                    try:
                        job = start(deadline)
                    except api.Conflict:
                        job = self.client.get_job(job_id, retry=_NO_RETRY, timeout=deadline.http())
                result = _ended(job, deadline)
                _bill(what, job)
                return result
            except Exception as exc:
                error = to_domain_error(exc, what)
                if is_conflict(error) or (job is not None and job.state == "DONE" and job.error_result):
                    raise _failed(error) from exc
                # An answer that cannot be read says as little as none.
                unread = isinstance(error, errors.Internal) and not isinstance(exc, api.GoogleAPICallError)
                if not (unread or isinstance(error, errors.Unavailable)):
                    raise error from exc
                if deadline.left() <= pause:
                    raise errors.Ambiguous(
                        "STORE_OUTCOME_UNKNOWN",
                        "The store did not answer in time; the change may or may not have been made.",
                        statement=what,
                        job_id=job_id,
                    ) from exc
                job = self._find(job_id, deadline)  # did the job fail, or only the question?
            _rest(random.uniform(pause / 2, pause))
            pause = min(2.0, pause * 2)

    def _find(self, job_id: str, deadline: _Deadline) -> Any:
        try:
            return self.client.get_job(job_id, retry=_NO_RETRY, timeout=deadline.http())
        except (api.NotFound, *TRANSIENT):
            return None

    # ---------------------------------------------------------------- datasets and tables

    async def create_dataset(self, name: str, *, labels: Mapping[str, str] | None = None) -> Dataset:
        """Creates a dataset; the one caller who does not get ``AlreadyExists(DATASET_EXISTS)`` made it.

        A lost reply is not resolved here (``Unavailable``): labels that name their writer tell it from another's.
        """
        wanted = bigquery.Dataset(bigquery.DatasetReference(self.project_id, name))
        wanted.location = self.client.location
        wanted.labels = dict(labels or {})
        try:
            made = await self.run(self.client.create_dataset, wanted, retry=_NO_RETRY, timeout=_HTTP_SECONDS)
        except errors.Error as exc:
            if isinstance(exc.__cause__, api.Conflict):
                raise errors.AlreadyExists("DATASET_EXISTS", "The dataset exists already.") from exc.__cause__
            raise
        return _dataset(made)

    async def get_dataset(self, name: str) -> Dataset | None:
        """The dataset, or None."""
        ref = bigquery.DatasetReference(self.project_id, name)
        try:
            return _dataset(await self.run(self.client.get_dataset, ref, retry=_RETRY, timeout=_HTTP_SECONDS))
        except errors.FailedPrecondition as exc:
            if isinstance(exc.__cause__, api.NotFound):
                return None
            raise

    async def label_dataset(self, name: str, labels: Mapping[str, str | None], *, etag: str) -> Dataset:
        """Sets labels (None removes one) if the dataset is still as it was read; else ``Aborted(DATASET_CHANGED)``."""
        changed = bigquery.Dataset(bigquery.DatasetReference(self.project_id, name))
        changed._properties["etag"] = etag
        changed._properties["labels"] = dict(labels)
        try:
            made = await self.run(
                self.client.update_dataset, changed, ["labels"], retry=_NO_RETRY, timeout=_HTTP_SECONDS
            )
        except errors.Error as exc:
            if isinstance(exc.__cause__, api.PreconditionFailed):
                raise errors.Aborted("DATASET_CHANGED", "The dataset changed meanwhile.") from exc.__cause__
            raise
        return _dataset(made)

    async def delete_dataset(self, name: str) -> None:
        """Deletes a dataset with all its tables; one that is not there is fine."""
        ref = bigquery.DatasetReference(self.project_id, name)
        delete = self.client.delete_dataset
        await self.run(delete, ref, delete_contents=True, not_found_ok=True, retry=_RETRY, timeout=_HTTP_SECONDS)
        self._complete = {key for key in self._complete if key[0] != name}

    async def list_tables(self, dataset: str) -> list[str]:
        """Names of the dataset's tables, sorted."""
        return await self.run(self._list_tables, dataset)

    def _list_tables(self, dataset: str) -> list[str]:
        ref = bigquery.DatasetReference(self.project_id, dataset)
        return sorted(item.table_id for item in self.client.list_tables(ref, retry=_RETRY, timeout=_HTTP_SECONDS))

    async def ensure_tables(
        self, dataset: str, schemas: Sequence[TableSchema], views: Sequence[View] = ()
    ) -> list[str]:
        """Creates the tables that are missing and adds missing columns, then the views; names of the tables created.

        One call when nothing is missing: columns of an existing table and texts of an existing view are compared once
        per process. Safe to run from many places at once.
        """
        present = set(await self.list_tables(dataset))
        missing = [schema for schema in schemas if schema.name not in present]
        stale = [s for s in schemas if s.name in present and (dataset, s.name, s) not in self._complete]
        metrics.CACHE_READS.labels("tables", "miss").inc(len(missing) + len(stale))
        metrics.CACHE_READS.labels("tables", "hit").inc(len(schemas) - len(missing) - len(stale))
        made = await asyncio.gather(
            *(self._on(self._definitions, self._create_table, dataset, schema) for schema in missing),
            *(self._on(self._definitions, self._add_columns, dataset, schema) for schema in stale),
        )
        self._complete.update((dataset, schema.name, schema) for schema in schemas)
        due = [v for v in views if v.name not in present or (dataset, v.name, v) not in self._complete]
        names = {view.name for view in views}
        upper = [view for view in due if names & set(PLACEHOLDER.findall(view.text))]
        # Those that read others come after them.
        for level in ([view for view in due if view not in upper], upper):
            await asyncio.gather(*(self._on(self._definitions, self._make_view, dataset, view) for view in level))
        self._complete.update((dataset, view.name, view) for view in views)
        return [schema.name for schema, created in zip(missing, made, strict=False) if created]

    def _create_table(self, dataset: str, schema: TableSchema) -> bool:
        ref = bigquery.DatasetReference(self.project_id, dataset).table(schema.name)
        table = bigquery.Table(ref, schema=list(schema.fields))
        table.description = schema.description
        if schema.partition_by:
            table.time_partitioning = bigquery.TimePartitioning(field=schema.partition_by)
        if schema.cluster_by:
            table.clustering_fields = list(schema.cluster_by)
        try:
            self.client.create_table(table, retry=_RETRY, timeout=_HTTP_SECONDS)
        except api.Conflict:
            return self._add_columns(dataset, schema)
        return True

    def _make_view(self, dataset: str, view: View) -> None:
        # A view keeps no default dataset: its tables are named in full.
        names = {name: TableRef(name, dataset, self.project_id) for name in PLACEHOLDER.findall(view.text)}
        query = Sql(view.name, view.text).with_tables(**names).text
        made = bigquery.Table(bigquery.DatasetReference(self.project_id, dataset).table(view.name))
        made.view_query = query
        try:
            self.client.create_table(made, retry=_RETRY, timeout=_HTTP_SECONDS)
        except api.Conflict:
            present = self.client.get_table(made.reference, retry=_RETRY, timeout=_HTTP_SECONDS)
            if present.view_query != query:
                present.view_query = query
                self.client.update_table(present, ["view_query"], retry=_RETRY, timeout=_HTTP_SECONDS)

    def _add_columns(self, dataset: str, schema: TableSchema) -> bool:
        ref = bigquery.DatasetReference(self.project_id, dataset).table(schema.name)
        for _ in range(5):
            table = self.client.get_table(ref, retry=_RETRY, timeout=_HTTP_SECONDS)
            present = {column.name.lower() for column in table.schema}
            added = [column for column in schema.fields if column.name.lower() not in present]
            if not added:
                return False
            table.schema = [*table.schema, *(_nullable(column) for column in added)]
            try:
                self.client.update_table(table, ["schema"], retry=_RETRY, timeout=_HTTP_SECONDS)
            except api.PreconditionFailed:
                continue
            return False
        raise errors.Aborted("TABLE_CHANGED", f"Table {schema.name} kept changing while columns were added.")

    async def load_parquet(
        self,
        path: Path,
        *,
        dataset: str,
        table: TableRef | str,
        schema: TableSchema | Sequence[bigquery.SchemaField],
        job_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float = 300.0,
        truncate: bool = True,
    ) -> int:
        """Loads one parquet file into a table of the dataset (made if missing) and returns the rows loaded.

        The same ``job_id`` twice is done once. ``truncate`` replaces what the table held.
        """
        fields = schema.fields if isinstance(schema, TableSchema) else schema
        parquet = bigquery.ParquetOptions()  # type: ignore[no-untyped-call]
        parquet.enable_list_inference = True
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            schema=list(fields),
            write_disposition="WRITE_TRUNCATE" if truncate else "WRITE_APPEND",
            parquet_options=parquet,
        )
        merged = {**self._labels, "dataset": dataset, **_ids(), **(labels or {})}
        config.labels = {_label(key): _label(value) for key, value in merged.items()}
        own_id = job_id or new_job_id()
        target = self._target(dataset, table)

        def start(deadline: _Deadline) -> Any:
            self._count("load_parquet")
            with path.open("rb") as file:
                return self.client.load_table_from_file(
                    file, target, size=path.stat().st_size, job_id=own_id, job_config=config, timeout=deadline.left()
                )

        with _measured("load_parquet"):
            job = await self.run(self._settle, "load_parquet", own_id, start, _Deadline(timeout))
        return int(job.output_rows or 0)

    async def drop_table(self, dataset: str, table: TableRef | str) -> None:
        """Drops a table; one that is not there is fine."""
        target = self._target(dataset, table)
        await self.run(self.client.delete_table, target, not_found_ok=True, retry=_RETRY, timeout=_HTTP_SECONDS)

    def _target(self, dataset: str, table: TableRef | str) -> bigquery.TableReference:
        ref = TableRef(table) if isinstance(table, str) else table
        owner = bigquery.DatasetReference(ref.project or self.project_id, ref.dataset or dataset)
        return owner.table(ref.table)


def _failed(error: errors.Error) -> Exception:
    """A job that failed by chance may be run again under another id; any other failure is final."""
    again = isinstance(error, errors.Unavailable) or is_conflict(error)
    return _JobFailed(error) if again else error


def _ended(job: Any, deadline: _Deadline) -> Any:
    """The job's result when it has ended; raises its error."""
    if isinstance(job, bigquery.QueryJob):
        return job.result(retry=_NO_RETRY, timeout=max(0.5, deadline.left()), job_retry=_NO_RETRY)
    # The client's own first look is after up to a second, in which a small load has long ended.
    pause = 0.05
    while not job.done(retry=_NO_RETRY, timeout=deadline.http()):
        if deadline.left() <= 0:
            raise TimeoutError
        _rest(pause)
        pause = min(1.0, pause * 1.5)
    return job.result(retry=_NO_RETRY, timeout=deadline.http())


def _dicts(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(row.items()) for row in rows]


def _dataset(made: bigquery.Dataset) -> Dataset:
    return Dataset(made.dataset_id, dict(made.labels), made.etag or "", made.location or "")


def _nullable(column: bigquery.SchemaField) -> bigquery.SchemaField:
    if column.mode != "REQUIRED":
        return column
    return bigquery.SchemaField.from_api_repr({**column.to_api_repr(), "mode": "NULLABLE"})
