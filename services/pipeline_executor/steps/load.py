"""Step ``load``: puts an extraction's files into a staging table of their own schema, as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from libs.errors import Unavailable
from services.pipeline_executor.providers.extraction import Extraction
from services.pipeline_executor.steps.step import StagedTable, StepConfig, StepContext, StepResult

_AT_ONCE = 4  # load jobs: each takes BigQuery seconds, however small its file


class LoadConfig(StepConfig):
    """``extraction`` is the step whose files are loaded."""

    extraction: str

    def inputs(self) -> dict[str, type]:
        """Reads the extraction."""
        return {self.extraction: Extraction}


class Load:
    """Leaves a ``StagedTable`` named after the step."""

    Config: ClassVar[type[StepConfig]] = LoadConfig
    output: ClassVar[type | None] = StagedTable

    def __init__(self, config: LoadConfig) -> None:
        self._config = config

    async def run(self, context: StepContext) -> StepResult:
        """Loads into a table made anew, so that a second try cannot add to the first."""
        extraction = context.output(self._config.extraction, Extraction)
        if extraction.table is not None:
            return StepResult(rows=extraction.rows, output=StagedTable(extraction.table, extraction.rows))
        ref = await context.staging.create(context.step_name, extraction.schema)
        gate, rows = asyncio.Semaphore(_AT_ONCE), 0

        async def load(path: Path) -> None:
            nonlocal rows
            async with gate:
                loaded = await context.run.warehouse.load_parquet(
                    path, dataset=context.run.tenant_id, table=ref, schema=extraction.schema, truncate=False
                )
            rows += loaded
            context.report(rows, extraction.bytes)

        # All of them end before the step does: one that went on would add to the table of the next try.
        ended = await asyncio.gather(*map(load, extraction.files), return_exceptions=True)
        if failed := next((result for result in ended if result is not None), None):
            raise failed
        if rows != extraction.rows:
            raise Unavailable("LOAD_INCOMPLETE", f"{rows} of {extraction.rows} rows arrived in the staging table.")
        return StepResult(rows=rows, bytes=extraction.bytes, output=StagedTable(ref, rows))
