"""Step ``quality``: measures a staging table once, holds the measures against the source and against zero, and stops
the run before publication if a check of severity ERROR fails.

The template's SQL does the measuring, one row for each value of its first column: a currency, a status of findings;
the template's list says what each measure must be, and ``evaluate`` compares: exactly, with no tolerance.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal

from pydantic import Field

from libs.errors import FailedPrecondition
from services.pipeline_executor.providers.extraction import Extraction
from services.pipeline_executor.run_context import CheckResult, CheckStatus, Severity
from services.pipeline_executor.steps.step import SqlFile, StagedTable, StepConfig, StepContext, StepResult

_CURRENCIES = "reference/iso_4217.txt"
_SECONDS = 600.0

type Measures = Mapping[str, Mapping[str, Decimal]]


class CheckConfig(StepConfig):
    """One check of one measure; ``message`` says what holds if it passes.

    ``equals_source``: per currency, the same as the extraction's total of that name. ``is_zero``: zero in all rows.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    type: Literal["equals_source", "is_zero"]
    measure: str
    severity: Literal["ERROR", "WARNING"] = "ERROR"
    message: str = Field(min_length=1)


class QualityConfig(StepConfig):
    """``sql`` reads ``{rows}``, the staging table of step ``table``; ``extraction`` is the step with the totals.

    ``tables``: placeholder → step of further staging tables that are measured with it.
    """

    sql: SqlFile
    table: str
    tables: dict[str, str] = Field(default_factory=dict)
    extraction: str
    checks: list[CheckConfig] = Field(min_length=1)

    def inputs(self) -> dict[str, type]:
        """Reads the staging tables and the extraction's totals."""
        return {**dict.fromkeys([self.table, *self.tables.values()], StagedTable), self.extraction: Extraction}


class Quality:
    """Records every result, then raises if one of severity ERROR failed."""

    Config: ClassVar[type[StepConfig]] = QualityConfig
    output: ClassVar[type | None] = None

    def __init__(self, config: QualityConfig) -> None:
        self._config = config

    async def run(self, context: StepContext) -> StepResult:
        """Raises ``FailedPrecondition(QUALITY_CHECK_FAILED)`` naming the checks; their results are durable by then."""
        run = context.run
        staged = context.output(self._config.table, StagedTable)
        others = {name: context.output(step, StagedTable).ref for name, step in self._config.tables.items()}
        extraction = context.output(self._config.extraction, Extraction)
        rows = await run.warehouse.query(
            self._config.sql.with_tables(rows=staged.ref, **others),
            dataset=run.tenant_id,
            params=context.params(self._config.sql, extraction, currencies=list(currencies())),
            timeout=_SECONDS,
        )
        results = evaluate(
            self._config.checks,
            measured=_by_dimension(rows),
            totals=extraction.totals,
            now=run.now(),
        )
        results.append(drift(context.output(self._config.extraction, Extraction).unknown_columns, run.now()))
        await run.journal.quality(results)
        if stopping := [result for result in results if result.status is CheckStatus.FAIL]:
            names = sorted({result.check_name for result in stopping})
            raise FailedPrecondition(
                "QUALITY_CHECK_FAILED",
                f"Nothing was published, because quality checks failed: {', '.join(names)}. "
                + " ".join(_said(result) for result in stopping[:3]),
                checks=",".join(names),
            )
        return StepResult(
            rows=staged.rows,
            details={
                "checks": len(results),
                "warnings": sorted({result.check_name for result in results if result.status is CheckStatus.WARN}),
            },
        )


def evaluate(
    checks: Sequence[CheckConfig], *, measured: Measures, totals: Measures, now: datetime
) -> list[CheckResult]:
    """The results of all checks: per currency of either side where a check compares with the source, else one each."""
    results = []
    for check in checks:
        pairs: list[tuple[str | None, Decimal | None, Decimal | None]]
        if check.type == "equals_source":
            pairs = [
                (currency, totals.get(currency, {}).get(check.measure), measured.get(currency, {}).get(check.measure))
                for currency in sorted({*totals, *measured})
            ]
        else:
            pairs = [(None, Decimal(0), sum((row[check.measure] for row in measured.values()), Decimal(0)))]
        for currency, expected, actual in pairs:
            # A currency that one side does not have at all counts as zero there: zero rows, zero cost.
            passed = (expected or Decimal(0)) == (actual or Decimal(0))
            failed = CheckStatus.FAIL if check.severity == Severity.ERROR else CheckStatus.WARN
            results.append(
                CheckResult(
                    check_name=check.name,
                    check_type=check.type,
                    severity=Severity(check.severity),
                    status=CheckStatus.PASS if passed else failed,
                    dimension=currency or None,
                    expected=_text(expected),
                    actual=_text(actual),
                    message=check.message,
                    check_time=now,
                )
            )
    return results


def drift(unknown: Sequence[str], now: datetime) -> CheckResult:
    """The result that reports columns of the source which nobody has announced."""
    return CheckResult(
        check_name="schema_known",
        check_type="schema_drift",
        severity=Severity.WARNING,
        status=CheckStatus.WARN if unknown else CheckStatus.PASS,
        dimension=None,
        expected="",
        actual=", ".join(unknown)[:1000],
        message="Every column of the source is known; others are kept in source_extra, unless the template drops them.",
        check_time=now,
    )


@functools.cache
def currencies() -> tuple[str, ...]:
    """The currency codes of ISO 4217 that are in use."""
    text = importlib.resources.files("services.pipeline_executor").joinpath(_CURRENCIES).read_text("utf-8")
    return tuple(line.split()[0] for line in text.splitlines() if line and not line.startswith("#"))


def _by_dimension(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Decimal]]:
    found: dict[str, dict[str, Decimal]] = {}
    for row in rows:
        dimension, *measures = row
        found[row[dimension] or ""] = {name: Decimal(row[name] or 0) for name in measures}
    return found


def _said(result: CheckResult) -> str:
    where = f" ({result.dimension})" if result.dimension else ""
    return f"{result.check_name}{where}: expected {result.expected or 'nothing'}, found {result.actual or 'nothing'}."


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")
