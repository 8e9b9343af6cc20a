"""Step ``transform``: makes a staging table from others by one ``CREATE TABLE … AS SELECT`` of the template."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from libs.bigquery import Sql
from services.pipeline_executor.steps.step import LookupFile, SqlFile, StagedTable, StepConfig, StepContext, StepResult

_SECONDS = 1800.0


class TransformConfig(StepConfig):
    """``sql`` writes ``{target}`` and reads ``{placeholder}`` for each entry of ``tables``: placeholder → step.

    ``lookups``: parameter → file of ``reference/`` that it holds, as a JSON array of the file's rows.
    """

    sql: SqlFile
    tables: dict[str, str] = Field(min_length=1)
    lookups: dict[str, LookupFile] = Field(default_factory=dict)

    @field_validator("sql")
    @classmethod
    def _expires(cls, sql: Sql) -> Sql:
        if "expiration_timestamp" not in sql.text or "{target}" not in sql.text:
            raise ValueError("must create {target} with OPTIONS (expiration_timestamp = …), as all staging tables have")
        return sql

    def inputs(self) -> dict[str, type]:
        """Reads the staging tables it names."""
        return dict.fromkeys(self.tables.values(), StagedTable)


class Transform:
    """Leaves a ``StagedTable`` named after the step."""

    Config: ClassVar[type[StepConfig]] = TransformConfig
    output: ClassVar[type | None] = StagedTable

    def __init__(self, config: TransformConfig) -> None:
        self._config = config

    async def run(self, context: StepContext) -> StepResult:
        """Replaces the target, so that it may be run again."""
        run = context.run
        target = context.staging.table(context.step_name)
        sources = {name: context.output(step, StagedTable).ref for name, step in self._config.tables.items()}
        await run.warehouse.script(
            self._config.sql.with_tables(target=target, **sources),
            dataset=run.tenant_id,
            params=context.params(self._config.sql, None, **self._config.lookups),
            timeout=_SECONDS,
            conflict_retries=3,
        )
        rows = await context.staging.count(target)
        return StepResult(rows=rows, output=StagedTable(target, rows))
