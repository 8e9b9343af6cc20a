"""What the local BigQuery stores in: a DuckDB file for each project, and who changes a table at the same time as whom.

``local-bigquery`` stores in DuckLake, which serves many processes: every statement is a commit to a catalog of its own
and every table a folder of Parquet files. Here one process has it all, and what costs 20 to 100 ms of CPU a statement
there (more with every table) costs 1 to 3 ms in a plain DuckDB file, which survives a kill just as well. What goes with
it is time travel: ``FOR SYSTEM_TIME AS OF`` reads the present, as the emulator's Read API does in any case.

``Catalog`` knows whether what was read of a dataset's tables still holds. ``Writers`` gives BigQuery's promises: DML
statements that change rows of one table go one after another; a transaction that finds another one, or a statement that
came since it began, on a table whose rows it changes, is aborted; rows may always be added beside it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_MEMORY = "6GB"  # what queries may hold before they spill; DuckDB's own default is most of the machine
# DuckDB's own 122,880 leave a day of costs to one thread, and write it twice: whole groups go past the log. The two
# methods take a third of the time of writing text, for a few percent of its size.
_ROWS_IN_GROUP = 16_384
_LEFT_OUT = "fsst,dict_fsst"
_SUFFIX = ".project.duckdb"
_PARSE_JSON = Path(__file__).parent / "sql" / "emulator_parse_json.sql"
_NAME = r'(?:IF\s+(?:NOT\s+)?EXISTS\s+)?"([^"]+)"\."([^"]+)"'
_CHANGE = re.compile(r"\s*(?:CREATE|DROP|ALTER)\s", re.IGNORECASE)
_NAMED = re.compile(r"\s*(?:CREATE(?:\s+OR\s+REPLACE)?|DROP|ALTER)\s+(?:TABLE|VIEW|SCHEMA)\s+" + _NAME, re.IGNORECASE)
_COUNTED = re.compile(r"\s*(?:INSERT|UPDATE|DELETE)\s", re.IGNORECASE)
_TRANSACTION = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK)\b", re.IGNORECASE)
_TEMPORARY = "SELECT table_name FROM duckdb_tables() WHERE temporary"
_NOTHING = "SELECT '' LIMIT 0"

type Table = tuple[str, ...]


class Catalog:
    """Facts about tables, kept until a statement changes something in their dataset."""

    def __init__(self) -> None:
        self._all = 0
        self._datasets: dict[tuple[str, str], int] = {}
        self._known: dict[tuple[str, str], tuple[tuple[int, int], dict[Any, Any]]] = {}

    def get[T](self, project_id: str, dataset_id: str, key: Any, read: Callable[[], T]) -> T:
        """The fact ``key`` of a dataset, read where it is not known or no longer sure."""
        dataset = (project_id, dataset_id)
        version = (self._all, self._datasets.get(dataset, 0))
        then, facts = self._known.get(dataset, ((-1, -1), {}))
        if then != version:
            facts = {}
            self._known[dataset] = version, facts
        if key not in facts:
            facts[key] = read()
        found: T = facts[key]
        return found

    def changed(self, sql: str) -> None:
        """Takes note of a statement that DuckDB has just carried out, if it is DDL."""
        if not _CHANGE.match(sql):
            return
        named = _NAMED.match(sql)
        if named is None:
            self._all += 1
        else:
            dataset = (named[1], named[2])
            self._datasets[dataset] = self._datasets.get(dataset, 0) + 1


class Transaction:
    """An open transaction: when it began, and the tables whose rows it has changed."""

    def __init__(self, began: int) -> None:
        self.began = began
        self.changed: set[Table] = set()


class Writers:
    """Who changes rows of which table, in the order of a clock that ticks with each change."""

    def __init__(self, conflict: Callable[[str], Exception]) -> None:
        self._conflict = conflict
        self._free = threading.Condition()
        self._clock = itertools.count(1)
        self._now = 0
        self._last: dict[Table, int] = {}
        self._busy: set[Table] = set()
        self._adding: collections.Counter[Table] = collections.Counter()
        self._held: dict[Table, Transaction] = {}

    def begin(self) -> Transaction:
        """A transaction that sees what was committed until now."""
        return Transaction(self._now)

    def end(self, transaction: Transaction, *, committed: bool) -> None:
        """Lets go of the tables that the transaction has changed."""
        with self._free:
            for table in transaction.changed:
                self._held.pop(table, None)
            if committed:
                self._changed(transaction.changed)
            self._free.notify_all()

    @contextlib.contextmanager
    def writing(self, table: Table, transaction: Transaction | None, *, appends: bool) -> Iterator[None]:
        """While one statement writes to a table; waits for the one before it, raises for a transaction in the way."""
        with self._free:
            self._free.wait_for(lambda: self._may_start(table, transaction, appends))
            if transaction is not None and not appends:
                if (
                    self._held.get(table, transaction) is not transaction
                    or self._last.get(table, 0) > transaction.began
                ):
                    raise self._conflict(".".join(table))
                self._held[table] = transaction
                transaction.changed.add(table)
            if appends:
                self._adding[table] += 1
            else:
                self._busy.add(table)
        try:
            yield
        finally:
            with self._free:
                if appends:
                    self._adding[table] -= 1
                else:
                    self._busy.discard(table)
                    if transaction is None:
                        self._changed({table})
                self._free.notify_all()

    def _may_start(self, table: Table, transaction: Transaction | None, appends: bool) -> bool:
        if table in self._busy:
            return False
        return appends or (not self._adding[table] and (transaction is not None or table not in self._held))

    def _changed(self, tables: set[Table]) -> None:
        self._now = next(self._clock)
        self._last |= dict.fromkeys(tables, self._now)


class Cursor:
    """A DuckDB cursor that tells the catalog of its DDL and the writers of its transactions."""

    def __init__(self, cursor: Any, catalog: Catalog, writers: Writers) -> None:
        self._cursor, self._catalog, self._writers = cursor, catalog, writers
        self.transaction: Transaction | None = None
        self.appends = False
        self.job: Any = None  # what the statement is that must not be done twice
        self.count = 0
        self.keeps_tables = False  # a session's cursor: others have no temporary tables, and none are looked for
        self.result_of = ""  # the query whose rows are to be stored
        self._shape: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, sql: str, parameters: Any = None) -> Any:
        result = self._cursor.execute(sql, parameters)
        self._catalog.changed(sql)
        if word := _TRANSACTION.match(sql):
            self._turn(word[1].upper())
        if self.job is None or not _COUNTED.match(sql):
            return result
        row = self._cursor.fetchone()
        self.count = row[0]
        return Fetched(row)

    @contextlib.contextmanager
    def kept(self, project_id: str, done: Callable[[Any, int], tuple[Any, ...]]) -> Iterator[None]:
        """Stores with the rows that ``self.job`` changes that it is done: a kill comes before both or after both."""
        self._cursor.execute("BEGIN")
        try:
            yield
            self._cursor.table(_done(project_id)).insert(done(self.job, self.count))
            self._cursor.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(Exception):  # a COMMIT that failed has ended it
                self._cursor.execute("ROLLBACK")
            raise

    def sql(self, text: str, **kwargs: Any) -> Any:
        if text == self.result_of:
            return self._columns(text, **kwargs)
        return self._cursor.sql(_NOTHING if text == _TEMPORARY and not self.keeps_tables else text, **kwargs)

    @contextlib.contextmanager
    def storing(self, query: str) -> Iterator[None]:
        """While the rows of ``query`` are stored: whoever asks for it before that wants to know its columns only."""
        before, self.result_of, self._shape = (self.result_of, self._shape), query, None
        try:
            yield
        finally:
            self.result_of, self._shape = before

    def _columns(self, query: str, **kwargs: Any) -> Any:
        # With parameters DuckDB does not look at a query but runs it, and the emulator looks twice.
        if self._shape is None:
            self._shape = self._cursor.sql(f"SELECT * FROM ({query}) LIMIT 0", **kwargs)
        return self._shape

    def close(self) -> None:
        self._turn("ROLLBACK")
        self._cursor.close()

    def _turn(self, word: str) -> None:
        if self.transaction is not None:
            self._writers.end(self.transaction, committed=word == "COMMIT")
        self.transaction = self._writers.begin() if word == "BEGIN" else None


class Fetched:
    """The one row of a statement that says how many it changed."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def fetchone(self) -> Any:
        return self._row


class Connection:
    """DuckDB's connection; its cursors are ``Cursor``."""

    def __init__(self, connection: Any, catalog: Catalog, writers: Writers) -> None:
        self._connection, self._catalog, self._writers = connection, catalog, writers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def cursor(self) -> Cursor:
        return Cursor(self._connection.cursor(), self._catalog, self._writers)


def install(threads: int | None) -> Catalog:
    """Makes ``local-bigquery`` store in DuckDB files, in this process, and returns what is known of its catalog."""
    import duckdb
    from local_bigquery import errors as emulator_errors
    from local_bigquery.catalog import tables as emulator_tables
    from local_bigquery.engine import database as emulator_database
    from local_bigquery.jobs import query as emulator_query
    from local_bigquery.jobs import runner as emulator_runner
    from local_bigquery.models import JobStatistics
    from local_bigquery.settings import settings
    from local_bigquery.sql import native
    from local_bigquery.sql.dialect import FUNCTIONS, MACRO
    from sqlglot import exp

    errors: Any = emulator_errors
    database: Any = emulator_database
    query: Any = emulator_query
    tables: Any = emulator_tables
    runner: Any = emulator_runner

    def conflict(table: str) -> Exception:
        said = f"Transaction is aborted due to concurrent update against table {table}."
        aborted: Exception = errors.BigQueryError("invalidQuery", said)
        return aborted

    catalog, writers, at_work = Catalog(), Writers(conflict), threading.local()

    def attach(connection: Any, project_id: str) -> None:
        path = text(str(settings.data_dir / (project_id + _SUFFIX)))
        connection.execute(
            f"ATTACH IF NOT EXISTS {path} AS {database.quote(project_id)} (ROW_GROUP_SIZE {_ROWS_IN_GROUP})"
        )
        kept = _done(project_id)
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {kept} (project_id TEXT, job_id TEXT, created BIGINT, resource TEXT)"
        )
        connection.execute(
            "INSERT INTO emulator.jobs SELECT k.project_id, k.job_id, NULL, 'DONE', k.created, k.resource "
            f"FROM {kept} AS k ANTI JOIN emulator.jobs AS j ON j.project_id = k.project_id AND j.job_id = k.job_id"
        )
        connection.execute(f"DELETE FROM {kept}")
        database._attached.add(project_id)

    def done(job: Any, count: int) -> tuple[str, str, int, str]:
        """The job as it is found after a kill; of what it was asked, only the kind is left."""
        asked = job.configuration.query
        if asked is None:
            statistics, kept = {"load": {"outputRows": str(count)}}, job
        else:
            statistics = {"query": {"numDmlAffectedRows": str(count)}}
            kept = job.replace(configuration=job.configuration.replace(query={"query": "-- done before a kill"}))
        ended = runner._done(kept, JobStatistics.model_validate(statistics))
        reference = job.jobReference
        return reference.projectId, reference.jobId, int(job.statistics.creationTime), json.dumps(ended.dump())

    @functools.cache
    def connect() -> Connection:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        connection = duckdb.connect(config={"TimeZone": "UTC"})
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"SET disabled_compression_methods = '{_LEFT_OUT}'")
        connection.execute(f"SET temp_directory = {text(str(settings.data_dir / 'spill'))}")
        if threads:
            connection.execute(f"SET threads = {threads}")
        connection.execute(f"ATTACH {text(str(settings.data_dir / 'emulator.duckdb'))} AS emulator")
        connection.execute(database.EMULATOR_SCHEMA)
        connection.execute("ATTACH ':memory:' AS bq")
        native.register(connection)
        for path in FUNCTIONS:
            connection.execute(MACRO.sub(r"CREATE MACRO bq.main.\1", path.read_text()))
        connection.execute(_PARSE_JSON.read_text())
        stored = {path.name.removesuffix(_SUFFIX) for path in settings.data_dir.glob("*" + _SUFFIX)}
        for project_id in stored | {settings.default_project_id}:
            attach(connection, project_id)
        default = database.quote(settings.default_project_id, settings.default_dataset_id)
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {default}")
        return Connection(connection, catalog, writers)

    @contextlib.contextmanager
    def writing(*table: str) -> Iterator[None]:
        cursor: Cursor | None = getattr(at_work, "cursor", None)
        transaction, appends = (cursor.transaction, cursor.appends) if cursor else (None, False)
        name = tuple(part.casefold() for part in table)
        together = cursor.kept(table[0], done) if cursor and cursor.job else contextlib.nullcontext()
        with writers.writing(name, transaction, appends=appends), together:
            yield

    run_query, run_statement, known_error = query.execute, query._run, errors.from_duckdb
    write_rows, run_job = tables.write, runner._execute

    def execute_job(job: Any, *args: Any) -> None:
        at_work.job = job
        try:
            run_job(job, *args)
        finally:
            at_work.job = None

    def write(
        cursor: Any,
        sql: str,
        params: Any,
        reference: Any,
        config: Any,
        default: str = "WRITE_EMPTY",
        *rest: Any,
        **options: Any,
    ) -> Any:
        result = getattr(at_work, "cursor", None) is not None  # of a query, whose statement has the cursor
        if not result:
            at_work.cursor = cursor
            if (config.writeDisposition or default) == "WRITE_APPEND" and tables.exists(*reference):
                cursor.appends, cursor.job = True, getattr(at_work, "job", None)
        try:
            with cursor.storing(sql):
                return write_rows(cursor, sql, params, reference, config, default, *rest, **options)
        finally:
            if not result:
                at_work.cursor, cursor.appends, cursor.job = None, False, None

    def execute(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        at_work.cursor, before = cursor, getattr(at_work, "cursor", None)
        cursor.keeps_tables = kwargs.get("session") is not None
        try:
            return run_query(cursor, *args, **kwargs)
        finally:
            at_work.cursor = before

    def run(cursor: Any, tree: Any, *args: Any) -> Any:
        cursor.appends = isinstance(tree, exp.Insert)
        # A script's statements are its own affair; a single one is done once, whatever happens.
        alone = "statement" in tree.meta and cursor.transaction is None
        if alone and isinstance(tree, exp.Insert | exp.Update | exp.Delete):
            cursor.job = getattr(at_work, "job", None)
        try:
            return run_statement(cursor, tree, *args)
        finally:
            cursor.job = None

    def from_duckdb(error: Exception, *args: Any) -> Any:
        if isinstance(error, duckdb.TransactionException) and "onflict" in str(error):
            return conflict("of the project")
        return known_error(error, *args)

    database._attach, database._connect, database.writing = attach, connect, writing
    database.projects = lambda: sorted(database._attached)
    query.execute, query._run, tables.write, runner._execute = execute, run, write, execute_job
    query.from_duckdb = errors.from_duckdb = from_duckdb
    return catalog


def _done(project_id: str) -> str:
    """Where a project keeps which jobs have changed its rows, until the next start."""
    return '"' + project_id.replace('"', '""') + '".main."_done"'


def text(value: str) -> str:
    """An SQL literal."""
    return "'" + value.replace("'", "''") + "'"
