"""Cost and usage reports of AWS from a bucket to the tenant's tables, stage by stage, beside a limit and two peers.

Ours is ``aws/cost/billing`` through REST on a stack of its own, moto being S3. Beside it, in the same run, on the same
files and the same emulator: the limit (DuckDB rewrites the files with the same columns, the emulator loads them and
copies them by INSERT … SELECT, once into one table and once into two, as we publish two), dlt with Arrow tables into
DuckDB, which is its best case, and pandas with ``load_table_from_dataframe``, which is what people write. The peers
read files of this disk and leave maps out; they neither check sums nor make FOCUS columns.

``BENCH_DATA_ROWS`` sets the sizes (default 100000,1000000; 10000000 takes half an hour). Reports are kept in
``build/cur``, the peers' virtualenv in ``build/peers``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from google.cloud import bigquery

from tests.bench import cur
from tests.bench.report import Results
from tests.support.aws import KEY, running_moto
from tests.support.stack import ROOT, Stack, Tenant, running

SIZES = "100000,1000000"
PEERS = ROOT / "build" / "peers"
PACKAGES = ("dlt[duckdb]==1.31.0", "pandas==2.3.3", "pyarrow==22.0.0", "google-cloud-bigquery==3.38.0")
_DATASET = "bench_limit"
_EVERY = 0.05
_FOCUS_COLUMNS = 66


def measure() -> dict[str, Results]:
    """Per size two sections: our stages, and all ways beside each other."""
    sizes = [int(size) for size in os.environ.get("BENCH_DATA_ROWS", SIZES).split(",")]
    found: dict[str, Results] = {}
    python = _peers()
    with tempfile.TemporaryDirectory() as made, running(Path(made) / "stack") as stack:
        for rows in sizes:
            files = cur.write(ROOT / "build" / "cur" / str(rows), rows)
            stages, ours = _ours(stack, files, rows, Path(made))
            found[f"AWS report of {rows:,} rows, 125 columns: stage by stage"] = stages
            ways = [ours, *_limits(stack, files, rows, Path(made))]
            ways += [_peer(stack, python, name, files, rows, Path(made)) for name in ("dlt", "pandas")]
            for way in ways:
                way["x_ours"] = round(way["rows_per_second"] / ours["rows_per_second"], 2)
            found[f"AWS report of {rows:,} rows: ways"] = ways
    return found


# ------------------------------------------------------------------------------------------------- figures


@dataclass
class Meter:
    """CPU and memory of processes by name, sampled by a thread for as long as the context lives."""

    pids: Mapping[str, int]
    samples: list[tuple[float, dict[str, tuple[float, int]]]] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[Meter]:
        """Samples."""
        ended = threading.Event()

        def sample() -> None:
            while True:
                self.samples.append((time.time(), {name: _used(pid) for name, pid in self.pids.items()}))
                if ended.wait(_EVERY):
                    return

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            self.samples.append((time.time(), {name: _used(pid) for name, pid in self.pids.items()}))

    def figures(self, began: float, ended: float) -> dict[str, dict[str, float]]:
        """Per process, CPU seconds and peak MiB between two times."""
        inside = [used for at, used in self.samples if began - _EVERY <= at <= ended + _EVERY]
        return {
            name: {
                "cpu": round(inside[-1][name][0] - inside[0][name][0], 2) if inside else 0,
                "mib": max((used[name][1] for used in inside), default=0),
            }
            for name in self.pids
        }


def _used(pid: int) -> tuple[float, int]:
    """CPU seconds so far and MiB resident, from Linux's ``/proc``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") >> 20


def _way(name: str, rows: int, seconds: float, **figures: Any) -> dict[str, Any]:
    return {"way": name, "seconds": round(seconds, 1), "rows_per_second": round(rows / seconds), **figures}


# ------------------------------------------------------------------------------------------------- ours


def _ours(stack: Stack, files: Sequence[Path], rows: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    tenant = stack.onboard()
    with running_moto(folder) as moto:
        bucket = moto.bucket()
        bucket.deliver({file.name: file.read_bytes() for file in files}, month=cur.MONTH)
        body = {"provider": "AWS", "credentials": KEY, "source": bucket.source()}
        tenant.call("POST", f"/tenants/{tenant.tenant_id}/credentials", body)
        pids = {name: stack.process(name).pid for name in ("pipeline_executor", "bigquery")}
        with Meter(pids).running() as meter:
            began = time.time()
            path = f"/pipelines/run/{tenant.tenant_id}/aws/cost/billing"
            asked = {"start_date": cur.FIRST, "end_date": cur.LAST}
            run_id = tenant.call("POST", path, asked)["pipeline_logging_id"]
            ended = tenant.wait(run_id, timeout=7200)
            seconds = time.time() - began
    assert ended["status"] == "COMPLETED", ended
    stages = _stages(stack, tenant, run_id, meter, rows)
    whole = meter.figures(began, began + seconds)
    ours = _way(
        "ours", rows, seconds,
        cpu_seconds=round(sum(one["cpu"] for one in whole.values()), 1),
        peak_mib=whole["pipeline_executor"]["mib"], emulator_peak_mib=whole["bigquery"]["mib"],
        equals_source=_stored(stack, tenant) == _written(files),
    )  # fmt: skip
    return stages, ours


def _stages(stack: Stack, tenant: Tenant, run_id: str, meter: Meter, rows: int) -> list[dict[str, Any]]:
    logged = stack.rows(
        f"SELECT step, start_time, end_time, details FROM x_meta_step_logs WHERE pipeline_logging_id = '{run_id}' "
        "ORDER BY position",
        dataset=tenant.tenant_id,
    )
    stages = []
    for step in logged:
        began, ended = (step[name].timestamp() for name in ("start_time", "end_time"))
        used = meter.figures(began, ended)
        stages.append(
            {
                "stage": step["step"],
                "seconds": round(ended - began, 2),
                "rows_per_second": round(rows / max(ended - began, 0.001)),
                "executor_cpu_seconds": used["pipeline_executor"]["cpu"],
                "emulator_cpu_seconds": used["bigquery"]["cpu"],
                "executor_peak_mib": used["pipeline_executor"]["mib"],
                "emulator_peak_mib": used["bigquery"]["mib"],
            }
        )
        details = step["details"]
        details = json.loads(details) if isinstance(details, str) else details or {}
        for name, seconds in details.get("seconds", {}).items():
            stages.append(
                {"stage": f"· {name}", "seconds": seconds, "rows_per_second": round(rows / max(seconds, 0.001))}
            )
    return stages


def _stored(stack: Stack, tenant: Tenant) -> Any:
    [found] = stack.rows(
        "SELECT COUNT(*) AS n, SUM(line_item_unblended_cost) AS cost FROM aws_cost_billing", dataset=tenant.tenant_id
    )
    return found["n"], found["cost"]


def _written(files: Sequence[Path]) -> Any:
    """What the files hold, each value by its shortest digits, summed by neither of our two readers' code."""
    names = ", ".join(f"'{file}'" for file in files)
    with duckdb.connect() as engine:
        sql = "SELECT count(*), sum(CAST(CAST(line_item_unblended_cost AS VARCHAR) AS DECIMAL(38, 17)))"
        [found] = engine.execute(f"{sql} FROM read_parquet([{names}])").fetchall()
    return found


# ------------------------------------------------------------------------------------------------- limit


def _limits(stack: Stack, files: Sequence[Path], rows: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Projection, bare loads, and one and then two copies: what is left if nothing is checked, typed or mapped."""
    client = stack.bigquery()
    client.create_dataset(_DATASET, exists_ok=True)
    shown = ", ".join(f"CAST(to_json({name}) AS VARCHAR) AS {name}" if name in cur.MAPS else name for name in cur.NAMES)
    with Meter({"me": os.getpid(), "bigquery": stack.process("bigquery").pid}).running() as meter:
        began = time.time()
        made = []
        with duckdb.connect(config={"threads": "2"}) as engine:
            for file in files:
                made.append(folder / f"limit-{file.name}")
                engine.sql(f"SELECT {shown} FROM '{file}'").write_parquet(str(made[-1]), compression="zstd")
        projected = time.time()
        target = f"{client.project}.{_DATASET}.loaded"
        client.delete_table(target, not_found_ok=True)
        config = bigquery.LoadJobConfig(source_format="PARQUET", schema=_schema(made[0]))
        for file in made:
            with file.open("rb") as content:
                client.load_table_from_file(content, target, job_config=config).result()
            file.unlink()
        loaded = time.time()
        steps = [loaded]
        for number, columns in enumerate((cur.NAMES, cur.NAMES[:_FOCUS_COLUMNS])):
            copy = f"`{client.project}.{_DATASET}.copy_{number}`"
            names = ", ".join(columns)
            client.query_and_wait(f"CREATE OR REPLACE TABLE {copy} AS SELECT {names} FROM `{target}` LIMIT 0")
            began_copy = time.time()
            client.query_and_wait(f"INSERT INTO {copy} ({names}) SELECT {names} FROM `{target}`")
            steps.append(steps[-1] + time.time() - began_copy)
    client.delete_dataset(_DATASET, delete_contents=True, not_found_ok=True)
    client.close()  # type: ignore[no-untyped-call]
    used = meter.figures(began, time.time())
    parts = f"projection {projected - began:.1f} s, load {loaded - projected:.1f} s"
    for name, end in (("limit, one table", steps[1]), ("limit, two tables", steps[2])):
        yield _way(
            name, rows, end - began, cpu_seconds=round(sum(one["cpu"] for one in used.values()), 1),
            peak_mib=used["me"]["mib"], emulator_peak_mib=used["bigquery"]["mib"], note=parts,
        )  # fmt: skip


def _schema(file: Path) -> list[bigquery.SchemaField]:
    kinds = {"double": "FLOAT", "string": "STRING", "large_string": "STRING"}
    return [bigquery.SchemaField(field.name, kinds.get(str(field.type), "TIMESTAMP")) for field in pq.read_schema(file)]


# ------------------------------------------------------------------------------------------------- peers


def _peers() -> Path:
    """Makes the peers' virtualenv once; its Python."""
    python, stamp = PEERS / "bin" / "python", PEERS / ".installed"
    if python.exists() and stamp.exists() and stamp.read_text() == "\n".join(PACKAGES):
        return python
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', '')}:{ROOT / '.uv' / 'bin'}")
    if uv is None:
        raise SystemExit("error: uv is needed to make build/peers; `make install` says how to get it")
    PEERS.parent.mkdir(exist_ok=True)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--no-project", "--python", "3.13", str(PEERS)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES],
    ):
        subprocess.run(command, cwd=ROOT, check=True)
    stamp.write_text("\n".join(PACKAGES))
    return python


def _peer(stack: Stack, python: Path, name: str, files: Sequence[Path], rows: int, folder: Path) -> dict[str, Any]:
    """Runs one of the scripts beside this module; it prints its own seconds, CPU and peak memory."""
    script = Path(__file__).with_name("peers") / f"with_{name}.py"
    given = [str(folder / f"peer-{name}"), stack.bigquery_rest, stack.project_id, *map(str, files)]
    env = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "DO_NOT_TRACK": "1"}
    with Meter({"bigquery": stack.process("bigquery").pid}).running() as meter:
        answer = subprocess.run([python, "-W", "ignore", script, *given], env=env, stdout=subprocess.PIPE, check=False)
    if answer.returncode:
        return _way(name, 0, 1, note=f"ended with exit code {answer.returncode}")
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert figures["rows"] == rows, figures
    emulator = meter.figures(0, time.time())["bigquery"]
    title = {"dlt": "dlt, arrow tables → DuckDB", "pandas": "pandas + load_table_from_dataframe"}[name]
    cpu = figures["cpu"] + (emulator["cpu"] if name == "pandas" else 0)
    return _way(title, rows, figures["seconds"], cpu_seconds=round(cpu, 1), peak_mib=figures["mib"])
