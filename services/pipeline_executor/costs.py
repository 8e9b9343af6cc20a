"""What a tenant may ask about its costs: the question, checked, and the page of groups that answers it.

Called by the servicer with decoded values. One sum never holds two currencies, and a question reads the charge dates it
names and, if it compares, those of the window before.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Literal, Protocol

from libs.tenancy import TenantId
from services.pipeline_executor.questions import bad, check_group_by, parse_date

DIMENSIONS = ("provider", "service", "account", "region", "charge_category", "currency", "day", "month")
MAX_DAYS = 1100
_TAG = "tag:"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRequest:
    """A question as the client wrote it; empty texts say nothing."""

    tenant_id: TenantId
    start_date: str = ""
    end_date: str = ""
    group_by: tuple[str, ...] = ()
    metric: str = ""
    currency: str = ""
    provider: str = ""
    service: str = ""
    account: str = ""
    region: str = ""
    charge_category: str = ""
    tag: str = ""
    compare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CostQuestion:
    """A checked question. ``first_date`` is where reading begins: ``start_date``, or that of the window before.

    A date before ``start_date`` stands for the one ``shift_days`` and ``shift_months`` later, so that its group meets
    the one it is compared with.
    """

    tenant_id: TenantId
    first_date: date
    start_date: date
    end_date: date
    shift_days: int
    shift_months: int
    group_by: tuple[str, ...]
    metric: Literal["billed", "effective"]
    currency: str
    provider: str
    service: str
    account: str
    region: str
    charge_category: str
    tag: tuple[str, str]
    compare: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """The sum of one group in one currency; ``key`` orders and identifies it among groups of the same cost."""

    key: str
    values: tuple[str, ...]
    currency: str
    cost: Decimal
    previous_cost: Decimal


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Rows of one provider and currency that no sum holds."""

    provider: str
    currency: str
    rows: int
    cost: Decimal


type Cursor = tuple[Decimal, str, str]


class CostStore(Protocol):
    """Where published costs are read."""

    async def costs(self, question: CostQuestion, size: int, after: Cursor | None) -> Sequence[Cost]:
        """Up to ``size`` groups after the cursor, the largest cost first; none for a tenant without any costs."""
        ...

    async def quarantined(self, question: CostQuestion) -> Sequence[Quarantined]:
        """What is in quarantine of the dates that are read and of the provider asked for."""
        ...


class Costs:
    """The use case: checks a question and reads one page of its answer."""

    def __init__(self, store: CostStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    def check(self, request: CostRequest) -> CostQuestion:
        """The question with its defaults: this month until today (UTC), billed.

        The window before has the same number of days; where the window is whole calendar months, as many months.
        Raises ``InvalidArgument``: DATE_INVALID, DATE_RANGE_INVALID, DATE_RANGE_TOO_LONG, GROUP_BY_INVALID,
        CURRENCY_INVALID, METRIC_INVALID, TAG_INVALID.
        """
        today = self._now().astimezone(UTC).date()
        end = parse_date("end_date", request.end_date) if request.end_date else today
        start = parse_date("start_date", request.start_date) if request.start_date else end.replace(day=1)
        if start > end:
            raise bad("DATE_RANGE_INVALID", "end_date", "lies before start_date")
        if (end - start).days >= MAX_DAYS:
            raise bad("DATE_RANGE_TOO_LONG", "end_date", f"lies {MAX_DAYS} days or more after start_date")
        if request.metric not in ("", "billed", "effective"):
            raise bad("METRIC_INVALID", "metric", "must be billed or effective")
        if request.currency and not re.fullmatch(r"[A-Za-z]{3}", request.currency, re.ASCII):
            raise bad("CURRENCY_INVALID", "currency", "must be a code of ISO 4217")
        key, given, value = request.tag.partition("=")
        if request.tag and not (key and given and request.tag.isprintable()):
            raise bad("TAG_INVALID", "tag", "must be key=value")
        days, months = _shift(start, end)
        first = start
        if request.compare:
            first = _months_before(start, months) if months else _before(start, days)
        return CostQuestion(
            tenant_id=request.tenant_id,
            first_date=first,
            start_date=start,
            end_date=end,
            shift_days=days,
            shift_months=months,
            group_by=check_group_by(request.group_by, DIMENSIONS, _TAG),
            metric="effective" if request.metric == "effective" else "billed",
            currency=request.currency.upper(),
            provider=request.provider.lower(),
            service=request.service,
            account=request.account,
            region=request.region,
            charge_category=request.charge_category,
            tag=(key, value),
            compare=request.compare,
        )

    async def ask(
        self, question: CostQuestion, size: int, after: Cursor | None
    ) -> tuple[Sequence[Cost], Sequence[Quarantined]]:
        """A page of the answer; with the first one, what all its sums lack."""
        if after is not None:
            return await self._store.costs(question, size, after), ()
        groups, kept = await asyncio.gather(self._store.costs(question, size, None), self._store.quarantined(question))
        return groups, kept


def _shift(start: date, end: date) -> tuple[int, int]:
    """Days and months from the window before to this one; one of the two is zero."""
    after = end + timedelta(days=1) if end < date.max else end
    if start.day == 1 and after.day == 1:
        return 0, (after.year - start.year) * 12 + after.month - start.month
    return (end - start).days + 1, 0


def _months_before(first: date, months: int) -> date:
    count = first.year * 12 + first.month - 1 - months
    if count < 12:
        raise bad("DATE_RANGE_INVALID", "start_date", "has no window before it")
    return date(count // 12, count % 12 + 1, 1)


def _before(first: date, days: int) -> date:
    try:
        return first - timedelta(days=days)
    except OverflowError:
        raise bad("DATE_RANGE_INVALID", "start_date", "has no window before it") from None
