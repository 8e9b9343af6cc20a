"""Questions about compliance: what is asked by default, what is refused, and the rate of a group."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime

import pytest

from libs.errors import InvalidArgument
from libs.tenancy import TenantId
from services.pipeline_executor.compliance import (
    Change,
    ChangeCursor,
    Compliance,
    ComplianceQuestion,
    ComplianceRequest,
    Group,
    GroupCursor,
)

ACME = TenantId("acme")
NOW = datetime(2025, 11, 17, 23, 30, tzinfo=UTC)


class NoFindings:
    async def groups(self, question: ComplianceQuestion, size: int, after: GroupCursor | None) -> Sequence[Group]:
        return []

    async def changes(self, question: ComplianceQuestion, size: int, after: ChangeCursor | None) -> Sequence[Change]:
        return []


def check(**changes: object) -> ComplianceQuestion:
    request = ComplianceRequest(tenant_id=ACME, **changes)  # type: ignore[arg-type]
    return Compliance(NoFindings(), now=lambda: NOW).check(request)


def test_by_default_it_is_today_and_a_trend_is_thirty_days() -> None:
    today = date(2025, 11, 17)
    assert (check().first_day, check().last_day, check().changed_since) == (today, today, None)
    trend = check(group_by=("day", "standard"), end_date="2025-11-10")
    assert (trend.first_day, trend.last_day) == (date(2025, 10, 12), date(2025, 11, 10))
    assert check(end_date="2025-01-31").first_day == date(2025, 1, 31)
    assert check(group_by=("day",), end_date="0001-01-02").first_day == date.min


def test_words_may_be_in_any_case() -> None:
    question = check(severity="high", status="open", provider="AWS")
    assert (question.severity, question.status, question.provider) == ("HIGH", "OPEN", "aws")


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"group_by": ("color",)}, "GROUP_BY_INVALID", "group_by"),
        ({"group_by": ("day", "day")}, "GROUP_BY_INVALID", "group_by"),
        ({"group_by": ("provider",), "changed_since": "2025-11-01"}, "GROUP_BY_INVALID", "changed_since"),
        ({"end_date": "2025-11-01", "changed_since": "2025-11-01"}, "GROUP_BY_INVALID", "changed_since"),
        ({"start_date": "2025-11-01"}, "GROUP_BY_INVALID", "start_date"),
        ({"changed_since": "2025-02-30"}, "DATE_INVALID", "changed_since"),
        ({"group_by": ("day",), "start_date": "2025-11-18"}, "DATE_RANGE_INVALID", "end_date"),
        ({"group_by": ("day",), "start_date": "2020-01-01"}, "DATE_RANGE_TOO_LONG", "end_date"),
        ({"severity": "BAD"}, "SEVERITY_INVALID", "severity"),
        ({"status": "FAILED"}, "STATUS_INVALID", "status"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_field(changes: dict[str, object], reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(**changes)
    assert caught.value.reason == reason
    assert [violation.field for violation in caught.value.field_violations] == [field]


@pytest.mark.parametrize(
    ("passed", "failed", "rate"),
    [(2, 1, "0.6667"), (1, 0, "1.0000"), (0, 3, "0.0000"), (0, 0, ""), (1, 19999, "0.0001")],
)
def test_the_rate_is_of_what_passed_or_failed(passed: int, failed: int, rate: str) -> None:
    group = Group(
        key="[]", values=(), day=NOW.date(), passed=passed, failed=failed, muted=7, exempt=8, undecided=9
    )  # fmt: skip
    assert group.pass_rate == rate
