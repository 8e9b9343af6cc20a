"""Step ``quality``: measures a staging table once, holds the measures against the source and against zero, and stops
the run before publication if a check of severity ERROR fails.

The template's SQL does the measuring, one row for each value of its first column: a currency, a status of findings;
the template's list says what each measure must be, and ``evaluate`` compares: exactly, with no tolerance. Rows that
break a rule of the template do not stop the run while they are few: they are published into the tenant's quarantine
instead, and the results say how many, of what cost, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal

from pydantic import Field

from libs.errors import FailedPrecondition
from services.pipeline_executor.providers.extraction import Extraction
from services.pipeline_executor.run_context import CheckResult, CheckStatus, Severity
from services.pipeline_executor.steps.step import (
    Column,
    SqlFile,
    SqlFiles,
    StagedTable,
    StepConfig,
    StepContext,
    StepResult,
)

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


class QuarantineConfig(StepConfig):
    """How many rows with a ``quarantine_reason`` may be kept apart: ``share`` of all, or ``rows`` if that is more, but
    never more than half.

    ``sql`` says which they are, asked only if there are any (measure ``quarantined_rows``); ``columns``: placeholder →
    column of the staged rows.
    """

    sql: SqlFile
    columns: dict[str, Column]
    share: float = Field(default=0.01, ge=0, le=0.5)
    rows: int = Field(default=10, ge=0)

    def allowed(self, rows: int) -> int:
        """How many of so many rows."""
        return min(max(self.rows, int(rows * self.share)), rows // 2)


class QualityConfig(StepConfig):
    """``sql``, one file or several, reads ``{rows}``, the staging table of step ``table``; ``extraction`` is the step
    with the totals.

    ``tables``: placeholder → step of further staging tables that are measured with it. ``quarantine``: what becomes of
    rows that break a rule, in a template that has such rules.
    """

    sql: SqlFiles
    table: str
    tables: dict[str, str] = Field(default_factory=dict)
    extraction: str
    quarantine: QuarantineConfig | None = None
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
        """Raises ``FailedPrecondition``: QUARANTINE_EXCEEDED if too many rows break a rule, QUALITY_CHECK_FAILED naming
        the checks; their results are durable by then."""
        run = context.run
        staged = context.output(self._config.table, StagedTable)
        extraction = context.output(self._config.extraction, Extraction)
        measured = await self._measure(context, extraction)
        results = evaluate(self._config.checks, measured=measured, totals=extraction.totals, now=run.now())
        results.append(drift(extraction.unknown_columns, run.now()))
        details: dict[str, Any] = {}
        exceeded: FailedPrecondition | None = None
        if (limit := self._config.quarantine) is not None:
            kept = await self._quarantined(context, limit, measured)
            exceeded = _exceeded(kept, staged.rows, limit.allowed(staged.rows))
            results += quarantine(kept, stops=exceeded is not None, now=run.now())
            details["rows_quarantined"] = sum(item.rows for item in kept)
        await run.journal.quality(results)
        if exceeded is not None:
            raise exceeded
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
                **details,
                "checks": len(results),
                "warnings": sorted({result.check_name for result in results if result.status is CheckStatus.WARN}),
            },
        )

    async def _measure(self, context: StepContext, extraction: Extraction) -> dict[str, dict[str, Decimal]]:
        run = context.run
        names = {"rows": self._config.table, **self._config.tables}
        answers = await asyncio.gather(
            *(
                run.warehouse.query(
                    sql.with_tables(
                        **{name: context.output(names[name], StagedTable).ref for name in sql.placeholders}
                    ),
                    dataset=run.tenant_id,
                    params=context.params(sql, extraction),
                    timeout=_SECONDS,
                )
                for sql in self._config.sql
            )
        )
        return _by_dimension(answers)

    async def _quarantined(
        self, context: StepContext, limit: QuarantineConfig, measured: Measures
    ) -> Sequence[Quarantined]:
        if not sum(row.get("quarantined_rows", 0) for row in measured.values()):
            return ()
        rows = await context.run.warehouse.query(
            limit.sql.with_tables(rows=context.output(self._config.table, StagedTable).ref, **limit.columns),
            dataset=context.run.tenant_id,
            params=context.params(limit.sql, None),
            timeout=_SECONDS,
        )
        return [
            Quarantined(row["currency"], row["reason"], row["row_count"], Decimal(row["cost"]), row["first_date"])
            for row in rows
        ]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Rows of one currency that are kept apart for one reason, and the first day of them."""

    currency: str
    reason: str
    rows: int
    cost: Decimal
    first_date: date

    def __str__(self) -> str:
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        cost = " ".join(filter(None, (_text(self.cost), self.currency)))
        return f"{rows} with {self.reason} (cost {cost}, the first of {self.first_date})"


def quarantine(kept: Sequence[Quarantined], *, stops: bool, now: datetime) -> list[CheckResult]:
    """What is kept apart, in rows and in cost per currency; one passed result if nothing is."""
    results = []
    for currency in sorted({item.currency for item in kept}) or [""]:
        mine = [item for item in kept if item.currency == currency]
        sums = {"rows": Decimal(sum(item.rows for item in mine)), "cost": sum((item.cost for item in mine), Decimal(0))}
        failed = CheckStatus.FAIL if stops else CheckStatus.WARN
        for name, actual in sums.items():
            results.append(
                CheckResult(
                    check_name=f"{name}_quarantined",
                    check_type="quarantine",
                    severity=Severity.ERROR if stops else Severity.WARNING,
                    status=failed if mine else CheckStatus.PASS,
                    dimension=currency or None,
                    expected="0",
                    actual=_text(actual),
                    message=f"Not published but kept in x_quarantine: {'; '.join(map(str, mine))}."
                    if mine
                    else "All rows keep the rules of the template.",
                    check_time=now,
                )
            )
    return results


def _exceeded(kept: Sequence[Quarantined], rows: int, allowed: int) -> FailedPrecondition | None:
    broken = sum(item.rows for item in kept)
    if broken <= allowed:
        return None
    return FailedPrecondition(
        "QUARANTINE_EXCEEDED",
        f"Nothing was published: of {rows} rows {broken} break a rule, and no more than {allowed} may be put into "
        f"quarantine. There are {'; '.join(map(str, kept[:5]))}. Correct the source, then run again.",
        reasons=",".join(sorted({item.reason for item in kept})[:5]),
    )


def evaluate(
    checks: Sequence[CheckConfig], *, measured: Measures, totals: Measures, now: datetime
) -> list[CheckResult]:
    """The results of all checks: per currency of either side where a check compares with the source, else one each."""
    results = []
    for check in checks:
        pairs: list[tuple[str | None, Decimal | None, Decimal | None]]
        if check.type == "equals_source":
            both = [(name, totals.get(name, {}), measured.get(name, {})) for name in sorted({*totals, *measured})]
            pairs = [
                (name, expected.get(check.measure), actual.get(check.measure))
                for name, expected, actual in both
                if check.measure in expected or check.measure in actual
            ]
        else:
            found = [row[check.measure] for row in measured.values() if check.measure in row]
            if measured and not found:
                raise KeyError(check.measure)
            pairs = [(None, Decimal(0), sum(found, Decimal(0)))]
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


def _by_dimension(answers: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Decimal]]:
    """The measures of all answers; one may lack a dimension that another has."""
    found: dict[str, dict[str, Decimal]] = {}
    for row in (row for rows in answers for row in rows):
        dimension, *measures = row
        found.setdefault(row[dimension] or "", {}).update({name: Decimal(row[name] or 0) for name in measures})
    return found


def _said(result: CheckResult) -> str:
    where = f" ({result.dimension})" if result.dimension else ""
    return f"{result.check_name}{where}: expected {result.expected or 'nothing'}, found {result.actual or 'nothing'}."


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")
