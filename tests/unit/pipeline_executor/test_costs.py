"""Questions about costs: what is asked by default, which windows are compared, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from libs.errors import InvalidArgument
from libs.tenancy import TenantId
from services.pipeline_executor.costs import (
    DIMENSIONS,
    MAX_DAYS,
    Cost,
    CostQuestion,
    CostRequest,
    Costs,
    Cursor,
    Quarantined,
)

ACME = TenantId("acme")
NOW = datetime(2025, 11, 17, 23, 30, tzinfo=UTC)


class NoCosts:
    async def costs(self, question: CostQuestion, size: int, after: Cursor | None) -> Sequence[Cost]:
        return []

    async def quarantined(self, question: CostQuestion) -> Sequence[Quarantined]:
        return [Quarantined("aws", "USD", 2, Decimal("1.2"))]


def check(start: str = "", end: str = "", compare: bool = False, **changes: object) -> CostQuestion:
    request = CostRequest(tenant_id=ACME, start_date=start, end_date=end, compare=compare, **changes)  # type: ignore[arg-type]
    return Costs(NoCosts(), now=lambda: NOW).check(request)


async def test_what_the_sums_lack_is_said_once_with_the_first_page() -> None:
    costs = Costs(NoCosts(), now=lambda: NOW)
    assert await costs.ask(check(), 10, None) == ([], [Quarantined("aws", "USD", 2, Decimal("1.2"))])
    assert await costs.ask(check(), 10, (Decimal(1), "[]", "USD")) == ([], ())


def test_by_default_it_is_this_month_until_today_billed() -> None:
    question = check()
    assert (question.first_date, question.start_date, question.end_date) == (
        date(2025, 11, 1),
        date(2025, 11, 1),
        date(2025, 11, 17),
    )
    assert (question.metric, question.currency, question.group_by) == ("billed", "", ())


def test_the_end_alone_means_its_month() -> None:
    assert check(end="2025-02-10").start_date == date(2025, 2, 1)


@pytest.mark.parametrize(
    ("start", "end", "first", "days", "months"),
    [
        ("2025-11-10", "2025-11-16", "2025-11-03", 7, 0),
        ("2025-11-01", "2025-11-17", "2025-10-15", 17, 0),
        ("2025-11-01", "2025-11-30", "2025-10-01", 0, 1),
        ("2025-03-01", "2025-03-31", "2025-02-01", 0, 1),
        ("2025-01-01", "2025-03-31", "2024-10-01", 0, 3),
        ("2024-01-01", "2024-12-31", "2023-01-01", 0, 12),
        ("2024-03-01", "2024-03-01", "2024-02-29", 1, 0),
    ],
)
def test_a_window_is_compared_with_as_many_days_before_and_a_month_with_a_month(
    start: str, end: str, first: str, days: int, months: int
) -> None:
    question = check(start, end, compare=True)
    assert (question.first_date.isoformat(), question.shift_days, question.shift_months) == (first, days, months)
    assert check(start, end).first_date == question.start_date, "only what is asked for is read"


def test_case_does_not_matter_where_codes_are_meant() -> None:
    question = check(provider="GCP", currency="usd", service="Compute Engine")
    assert (question.provider, question.currency, question.service) == ("gcp", "USD", "Compute Engine")


def test_a_tag_is_a_key_and_the_rest_its_value() -> None:
    assert check(tag="team=web=1").tag == ("team", "web=1")
    assert check(tag="team=").tag == ("team", "")
    assert check().tag == ("", "")


def test_dimensions_and_tags_in_the_order_asked_for() -> None:
    asked = ("month", "tag:team", "tag:project/cost centre", "provider")
    assert check(group_by=asked).group_by == asked


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"group_by": ("team",)}, "GROUP_BY_INVALID"),
        ({"group_by": ("tag:",)}, "GROUP_BY_INVALID"),
        ({"group_by": ("tag:a\nb",)}, "GROUP_BY_INVALID"),
        ({"group_by": ("Day",)}, "GROUP_BY_INVALID"),
        ({"group_by": ("day", "day")}, "GROUP_BY_INVALID"),
        ({"metric": "list"}, "METRIC_INVALID"),
        ({"currency": "U$D"}, "CURRENCY_INVALID"),
        ({"tag": "team"}, "TAG_INVALID"),
        ({"tag": "=web"}, "TAG_INVALID"),
        ({"start": "2025-11-02", "end": "2025-11-01"}, "DATE_RANGE_INVALID"),
        ({"start": "2025-11-31"}, "DATE_INVALID"),
        ({"end": "20251101"}, "DATE_INVALID"),
        ({"start": "2020-01-01", "end": "2025-01-01"}, "DATE_RANGE_TOO_LONG"),
        ({"start": "0001-01-01", "end": "0001-01-31", "compare": True}, "DATE_RANGE_INVALID"),
        ({"start": "0001-01-05", "end": "0001-01-31", "compare": True}, "DATE_RANGE_INVALID"),
    ],
)
def test_what_cannot_be_answered_is_said(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check(**changes)  # type: ignore[arg-type]
    assert refused.value.reason == reason
    assert refused.value.field_violations
    if reason == "GROUP_BY_INVALID" and "twice" not in refused.value.message:
        assert ", ".join([*DIMENSIONS, "tag:<key>"]) in refused.value.message


def test_the_longest_window() -> None:
    start = date(2025, 12, 31).toordinal() - MAX_DAYS + 1
    assert check(date.fromordinal(start).isoformat(), "2025-12-31").start_date == date.fromordinal(start)
