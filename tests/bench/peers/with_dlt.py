"""dlt at its best: Arrow tables, file by file, into DuckDB. ``with_dlt.py FOLDER REST PROJECT FILE…`` prints JSON."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

folder, _rest, _project, *files = sys.argv[1:]
Path(folder).mkdir(parents=True, exist_ok=True)
os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}

import dlt  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402


def tables() -> Iterator[Any]:
    """The files without their maps, which dlt cannot take as they are."""
    for file in files:
        schema = pq.read_schema(file)
        yield pq.read_table(file, columns=[field.name for field in schema if not pa.types.is_map(field.type)])


began = time.perf_counter()
pipeline = dlt.pipeline(
    "bench", pipelines_dir=folder, destination=dlt.destinations.duckdb(f"{folder}/out.duckdb"), dataset_name="bench"
)
pipeline.run(tables(), table_name="report", write_disposition="replace")
seconds = time.perf_counter() - began
with pipeline.sql_client() as client, client.execute_query("SELECT count(*) FROM report") as found:
    [rows] = found.fetchone()
used = resource.getrusage(resource.RUSAGE_SELF)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime
print(json.dumps({"rows": rows, "seconds": seconds, "cpu": cpu, "mib": used.ru_maxrss // 1024}))
