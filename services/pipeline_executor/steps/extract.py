"""Step ``extract``: reads one data set of the provider for the run's days into files of the attempt's directory."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any, ClassVar

from pydantic import field_validator

from services.pipeline_executor.providers import EXTRACTORS
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest
from services.pipeline_executor.steps.step import StepConfig, StepContext, StepResult


class ExtractConfig(StepConfig):
    """``dataset`` is what to read, in the provider's own word."""

    dataset: str

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        known = sorted(set().union(*EXTRACTORS.values()))
        if value not in known:
            raise ValueError(f"must be one of {known}")
        return value


class Extract:
    """Leaves an ``Extraction``; a source without rows ends the run as NO_DATA."""

    Config: ClassVar[type[StepConfig]] = ExtractConfig
    output: ClassVar[type | None] = Extraction

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config

    async def run(self, context: StepContext) -> StepResult:
        """Reads into a directory made anew, or one that a failed try left for a reader that goes on from there; the
        credential is asked for at each try, as it may have been replaced."""
        run = context.run
        extractor = EXTRACTORS[context.provider][self._config.dataset]
        directory = run.staging_dir / context.step_name
        if not extractor.resumes:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        await asyncio.to_thread(directory.mkdir, mode=0o700, exist_ok=True)
        request = ExtractRequest(
            dataset=self._config.dataset,
            start_date=run.start_date,
            end_date=run.end_date,
            source=run.source,
            parameters=run.parameters,
            directory=directory,
            platform_project=run.warehouse.project_id,
            endpoints=run.source_endpoints,
            report=context.report,
        )
        extraction = await extractor.extract(request, await run.open_credential())
        totals: dict[str, Any] = {
            currency: {name: format(value, "f") for name, value in measures.items()}
            for currency, measures in extraction.totals.items()
        }
        return StepResult(
            rows=extraction.rows,
            bytes=extraction.bytes,
            details={**extraction.details, "source_totals": totals},
            output=extraction,
            no_data=extraction.rows == 0,
        )
