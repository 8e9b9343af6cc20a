"""Step ``publish``: replaces the run's dates in the tenant's table by a staging table, in the run's one fenced script.

The script is the template's, the transaction's place in the run's life is the publisher's. It is the last step of
every template: after it nothing can fail.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from libs.bigquery import Sql
from services.pipeline_executor.providers.extraction import Extraction
from services.pipeline_executor.run_context import Published
from services.pipeline_executor.steps.step import SqlFile, StagedTable, StepConfig, StepContext, StepResult

_FENCE = "ASSERT @@row_count = 1 AS 'assert:RUN_FENCED'"


class PublishConfig(StepConfig):
    """``sql`` reads ``{rows}``, the staging table of step ``table``; ``extraction`` says when it was looked at.

    ``tables``: placeholder → step of further staging tables that are published in the same transaction.
    """

    sql: SqlFile
    table: str
    tables: dict[str, str] = Field(default_factory=dict)
    extraction: str

    @field_validator("sql")
    @classmethod
    def _fenced(cls, sql: Sql) -> Sql:
        for needed in ("BEGIN TRANSACTION", "UPDATE x_meta_pipeline_runs", _FENCE, "COMMIT TRANSACTION"):
            if needed not in sql.text:
                raise ValueError(f"must be one fenced transaction; it lacks: {needed}")
        return sql

    def inputs(self) -> dict[str, type]:
        """Reads the staging tables and the extraction's start."""
        return {**dict.fromkeys([self.table, *self.tables.values()], StagedTable), self.extraction: Extraction}


class Publish:
    """Leaves how the publication ended."""

    Config: ClassVar[type[StepConfig]] = PublishConfig
    output: ClassVar[type | None] = Published

    def __init__(self, config: PublishConfig) -> None:
        self._config = config

    async def run(self, context: StepContext) -> StepResult:
        """Hands the script to the publisher; ``Aborted(RUN_FENCED)`` if this attempt may no longer publish."""
        run = context.run
        others = {name: context.output(step, StagedTable).ref for name, step in self._config.tables.items()}
        published = await run.publisher.publish(
            self._config.sql.with_tables(rows=context.output(self._config.table, StagedTable).ref, **others),
            context.params(self._config.sql, context.output(self._config.extraction, Extraction), end_time=run.now()),
        )
        details = {"outcome": published.outcome.value, "superseded_by": published.superseded_by}
        return StepResult(rows=published.rows, details=details, output=published)
