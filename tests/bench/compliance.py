"""A Prowler output of many findings, from a file to published, on an emulator: speed, and this process's peak memory.

``BENCH_FINDINGS`` sets how many (default 20,000). The file is read as one that was just fetched from a bucket. On the
second day one finding in a hundred has changed, so that what an unchanged finding costs is seen apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from libs.bigquery import Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.providers import aws_rows, prowler
from services.pipeline_executor.providers.extraction import Extraction, Scope
from services.pipeline_executor.providers.parquet import ParquetFile
from services.pipeline_executor.run_context import SourceEndpoints
from services.pipeline_executor.steps import STEPS
from services.pipeline_executor.steps.extract import ExtractConfig
from services.pipeline_executor.steps.step import StepContext, StepResult
from services.pipeline_executor.templates import Templates
from tests.bench.runs import peak_mib
from tests.conftest import running_emulator
from tests.support.compliance import ComplianceRuns, days, finding

PIPELINE = "aws/compliance/prowler"
ACCOUNTS = 20


def measure() -> list[dict[str, Any]]:
    """One result a day."""
    count = int(os.environ.get("BENCH_FINDINGS", "20000"))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        with (
            running_emulator(data) as (emulator, _),
            contextlib.closing(Warehouse(build_client("bench", endpoint=emulator.rest))) as warehouse,
        ):
            runs = ComplianceRuns(
                warehouse, TenantId("bench"), SourceEndpoints(emulator.rest, emulator.grpc), folder / "staging"
            )
            return asyncio.run(_measure(runs, folder, count))


async def _measure(runs: ComplianceRuns, folder: Path, count: int) -> list[dict[str, Any]]:
    await runs.prepare("aws")
    results = []
    for number, day in enumerate(days(2)):
        path = folder / "output.ocsf.json"
        write(path, count, number)
        before = peak_mib(os.getpid())
        began = time.perf_counter()
        context = await runs.begin(PIPELINE, day)
        run = await Engine(steps={**STEPS, "extract": _Local.of(path)}).run(
            Templates.load().get(*PIPELINE.split("/")), context
        )
        took = time.perf_counter() - began
        steps = {event.step_name: (event.end_time - event.start_time).total_seconds() for event in run.steps}  # type: ignore[operator]
        [versions] = await runs.rows(
            f"SELECT COUNT(*) AS n FROM compliance_history AS h WHERE h.valid_from = DATE '{day}'"
        )
        results.append(
            {
                "scan": "first" if number == 0 else "one in 100 changed",
                "findings": run.rows_published,
                "versions_written": versions["n"],
                "file_mib": path.stat().st_size // 2**20,
                "seconds": round(took, 1),
                "findings_per_second": round(count / took),
                "extract_seconds": round(steps["extract"], 1),
                "publish_seconds": round(steps["publish"], 1),
                "peak_mib": peak_mib(os.getpid()),
                "peak_mib_before": before,
            }
        )
    return results


def write(path: Path, count: int, day: int) -> None:
    """An output of so many findings; on the second day one in a hundred has passed."""
    with path.open("w") as file:
        for number in range(count):
            passed = number % 3 == 0 or (day and number % 100 == 1)
            record = finding(
                f"check_{number % 300}",
                f"arn:aws:s3:::bucket-{number // 300}",
                "PASS" if passed else "FAIL",
                account=f"{100000000000 + number % ACCOUNTS}",
                frameworks={f"CIS-{version}.0": ["1.20", "2.1"] for version in range(1, 5)},
                detail="x" * 400,
            )
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]")


class _Local:
    """The extraction of one file that is there already."""

    Config: ClassVar[type[ExtractConfig]] = ExtractConfig
    output: ClassVar[type | None] = Extraction
    path: ClassVar[Path]

    def __init__(self, config: ExtractConfig) -> None:
        pass

    @classmethod
    def of(cls, path: Path) -> type[Any]:
        return type("Local", (cls,), {"path": path})

    async def run(self, context: StepContext) -> StepResult:
        return await asyncio.to_thread(self._read, context.run.staging_dir)

    def _read(self, folder: Path) -> StepResult:
        target_path = folder / "rows.parquet"
        started = datetime.now(UTC)
        with ParquetFile(target_path, prowler.SCHEMA) as target:
            work = prowler._Work(folder, target)
            engine = aws_rows.connect(folder)
            try:
                prowler._decode(threading.Event(), self.path, False, self.path.name, work, engine)
            finally:
                engine.close()
        extraction = Extraction(
            files=(target_path,),
            schema=prowler.SCHEMA,
            rows=target.rows,
            bytes=target.bytes,
            started=started,
            totals=work.totals(),
            scopes=tuple(Scope(account) for account in sorted(work.accounts)),
        )
        return StepResult(rows=target.rows, output=extraction)
