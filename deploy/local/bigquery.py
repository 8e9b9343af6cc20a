"""The local BigQuery: starts ``local-bigquery`` (REST and Storage gRPC, DuckDB inside) in the foreground, offline.

``python -m deploy.local.bigquery --data-dir D --port P --grpc-port G --project X`` runs until SIGTERM; ``make up`` and
the tests start it. It keeps its own HOME in the data folder, so that a user's DuckDB settings are left alone, and
replaces a few functions of the emulator: the catalog scans that make every statement slow, and three places where two
requests at once are treated more loosely than BigQuery treats them.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

_EXTENSIONS = ("icu", "ducklake", "spatial")


def main() -> None:
    """Starts the emulator from command line arguments and serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.bigquery", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds everything, made if missing")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="REST")
    parser.add_argument("--grpc-port", type=int, required=True, help="Storage Read and Write API")
    parser.add_argument("--project", default="local", help="project that exists from the start")
    args = parser.parse_args()
    serve(args.data_dir, args.host, args.port, args.grpc_port, args.project)


def serve(data_dir: Path, host: str, port: int, grpc_port: int, project: str) -> None:
    """Serves in this process; HOME is changed first, because DuckDB reads it when it is loaded."""
    home = data_dir.resolve() / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(home)
    _import_extensions()

    import uvicorn
    from local_bigquery.grpc import server as storage
    from local_bigquery.settings import settings

    settings.bigquery_host, settings.bigquery_port, settings.grpc_port = host, port, grpc_port
    settings.default_project_id, settings.data_dir = project, data_dir.resolve() / "bigquery"
    patch()

    stopping: list[int] = []

    def stop(signum: int, _: FrameType | None) -> None:
        stopping.append(signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    storage_server, _ = storage.start(host, grpc_port)
    try:
        uvicorn.run("local_bigquery:app", host=host, port=port, log_level="warning", access_log=False)
    finally:
        storage_server.stop(None)


def _import_extensions() -> None:
    import duckdb
    import duckdb_extensions

    con = duckdb.connect()
    try:
        for name in _EXTENSIONS:
            duckdb_extensions.import_extension(name, con=con)
    finally:
        con.close()


def wait_ready(rest: str, project: str, *, timeout: float = 30.0, running: Callable[[], bool] = lambda: True) -> None:
    """Returns when the emulator at ``rest`` (``http://host:port``) answers.

    ``TimeoutError`` after ``timeout`` seconds, or as soon as ``running`` says that its process has ended.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and running():
        try:
            with urllib.request.urlopen(f"{rest}/bigquery/v2/projects/{project}/datasets", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise TimeoutError(f"the BigQuery emulator at {rest} did not answer within {timeout:.0f} s")


def patch() -> None:
    """Replaces functions of the emulator in this process: faster catalog reads, and check-then-act made atomic."""
    from local_bigquery.catalog import datasets, tables
    from local_bigquery.engine import database
    from local_bigquery.jobs import runner

    original_objects = database.objects

    def objects(project_id: str, dataset_id: str, table_id: str | None = None) -> list[tuple[str, str, int]]:
        """Tables and views of a dataset from DuckLake's own tables, instead of a scan of every attached catalog."""
        if project_id == "emulator":
            return _result_table(database, table_id) if table_id else original_objects(project_id, dataset_id)
        lake = database.quote(f"__ducklake_metadata_{project_id}")
        return database.fetch(
            f"SELECT t.table_name, 'TABLE', coalesce(n.record_count, 0) FROM {lake}.ducklake_table t "  # noqa: S608
            f"JOIN {lake}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL "
            f"LEFT JOIN {lake}.ducklake_table_stats n ON n.table_id = t.table_id "
            "WHERE t.end_snapshot IS NULL AND s.schema_name = $1 AND t.table_name = coalesce($2, t.table_name) "
            f"UNION ALL SELECT v.view_name, 'VIEW', 0 FROM {lake}.ducklake_view v "
            f"JOIN {lake}.ducklake_schema s ON s.schema_id = v.schema_id AND s.end_snapshot IS NULL "
            "WHERE v.end_snapshot IS NULL AND s.schema_name = $1 AND v.view_name = coalesce($2, v.view_name) "
            "ORDER BY 1",
            [dataset_id, table_id],
        )

    database.objects = objects
    names = threading.RLock()
    for module, name, lock in (
        (datasets, "create", names),
        (datasets, "update", names),
        (tables, "create", names),
        (tables, "update", names),
        (runner, "submit", threading.RLock()),
    ):
        setattr(module, name, _one_at_a_time(getattr(module, name), lock))


def _result_table(database: Any, table_id: str) -> list[tuple[str, str, int]]:
    import duckdb

    name = database.quote("emulator", "_results", table_id)
    try:
        [(count,)] = database.fetch(f"SELECT count(*) FROM {name}")  # noqa: S608
    except duckdb.CatalogException:
        return []
    return [(table_id, "TABLE", count)]


def _one_at_a_time[**P, T](function: Callable[P, T], lock: threading.RLock) -> Callable[P, T]:
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return function(*args, **kwargs)

    return locked


if __name__ == "__main__":
    main()
