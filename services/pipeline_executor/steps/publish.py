"""Step ``publish``: replaces the run's dates in the tenant's table by a staging table, in the run's one fenced script.

The script is the template's, the transaction's place in the run's life is the publisher's. It is the last step of
every template: after it nothing can fail.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from libs.bigquery import Sql, TableRef
from libs.errors import Aborted, FailedPrecondition
from services.pipeline_executor.providers.extraction import Extraction
from services.pipeline_executor.run_context import Published
from services.pipeline_executor.steps.step import Column, SqlScript, StagedTable, StepConfig, StepContext, StepResult

TAKE_OVER = "take_over"
_FENCE = "ASSERT @@row_count = 1 AS 'assert:RUN_FENCED'"
_COUNTED_TWICE = "COST_COUNTED_TWICE"


class PublishConfig(StepConfig):
    """``sql``, one file or the parts of one script, reads ``{rows}``, the staging table of step ``table``.

    ``tables``: placeholder → step of further staging tables that are published in the same transaction. ``targets``:
    placeholder → table of the template, ``columns``: placeholder → column of the staged rows, where a shared part does
    not know their names. ``extraction`` is the step that says when the source was looked at.
    """

    sql: SqlScript
    table: str
    tables: dict[str, str] = Field(default_factory=dict)
    targets: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, Column] = Field(default_factory=dict)
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
        """Hands the script to the publisher.

        Raises ``Aborted(RUN_FENCED)`` if this attempt may no longer publish, ``FailedPrecondition(COST_COUNTED_TWICE)``
        if another template has published the cost of the same account and days.
        """
        try:
            published = await self._publish(context)
        except Aborted as refused:
            if refused.reason != _COUNTED_TWICE:
                raise
            raise FailedPrecondition(
                _COUNTED_TWICE,
                f"Another template of {context.provider} has published these days of the same billing account into "
                "focus_cost_and_usage, where their cost would count twice. Run one of the two only; to go over to "
                f"{context.provider}/{context.domain}/{context.template}, run it once for these days with "
                "parameters.take_over = true.",
            ) from refused
        details = {"outcome": published.outcome.value, "superseded_by": published.superseded_by}
        return StepResult(rows=published.rows, details=details, output=published)

    async def _publish(self, context: StepContext) -> Published:
        run = context.run
        extraction = context.output(self._config.extraction, Extraction)
        names = {name: context.output(step, StagedTable).ref for name, step in self._config.tables.items()}
        names |= {name: TableRef(table) for name, table in self._config.targets.items()} | self._config.columns
        return await run.publisher.publish(
            self._config.sql.with_tables(rows=context.output(self._config.table, StagedTable).ref, **names),
            context.params(
                self._config.sql,
                extraction,
                end_time=run.now(),
                source_version=extraction.version,
                take_over=bool(run.parameters.get(TAKE_OVER)),
            ),
        )
