"""What is changed in the emulator of BigQuery, in its process: catalog reads that cost every statement, and atomicity.

``patch`` replaces functions of ``local-bigquery``: the catalog scans that make every statement slow, and places where
two requests at once are treated more loosely than BigQuery treats them. Nothing here is imported before HOME is set.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_ANSWER_ROWS = 4_000
_MEMORY = "6GB"  # what queries may hold before they spill; DuckDB's own default is most of the machine
_IN_DATASET = "JOIN lake.ducklake_schema AS s ON s.schema_id = o.schema_id AND s.end_snapshot IS NULL "
_OBJECTS = (
    "SELECT o.table_name, 'TABLE', coalesce(n.record_count, 0) FROM lake.ducklake_table AS o "
    + _IN_DATASET
    + "LEFT JOIN lake.ducklake_table_stats AS n ON n.table_id = o.table_id "
    "WHERE o.end_snapshot IS NULL AND s.schema_name = $1 AND o.table_name = coalesce($2, o.table_name) "
    "UNION ALL SELECT o.view_name, 'VIEW', 0 FROM lake.ducklake_view AS o "
    + _IN_DATASET
    + "WHERE o.end_snapshot IS NULL AND s.schema_name = $1 AND o.view_name = coalesce($2, o.view_name) ORDER BY 1"
)
_DATASET = "SELECT 1 FROM lake.ducklake_schema AS s WHERE s.end_snapshot IS NULL AND s.schema_name = $1"
_COLUMNS = (
    "FROM lake.ducklake_column AS c "
    "JOIN lake.ducklake_table AS o ON o.table_id = c.table_id AND o.end_snapshot IS NULL "
    + _IN_DATASET
    + "WHERE c.end_snapshot IS NULL AND c.parent_column IS NULL AND s.schema_name = $1 AND o.table_name = $2 "
)
_REQUIRED = "SELECT c.column_name " + _COLUMNS + "AND NOT c.nulls_allowed"
_HIDDEN = "SELECT 1 " + _COLUMNS + "AND c.column_name = $3"
_VERSION = "SELECT schema_version FROM lake.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1"


def patch(threads: int | None = None) -> None:
    """Replaces functions of the emulator in this process: cheaper catalog reads, and check-then-act made atomic.

    The emulator looks names up in DuckDB's ``duckdb_tables()``, ``duckdb_columns()`` and ``duckdb_schemas()`` many
    times a statement; each lists every table of every project. DuckLake has the same facts in small tables of its own,
    and a number that says whether any of them has changed.
    """
    # DuckDB tries to import pandas dozens of times a statement when it is not installed.
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]

    import duckdb
    from google.cloud.bigquery_storage_v1.types import ReadRowsRequest, ReadRowsResponse
    from local_bigquery import models
    from local_bigquery.catalog import datasets, metadata, row_access, tabledata, tables
    from local_bigquery.engine import database, types
    from local_bigquery.errors import not_found
    from local_bigquery.grpc import read, server
    from local_bigquery.jobs import merge, query, runner, store
    from local_bigquery.settings import settings
    from local_bigquery.sql import script
    from local_bigquery.sql.rules import partitions
    from sqlglot import exp

    def lake(project_id: str, sql: str, params: list[str | None]) -> list[tuple[Any, ...]]:
        try:
            return database.fetch(
                sql.replace("lake.", database.quote(f"__ducklake_metadata_{project_id}") + "."), params
            )
        except (duckdb.CatalogException, duckdb.BinderException):
            return []  # no such project

    def result_table(table_id: str) -> list[tuple[str, str, int]]:
        try:
            [(count,)] = database.fetch(f"SELECT count(*) FROM {database.quote('emulator', '_results', table_id)}")
        except duckdb.CatalogException:
            return []
        return [(table_id, "TABLE", count)]

    list_everything = database.objects

    statement, facts = threading.local(), _Facts(lambda project_id: lake(project_id, _VERSION, []))

    def known[T](project_id: str, key: tuple[Any, ...], read: Callable[[], T]) -> T:
        """While a statement is translated its tables are looked up once, and not even that if none has changed."""
        versions = getattr(statement, "versions", None)
        return read() if versions is None or project_id == "emulator" else facts.get(project_id, versions, key, read)

    def at_one_moment(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(statement, "versions", None)
            statement.versions = {}
            try:
                return function(*args, **kwargs)
            finally:
                statement.versions = outer

        return run

    modules: tuple[Any, ...] = (query, script, merge, read)
    for user in modules:
        user.translate = at_one_moment(user.translate)

    def objects(project_id: str, dataset_id: str, table_id: str | None = None) -> list[tuple[str, str, int]]:
        if project_id == "emulator":
            return result_table(table_id) if table_id else list_everything(project_id, dataset_id)
        if table_id is None:
            return lake(project_id, _OBJECTS, [dataset_id, None])
        key = ("object", dataset_id, table_id)
        return known(project_id, key, lambda: lake(project_id, _OBJECTS, [dataset_id, table_id]))

    def dataset_exists(project_id: str, dataset_id: str) -> bool:
        return bool(lake(project_id, _DATASET, [dataset_id]))

    def columns(project_id: str, dataset_id: str, table_id: str) -> list[Any]:
        return known(
            project_id, ("columns", dataset_id, table_id), lambda: read_columns(project_id, dataset_id, table_id)
        )

    def read_columns(project_id: str, dataset_id: str, table_id: str) -> list[Any]:
        stored = dataset_id == tables.RESULTS
        required = set() if stored else {name for (name,) in lake(project_id, _REQUIRED, [dataset_id, table_id])}
        with database.cursor() as cur:
            try:
                relation = cur.sql(f"SELECT * FROM {tables.name(project_id, dataset_id, table_id)} LIMIT 0")
            except duckdb.CatalogException:
                raise not_found("Table", f"{project_id}:{dataset_id}.{table_id}") from None
            found = zip(relation.columns, relation.types, strict=True)
            return [types.field(n, t, n in required) for n, t in found if stored or n != tables.INGESTION_TIME]

    def hidden(table: Any) -> bool:
        if not (table.catalog and table.db and table.name):
            return False
        read = lambda: lake(table.catalog, _HIDDEN, [table.db, table.name, tables.INGESTION_TIME])  # noqa: E731
        return bool(known(table.catalog, ("hidden", table.db, table.name), read))

    connect = database._connect

    @functools.cache
    def connect_within_memory() -> Any:
        connection = connect()
        spill = str(settings.data_dir / "spill")
        connection.execute(f"SET memory_limit = '{_MEMORY}'; SET temp_directory = {_text(spill)}")
        if threads:
            connection.execute(f"SET threads = {threads}")
        return connection

    database._connect = connect_within_memory

    create_table, read_back = tables.create, tables._store

    def as_given(project_id: str, dataset_id: str, table_id: str, resource: Any) -> Any:
        """What was stored, as it was given: reading it back from the catalog costs as much as making it."""
        tables.record(project_id, dataset_id, table_id, resource)
        stored = metadata.load(models.Table, project_id, dataset_id, table_id)
        assert stored is not None
        return stored.replace(type="VIEW" if resource.view else "TABLE", schema=resource.schema_)

    def create(project_id: str, dataset_id: str, body: Any, translate: Any) -> Any:
        """A table made over REST with ingestion-time partitions gets the hidden column that one made by DDL has."""
        tables._store = as_given  # nobody else makes or changes a table meanwhile: see the locks below
        try:
            made = create_table(project_id, dataset_id, body, translate)
        finally:
            tables._store = read_back
        if body.timePartitioning and not body.timePartitioning.field and body.schema_ and body.schema_.fields:
            table = tables.name(project_id, dataset_id, body.tableReference.tableId)
            database.execute(f"DROP TABLE {table}")
            given = ", ".join(types.column(field) for field in body.schema_.fields)
            hidden_column = partitions.INGESTION_TIME.sql("duckdb")
            database.execute(f"CREATE TABLE {table} ({given}, {hidden_column})")
        return made

    tables.create = create

    def hide_from_stars(select: Any) -> None:
        """``t.*`` shows the hidden column no more than ``*`` does."""
        for item in select.expressions:
            star = item.this if isinstance(item, exp.Column) else item
            if isinstance(star, exp.Star):
                column = exp.column(tables.INGESTION_TIME, quoted=True)
                star.set("except_", [*(star.args.get("except_") or []), column])

    partitions._hide_from_stars = hide_from_stars
    server.SERVICES["google.cloud.bigquery.storage.v1.BigQueryRead"]["ReadRows"] = server._streaming(  # type: ignore[no-untyped-call]
        _in_small_batches(read.read_rows), ReadRowsRequest, ReadRowsResponse
    )

    _keep_resources(metadata, row_access)

    write_job = store.save

    def save(job: Any) -> Any:
        return job if job.status.state == "RUNNING" else write_job(job)  # PENDING and DONE are enough

    run_query = query.execute

    def execute(cur: Any, *args: Any, **kwargs: Any) -> Any:
        cursor: Any = cur if kwargs.get("session") else _FreshCursor(cur)
        return run_query(cursor, *args, **kwargs)

    query.execute = execute
    database.objects = objects
    datasets.exists = dataset_exists
    tables.columns = columns
    if hasattr(tabledata, "columns"):
        tabledata.columns = columns
    partitions._hidden = hidden
    store.save = save

    names = threading.RLock()
    for module, name, lock in (
        (datasets, "create", names),
        (datasets, "update", names),
        (tables, "create", names),
        (tables, "update", names),
        (runner, "submit", threading.RLock()),
    ):
        setattr(module, name, _one_at_a_time(getattr(module, name), lock))


class _Facts:
    """What a project's catalog said, until its version changes; a fact is never older than its version."""

    def __init__(self, version: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self._version = version
        self._known: dict[str, tuple[Any, dict[Any, Any]]] = {}

    def get[T](self, project_id: str, versions: dict[str, Any], key: Any, read: Callable[[], T]) -> T:
        """The fact ``key``, as of the version in ``versions``, which is read where it is missing."""
        if project_id not in versions:
            versions[project_id] = self._version(project_id)
        version, facts = self._known.get(project_id, (None, {}))
        if not versions[project_id] or version != versions[project_id]:
            facts = {}
            self._known[project_id] = versions[project_id], facts
        if key not in facts:
            facts[key] = read()
        found: T = facts[key]
        return found


def _keep_resources(metadata: Any, row_access: Any) -> None:
    """Tables' and datasets' resources stay in memory: the emulator reads and parses each several times a statement."""
    kept: dict[Any, dict[Any, Any]] = {}
    lock = threading.Lock()
    list_, save, delete, secured = metadata.list_, metadata.save, metadata.delete, row_access.secured

    def reading[T](kind: Any, key: Any, read: Callable[[], T]) -> T:
        with lock:
            of_kind = kept.setdefault(kind, {})
        if key not in of_kind:
            of_kind[key] = read()  # into the dictionary that was there before the reading: a change throws that away
        found: T = of_kind[key]
        return found

    def changing(kind: Any, change: Callable[..., Any], *args: Any) -> Any:
        try:
            return change(*args)
        finally:
            with lock:
                kept.pop(kind, None)

    metadata.list_ = lambda model, *keys: list(reading(model, keys, lambda: list_(model, *keys)))
    metadata.save = lambda resource, *keys: changing(type(resource), save, resource, *keys)
    metadata.delete = lambda model, *keys: changing(model, delete, model, *keys)
    row_access.secured = lambda: reading(metadata.RowAccessPolicy, "all", secured)


class _FreshCursor:
    """A cursor outside any session: it has no temporary tables, so none are looked for among all tables there are."""

    _TEMPORARY = "SELECT table_name FROM duckdb_tables() WHERE temporary"

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def sql(self, text: str, **kwargs: Any) -> Any:
        return self._cursor.sql("SELECT '' LIMIT 0" if text == self._TEMPORARY else text, **kwargs)


def _in_small_batches(read_rows: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """Answers of a few thousand rows, as BigQuery's are; the emulator puts a whole stream into one message."""
    import pyarrow as pa
    from google.cloud.bigquery_storage_v1 import types

    def read(request: Any) -> Iterator[Any]:
        schema = None
        for response in read_rows(request):
            if not response.arrow_record_batch.serialized_record_batch:
                yield response
                continue
            if schema is None:
                schema = pa.ipc.read_schema(pa.py_buffer(response.arrow_schema.serialized_schema))
            data = pa.py_buffer(response.arrow_record_batch.serialized_record_batch)
            batch = pa.ipc.read_record_batch(data, schema)
            for start in range(0, batch.num_rows, _ANSWER_ROWS):
                part = batch.slice(start, _ANSWER_ROWS)
                yield types.ReadRowsResponse(
                    row_count=part.num_rows,
                    arrow_schema=response.arrow_schema,
                    arrow_record_batch=types.ArrowRecordBatch(serialized_record_batch=part.serialize().to_pybytes()),
                )

    return read


def _text(value: str) -> str:
    """An SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _one_at_a_time[**P, T](function: Callable[P, T], lock: threading.RLock) -> Callable[P, T]:
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return function(*args, **kwargs)

    return locked
