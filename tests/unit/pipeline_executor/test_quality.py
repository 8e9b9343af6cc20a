"""Quality checks: exact comparison per currency, and what fails a run."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from libs.bigquery import Sql
from services.pipeline_executor.run_context import CheckResult
from services.pipeline_executor.steps.quality import (
    CheckConfig,
    QuarantineConfig,
    Quarantined,
    drift,
    evaluate,
    quarantine,
)
from services.pipeline_executor.steps.step import currencies

NOW = datetime(2025, 11, 18, tzinfo=UTC)


def check(**changes: Any) -> CheckConfig:
    base = {"name": "cost_equals_source", "type": "equals_source", "measure": "cost", "message": "Equal."}
    return CheckConfig.model_validate({**base, **changes})


def results(config: CheckConfig, measured: dict[str, str], totals: dict[str, str]) -> list[CheckResult]:
    return evaluate(
        [config],
        measured={currency: {config.measure: Decimal(value)} for currency, value in measured.items()},
        totals={currency: {config.measure: Decimal(value)} for currency, value in totals.items()},
        now=NOW,
    )


def test_equal_to_the_last_digit_per_currency() -> None:
    found = results(check(), {"USD": "1.10", "EUR": "2"}, {"EUR": "2.000000000", "USD": "1.1"})
    assert [(item.dimension, item.status, item.expected, item.actual) for item in found] == [
        ("EUR", "PASS", "2.000000000", "2"),
        ("USD", "PASS", "1.1", "1.10"),
    ]
    [found_one] = results(check(), {"USD": "1.100000001"}, {"USD": "1.1"})
    assert found_one.status == "FAIL"


def test_a_currency_on_one_side_only_fails_unless_it_is_zero() -> None:
    assert [item.status for item in results(check(), {"USD": "1"}, {"USD": "1", "EUR": "5"})] == ["FAIL", "PASS"]
    assert [item.status for item in results(check(), {"USD": "1", "EUR": "5"}, {"USD": "1"})] == ["FAIL", "PASS"]
    assert [item.status for item in results(check(), {"USD": "1", "EUR": "0"}, {"USD": "1"})] == ["PASS", "PASS"]
    [nothing, _] = results(check(), {"USD": "1"}, {"USD": "1", "": "5"})
    assert (nothing.dimension, nothing.expected, nothing.actual) == (None, "5", None)


def test_zero_in_all_rows_together() -> None:
    config = check(type="is_zero", measure="null_sku_id")
    [good] = results(config, {"USD": "0", "EUR": "0"}, {})
    assert (good.status, good.expected, good.actual, good.dimension) == ("PASS", "0", "0", None)
    [bad] = results(config, {"USD": "1", "EUR": "2"}, {})
    assert (bad.status, bad.actual) == ("FAIL", "3")


def test_a_warning_warns() -> None:
    [found] = results(check(severity="WARNING"), {"USD": "2"}, {"USD": "1"})
    assert (found.status, found.severity) == ("WARN", "WARNING")


def test_a_measure_that_the_sql_does_not_give_is_an_error_of_ours() -> None:
    with pytest.raises(KeyError):
        evaluate([check(type="is_zero", measure="x")], measured={"USD": {"y": Decimal(1)}}, totals={}, now=NOW)


def test_of_several_answers_one_may_know_what_another_does_not() -> None:
    found = evaluate(
        [check(), check(name="focus_nulls", type="is_zero", measure="nulls")],
        measured={"USD": {"cost": Decimal(1)}, "": {"nulls": Decimal(2)}},
        totals={"USD": {"cost": Decimal(1)}},
        now=NOW,
    )
    assert [(item.check_name, item.dimension, item.status) for item in found] == [
        ("cost_equals_source", "USD", "PASS"),
        ("focus_nulls", None, "FAIL"),
    ]


@pytest.mark.parametrize(
    ("rows", "allowed"), [(0, 0), (1, 0), (2, 1), (19, 9), (20, 10), (999, 10), (1100, 11), (1_000_000, 10_000)]
)
def test_few_rows_may_break_a_rule_and_never_most_of_them(rows: int, allowed: int) -> None:
    config = QuarantineConfig.model_construct(sql=Sql("x.sql", ""), columns={})
    assert config.allowed(rows) == allowed


def test_what_is_quarantined_is_said_per_currency_in_rows_and_cost_with_the_reasons() -> None:
    kept = [
        Quarantined("USD", "no SKU", 2, Decimal("1.20"), date(2025, 11, 17)),
        Quarantined("USD", "no service; no SKU", 1, Decimal("-0.5"), date(2025, 11, 18)),
        Quarantined("", "no currency", 1, Decimal(7), date(2025, 11, 1)),
    ]
    found = quarantine(kept, stops=False, now=NOW)
    assert [(item.check_name, item.dimension, item.expected, item.actual, item.status) for item in found] == [
        ("rows_quarantined", None, "0", "1", "WARN"),
        ("cost_quarantined", None, "0", "7", "WARN"),
        ("rows_quarantined", "USD", "0", "3", "WARN"),
        ("cost_quarantined", "USD", "0", "0.70", "WARN"),
    ]
    assert found[2].message == (
        "Not published but kept in x_quarantine: 2 rows with no SKU (cost 1.20 USD, the first of 2025-11-17); "
        "1 row with no service; no SKU (cost -0.5 USD, the first of 2025-11-18)."
    )
    assert {item.status for item in quarantine(kept, stops=True, now=NOW)} == {"FAIL"}
    assert [(item.check_name, item.actual, item.status) for item in quarantine([], stops=False, now=NOW)] == [
        ("rows_quarantined", "0", "PASS"),
        ("cost_quarantined", "0", "PASS"),
    ]


def test_currencies() -> None:
    assert {"USD", "EUR", "JPY", "BRL", "INR"} <= set(currencies())
    assert all(len(code) == 3 and code.isupper() for code in currencies())
    assert len(currencies()) == len(set(currencies())) > 150


def test_columns_nobody_announced_are_a_warning() -> None:
    assert drift((), NOW).status == "PASS"
    found = drift(("carbon", "seen"), NOW)
    assert (found.severity, found.status, found.actual) == ("WARNING", "WARN", "carbon, seen")
