"""What a tenant may ask about its compliance: the question, checked, and the page that answers it.

Called by the servicer with decoded values. There are two questions: how many findings stand how at the end of a day
(or of each of several), and what has changed since a day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Protocol

from libs.tenancy import TenantId
from services.pipeline_executor.questions import bad, check_group_by, parse_date

DIMENSIONS = ("provider", "severity", "status", "standard", "account", "resource", "day")
SEVERITIES = ("UNKNOWN", "INFORMATIONAL", "LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL")
STATUSES = ("OPEN", "PASSED", "MUTED", "EXEMPT", "UNDECIDED", "CLOSED")
MAX_DAYS = 400
_TREND = timedelta(days=29)
_FOUR_PLACES = Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceRequest:
    """A question as the client wrote it; empty texts say nothing."""

    tenant_id: TenantId
    group_by: tuple[str, ...] = ()
    changed_since: str = ""
    start_date: str = ""
    end_date: str = ""
    provider: str = ""
    severity: str = ""
    standard: str = ""
    account: str = ""
    status: str = ""
    resource: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceQuestion:
    """A checked question: for changes if ``changed_since`` is set, else for each day from the first to the last."""

    tenant_id: TenantId
    group_by: tuple[str, ...]
    changed_since: date | None
    first_day: date
    last_day: date
    provider: str
    severity: str
    standard: str
    account: str
    status: str
    resource: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The findings of one group at the end of one day; ``key`` identifies it among those of the day."""

    key: str
    values: tuple[str, ...]
    day: date
    passed: int
    failed: int
    muted: int
    exempt: int
    undecided: int

    @property
    def pass_rate(self) -> str:
        """passed / (passed + failed), four places; empty without any."""
        counted = self.passed + self.failed
        return format((Decimal(self.passed) / counted).quantize(_FOUR_PLACES, ROUND_HALF_UP), "f") if counted else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One finding as it became on one day."""

    finding_uid: str
    kind: str
    day: date
    status: str
    previous_status: str
    provider: str
    source: str
    severity: str
    check: str
    title: str
    account: str
    region: str
    resource: str
    standards: tuple[str, ...]
    requirements: tuple[str, ...]
    first_seen: date
    current: bool


type GroupCursor = tuple[date, int, str]
type ChangeCursor = tuple[date, str]


class ComplianceStore(Protocol):
    """Where published findings are read."""

    async def groups(self, question: ComplianceQuestion, size: int, after: GroupCursor | None) -> Sequence[Group]:
        """Up to ``size`` groups after the cursor, by day and most open first; none for a tenant without findings."""
        ...

    async def changes(self, question: ComplianceQuestion, size: int, after: ChangeCursor | None) -> Sequence[Change]:
        """Up to ``size`` changes after the cursor, the newest first."""
        ...


class Compliance:
    """The use case: checks a question and reads one page of its answer."""

    def __init__(self, store: ComplianceStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    def check(self, request: ComplianceRequest) -> ComplianceQuestion:
        """The question with its defaults: today (UTC), or for a trend the thirty days until then.

        Raises ``InvalidArgument``: DATE_INVALID, DATE_RANGE_INVALID, DATE_RANGE_TOO_LONG, GROUP_BY_INVALID,
        SEVERITY_INVALID, STATUS_INVALID.
        """
        group_by = check_group_by(request.group_by, DIMENSIONS)
        since = parse_date("changed_since", request.changed_since) if request.changed_since else None
        if since and (group_by or request.start_date or request.end_date):
            raise bad("GROUP_BY_INVALID", "changed_since", "lists changes: leave out group_by, start_date and end_date")
        last = parse_date("end_date", request.end_date) if request.end_date else self._now().astimezone(UTC).date()
        first = last
        if "day" in group_by:
            first = parse_date("start_date", request.start_date) if request.start_date else _before(last, _TREND)
        elif request.start_date:
            raise bad("GROUP_BY_INVALID", "start_date", "needs day in group_by")
        if first > last:
            raise bad("DATE_RANGE_INVALID", "end_date", "lies before start_date")
        if (last - first).days >= MAX_DAYS:
            raise bad("DATE_RANGE_TOO_LONG", "end_date", f"lies {MAX_DAYS} days or more after start_date")
        return ComplianceQuestion(
            tenant_id=request.tenant_id,
            group_by=group_by,
            changed_since=since,
            first_day=first,
            last_day=last,
            provider=request.provider.lower(),
            severity=_word("severity", request.severity, SEVERITIES),
            standard=request.standard,
            account=request.account,
            status=_word("status", request.status, STATUSES),
            resource=request.resource,
        )

    async def groups(self, question: ComplianceQuestion, size: int, after: GroupCursor | None) -> Sequence[Group]:
        """A page of counts."""
        return await self._store.groups(question, size, after)

    async def changes(self, question: ComplianceQuestion, size: int, after: ChangeCursor | None) -> Sequence[Change]:
        """A page of changes."""
        return await self._store.changes(question, size, after)


def _before(day: date, span: timedelta) -> date:
    return day - span if day - date.min > span else date.min


def _word(name: str, given: str, known: tuple[str, ...]) -> str:
    word = given.upper()
    if word and word not in known:
        raise bad(f"{name.upper()}_INVALID", name, f"must be one of {', '.join(known)}")
    return word
