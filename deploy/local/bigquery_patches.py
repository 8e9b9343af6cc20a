"""What is changed in the emulator of BigQuery, in its process: catalog reads that cost every statement, and atomicity.

``patch`` replaces functions of ``local-bigquery``: where it stores (``bigquery_storage``), the catalog scans that make
every statement slow, and places where two requests at once are treated more loosely than BigQuery treats them. Nothing
here is imported before HOME is set.
"""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from deploy.local import bigquery_storage, bigquery_translations

_ANSWER_ROWS = 4_000
_JOBS = 256


def patch(threads: int | None = None) -> None:
    """Replaces functions of the emulator in this process: where it stores, cheaper catalog reads, and atomicity.

    The emulator looks names up in DuckDB's ``duckdb_tables()``, ``duckdb_columns()`` and ``duckdb_schemas()`` many
    times a statement; each lists every table of every project. Asking for the one table costs a fraction of that, and
    its answer holds until DDL changes something in the same dataset.
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
    from local_bigquery.jobs import merge, runner, store
    from local_bigquery.jobs import query as emulator_query
    from local_bigquery.sql import rules, translate
    from local_bigquery.sql import script as emulator_script
    from local_bigquery.sql.rules import ddl, partitions
    from sqlglot import exp

    query: Any = emulator_query
    script: Any = emulator_script
    catalog = bigquery_storage.install(threads)
    list_everything, statement = database.objects, threading.local()

    def read_shape(*path: str) -> tuple[list[tuple[str, Any]], frozenset[str]] | None:
        """Names and types of a table's columns and which are REQUIRED; None if there is no such table."""
        table = database.quote(*path)
        required = f'SELECT name FROM pragma_table_info({bigquery_storage.text(table)}) WHERE "notnull"'
        with database.cursor() as cur:
            try:
                relation = cur.sql(f"SELECT * FROM {table} LIMIT 0")
                named = list(zip(relation.columns, relation.types, strict=True))
                return named, frozenset(name for (name,) in cur.sql(required).fetchall())
            except duckdb.CatalogException:
                return None

    def shape(*path: str) -> tuple[list[tuple[str, Any]], frozenset[str]] | None:
        project_id, dataset_id, table_id = path
        if project_id == "emulator":
            return read_shape(*path)  # a result, asked for once or twice
        return catalog.get(project_id, dataset_id, ("shape", table_id), lambda: read_shape(*path))

    def objects(project_id: str, dataset_id: str, table_id: str | None = None) -> list[tuple[str, str, int]]:
        if table_id is None:
            return list_everything(project_id, dataset_id)
        stored = None if project_id == "emulator" else metadata.load(models.Table, project_id, dataset_id, table_id)
        if stored is not None and stored.view:
            return [(table_id, "VIEW", 0)]
        if shape(project_id, dataset_id, table_id) is None:
            return []
        if getattr(statement, "translated", False):
            return [(table_id, "TABLE", 0)]  # how many rows there are is not asked for
        [(count,)] = database.fetch(f"SELECT count(*) FROM {database.quote(project_id, dataset_id, table_id)}")
        return [(table_id, "TABLE", count)]

    def read_dataset(project_id: str, dataset_id: str) -> bool:
        with database.cursor() as cur:
            try:
                cur.sql(f"USE {database.quote(project_id, dataset_id)}")
            except duckdb.CatalogException:
                return False
            return True

    def dataset_exists(project_id: str, dataset_id: str) -> bool:
        return catalog.get(project_id, dataset_id, "exists", lambda: read_dataset(project_id, dataset_id))

    def columns(project_id: str, dataset_id: str, table_id: str) -> list[Any]:
        found = shape(*tables.physical(project_id, dataset_id, table_id))
        if found is None:
            raise not_found("Table", f"{project_id}:{dataset_id}.{table_id}")
        named, required = found
        result = dataset_id == tables.RESULTS
        return [types.field(n, t, n in required) for n, t in named if result or n != tables.INGESTION_TIME]

    def hidden(table: Any) -> bool:
        if not (table.catalog and table.db and table.name):
            return False
        found = shape(table.catalog, table.db, table.name)
        return found is not None and any(name == tables.INGESTION_TIME for name, _ in found[0])

    def present(tree: Any, context: Any) -> Any:
        """There is no time travel here: what was asked for as of a moment is read as it is."""
        for table in tree.find_all(exp.Table):
            table.set("version", None)
        return tree

    rules.STATEMENT_RULES.insert(0, present)

    def look(reference: tuple[str, str, str]) -> Any:
        """All that matters of a table where its name is translated; None if that is decided anew each time."""
        stored = metadata.load(models.Table, *reference)
        if row_access.secured() or tables.expired(stored) or reference[1].startswith("_"):
            return None
        found = shape(*reference)
        if found is None:
            return None
        partitioned = stored and (
            stored.type,
            bool(stored.view),
            stored.requirePartitionFilter,
            stored.timePartitioning,
        )
        read_types = lambda: (tuple((name, str(kind)) for name, kind in found[0]), found[1])  # noqa: E731
        return catalog.get(reference[0], reference[1], ("look", reference[2]), read_types), str(partitioned)

    translations = bigquery_translations.Translations(translate.translate, look)
    parse_text, split, run_job = script.parse, ddl.split, query.execute

    def translated(tree: Any, context: Any) -> tuple[str, dict[str, Any]]:
        before, statement.translated = getattr(statement, "translated", False), True
        try:
            return translations.translate(tree, context)
        finally:
            statement.translated = before

    def parsed(text: str) -> list[Any]:
        trees: list[Any] = parse_text(text)
        if len(trees) == 1:
            trees[0].meta["statement"] = text
        return trees

    def parts(tree: Any) -> list[Any]:
        found = split(tree)
        for number, part in enumerate(found):
            part.meta["statement"], part.meta["part"] = tree.meta.get("statement"), number
        return found

    def execute(cursor: Any, project_id: str, job_id: str | None, config: Any, *args: Any, **kwargs: Any) -> Any:
        translations.begin(config.query)
        return run_job(cursor, project_id, job_id, config, *args, **kwargs)

    modules: tuple[Any, ...] = (query, script, merge, read)
    for user in modules:
        user.translate = translated
    script.parse, ddl.split, query.execute = parsed, parts, execute

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

    _keep_jobs(store)
    database.objects = objects
    datasets.exists = dataset_exists
    tables.columns = columns
    if hasattr(tabledata, "columns"):
        tabledata.columns = columns
    partitions._hidden = hidden

    names = threading.RLock()
    for module, name, lock in (
        (datasets, "create", names),
        (datasets, "update", names),
        (tables, "create", names),
        (tables, "update", names),
        (runner, "submit", threading.RLock()),
    ):
        setattr(module, name, _one_at_a_time(getattr(module, name), lock))


def _keep_resources(metadata: Any, row_access: Any) -> None:
    """Tables' and datasets' resources stay in memory: the emulator reads and parses each several times a statement."""
    kept: dict[Any, dict[Any, Any]] = {}
    lock, one_at_a_time = threading.Lock(), threading.Lock()
    list_, save, delete, secured = metadata.list_, metadata.save, metadata.delete, row_access.secured

    def reading[T](kind: Any, key: Any, read: Callable[[], T]) -> T:
        with lock:
            of_kind = kept.setdefault(kind, {})
        if key not in of_kind:
            of_kind[key] = read()  # into the dictionary that was there before the reading: a change throws that away
        found: T = of_kind[key]
        return found

    def changing(kind: Any, change: Callable[..., Any], *args: Any) -> Any:
        with one_at_a_time:  # two that save one resource would be in conflict
            try:
                return change(*args)
            finally:
                with lock:
                    kept.pop(kind, None)

    metadata.list_ = lambda model, *keys: list(reading(model, keys, lambda: list_(model, *keys)))
    metadata.save = lambda resource, *keys: changing(type(resource), save, resource, *keys)
    metadata.delete = lambda model, *keys: changing(model, delete, model, *keys)
    row_access.secured = lambda: reading(metadata.RowAccessPolicy, "all", secured)


def _keep_jobs(store: Any) -> None:
    """A job is stored when it has ended; until then, and for a while after, it is in memory only.

    One that a kill interrupts is not there afterwards: who asks for it again starts it anew, as the id was never used.
    """
    running: dict[tuple[str, str], Any] = {}
    ended: collections.OrderedDict[tuple[str, str], Any] = collections.OrderedDict()
    write, read, read_all, delete = store.save, store.load, store.list_, store.delete
    lock = threading.Lock()

    def save(job: Any) -> Any:
        key = (job.jobReference.projectId, job.jobReference.jobId)
        if job.status.state != "DONE":
            running[key] = job
            return job
        write(job)
        with lock:
            ended[key] = job
            running.pop(key, None)
            if len(ended) > _JOBS:
                ended.popitem(last=False)
        return job

    def load(project_id: str, job_id: str) -> Any:
        key = (project_id, job_id)
        with lock:
            known = running.get(key) or ended.get(key)
        return known or read(*key)

    def list_(project_id: str, states: Any = None, parent_job_id: str | None = None, *created: Any) -> list[Any]:
        mine = [job for (project, _), job in list(running.items()) if project == project_id and parent_job_id is None]
        wanted = [job for job in mine if not states or job.status.state in states]
        return wanted + list(read_all(project_id, states, parent_job_id, *created))

    def forget(project_id: str, job_id: str) -> None:
        with lock:
            ended.pop((project_id, job_id), None)
        delete(project_id, job_id)

    store.save, store.load, store.list_, store.delete = save, load, list_, forget


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


def _one_at_a_time[**P, T](function: Callable[P, T], lock: threading.RLock) -> Callable[P, T]:
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return function(*args, **kwargs)

    return locked
