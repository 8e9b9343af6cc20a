"""The local BigQuery: starts ``local-bigquery`` (REST and Storage gRPC, DuckDB inside) in the foreground, offline.

``python -m deploy.local.bigquery --data-dir D --port P --grpc-port G --project X`` runs until SIGTERM; ``make up`` and
the tests start it. It keeps its own HOME in the data folder, so that a user's DuckDB settings are left alone;
``bigquery_patches`` is what it changes in the emulator.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from deploy.local.bigquery_patches import patch

_EXTENSIONS = ("icu", "spatial")


def main() -> None:
    """Starts the emulator from command line arguments and serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.bigquery", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds everything, made if missing")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="REST")
    parser.add_argument("--grpc-port", type=int, required=True, help="Storage Read and Write API")
    parser.add_argument("--project", default="local", help="project that exists from the start")
    # Where every statement is small one is cheapest: DuckDB's threads spin while they wait for one another.
    parser.add_argument("--threads", type=int, help="threads of one query; DuckDB's default is one a core")
    args = parser.parse_args()
    serve(args.data_dir, args.host, args.port, args.grpc_port, args.project, args.threads)


def serve(data_dir: Path, host: str, port: int, grpc_port: int, project: str, threads: int | None) -> None:
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
    patch(threads)

    # What was imported stays: the collector need not look through it again and again while a statement is parsed.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)

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


if __name__ == "__main__":
    main()
