"""Step ``extract``: reads one data set of the provider for the run's days into files of the attempt's directory.

Before it reads, it asks the source what it cheaply says of its state. If the same days stand published from the same
state, by the same text of the template and the same parameters, the run ends as UNCHANGED, unless ``parameters.force``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from libs.bigquery import Sql
from libs.errors import FailedPrecondition
from services.pipeline_executor.providers import EXTRACTORS
from services.pipeline_executor.providers.extraction import Extraction, ExtractRequest, Inside
from services.pipeline_executor.steps.publish import TAKE_OVER
from services.pipeline_executor.steps.step import PACKAGE, StepConfig, StepContext, StepResult

FORCE = "force"
_PUBLISHED = Sql.load(PACKAGE, "sql/read_published_version.sql")


class ExtractConfig(StepConfig):
    """``dataset`` is what to read, in the provider's own word.

    ``schema_drift`` says what becomes of columns that nobody has announced: ``evolve`` keeps them, ``discard`` leaves
    them out, ``freeze`` lets the run fail. They are reported in each case.
    """

    dataset: str
    schema_drift: Literal["evolve", "freeze", "discard"] = "evolve"

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        known = sorted(set().union(*EXTRACTORS.values()))
        if value not in known:
            raise ValueError(f"must be one of {known}")
        return value


class Extract:
    """Leaves an ``Extraction``; a source without rows ends the run as NO_DATA, one that stands published, UNCHANGED."""

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
            inside=Inside(run.warehouse, run.tenant_id, context.staging.table(f"{context.step_name}_inside")),
            keep_unknown=self._config.schema_drift != "discard",
            now=run.now(),
        )
        published, secret = await asyncio.gather(_published(context), run.open_credential())
        if published is not None:
            request = replace(request, is_published=lambda found: _version(context, found) == published[1])
        extraction = await extractor.extract(request, secret)
        if extraction.version is not None:
            extraction = replace(extraction, version=_version(context, extraction.version))
        if extraction.unchanged and published is not None:
            details = {**extraction.details, "unchanged_since": published[0]}
            return StepResult(rows=0, details=details, output=extraction, unchanged=True)
        if extraction.unknown_columns and self._config.schema_drift == "freeze":
            raise FailedPrecondition(
                "SCHEMA_DRIFT",
                f"The source has columns that {context.provider}/{context.domain}/{context.template} does not know, "
                f"and its schema is frozen: {', '.join(extraction.unknown_columns[:10])}.",
                columns=",".join(extraction.unknown_columns[:50]),
            )
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


async def _published(context: StepContext) -> tuple[str, str] | None:
    """The run that these days stand published by, and the version it was of; None if there is none, or nobody asks."""
    run = context.run
    if run.parameters.get(FORCE) or run.parameters.get(TAKE_OVER):
        return None
    found = await run.warehouse.query(
        _PUBLISHED,
        dataset=run.tenant_id,
        params={
            "provider": context.provider,
            "domain": context.domain,
            "template": context.template,
            "start_date": run.start_date,
            "end_date": run.end_date,
        },
    )
    if not found or found[0]["source_version"] is None:
        return None
    return found[0]["pipeline_logging_id"], found[0]["source_version"]


def _version(context: StepContext, found: str) -> str:
    """What a publication follows from: the source's state, where it lies, the parameters, and the template's text."""
    asked: Mapping[str, Any] = {
        name: value for name, value in context.run.parameters.items() if name not in (FORCE, TAKE_OVER)
    }
    text = json.dumps([found, context.run.source, asked, context.revision], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
