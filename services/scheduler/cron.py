"""When a schedule is due: the instants of a cron expression in an IANA zone, as pure functions.

Called by the trigger and by everything that shows or changes a schedule. croniter only walks naive wall times; what is
accepted and which instant a wall time means is decided here. The invariant: instants are strictly increasing UTC times,
whatever the clocks of the zone do. A fixed hour that a clock change leaves out runs at the next instant, one that comes
twice runs the first time; where minute or hour is ``*`` or a step of it, the expression follows real time.
"""

from __future__ import annotations

import copy
import functools
import heapq
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from libs.errors import FieldViolation, InvalidArgument

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = {
    **{"JAN": 1, "FEB": 2, "MAR": 3, "APR": 4, "MAY": 5, "JUN": 6},
    **{"JUL": 7, "AUG": 8, "SEP": 9, "OCT": 10, "NOV": 11, "DEC": 12},
}
_WEEKDAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
_LONGEST_MONTHS = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
_ITEM = re.compile(r"(\*|[0-9]{1,2}|[A-Z]{3})(?:-([0-9]{1,2}|[A-Z]{3}))?(?:/([0-9]{1,2}))?", re.ASCII)
# No zone sets its clocks back by more than this. A walk that starts so near to a change begins that much earlier.
_LONGEST_FOLD = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    first: int
    last: int
    words: dict[str, int]

    def parse(self, text: str) -> frozenset[int]:
        """The values a field stands for; ``ValueError`` with what is wrong."""
        return frozenset().union(*(self._item(item) for item in text.split(",")))

    def _item(self, text: str) -> range:
        match = _ITEM.fullmatch(text)
        if not match:
            raise ValueError(f"{self.name} {text!r} is not a number, name, range, list, * or step of one")
        start, end, step = match.groups()
        if start == "*":
            if end is not None:
                raise ValueError(f"{self.name} {text!r} is a range that begins with *")
            low, high = self.first, self.last
        else:
            low = self._value(start)
            high = self._value(end) if end is not None else low
            if step is not None and end is None:
                raise ValueError(f"{self.name} {text!r} is a step of a single value; write {start}-{self.last}/{step}")
        if high < low:
            raise ValueError(f"{self.name} {text!r} is a range that ends before it begins")
        if step is not None and not 1 <= int(step) <= self.last:
            raise ValueError(f"{self.name} {text!r} has a step out of 1 to {self.last}")
        return range(low, high + 1, int(step or 1))

    def _value(self, text: str) -> int:
        value = self.words.get(text, -1) if text.isalpha() else int(text)
        if not self.first <= value <= self.last:
            raise ValueError(f"{self.name} {text!r} is not in {self.first} to {self.last}")
        return value


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A validated expression in a zone; made by ``parse``."""

    expression: str
    timezone: str
    _fields: str
    _any_day: bool
    _real_time: bool

    def after(self, instant: datetime) -> Iterator[datetime]:
        """The instants strictly after ``instant``, in UTC, strictly increasing, without end."""
        last = instant.astimezone(UTC)
        for found in self._instants(last):
            if found > last:
                last = found
                yield found

    def next(self, instant: datetime) -> datetime:
        """The first instant strictly after ``instant``."""
        return next(self.after(instant))

    def upcoming(self, instant: datetime, count: int) -> list[datetime]:
        """The first ``count`` instants strictly after ``instant``."""
        return list(islice(self.after(instant), count))

    def _instants(self, start: datetime) -> Iterator[datetime]:
        zone = ZoneInfo(self.timezone)
        before, after = (start + shift for shift in (-_LONGEST_FOLD, _LONGEST_FOLD))
        changes = before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
        walls = self._walls((before if changes else start).astimezone(zone).replace(tzinfo=None))
        return _real(walls, zone) if self._real_time else _fixed(walls, zone)

    def _walls(self, start: datetime) -> Iterator[datetime]:
        while True:
            start = _next_wall(self._fields, self._any_day, start)
            yield start


# Many tenants have the same schedule, and all that are due have it walked from the same time.
@functools.lru_cache(maxsize=16_384)
def _next_wall(fields: str, any_day: bool, start: datetime) -> datetime:
    """The first wall time after ``start``."""
    walk = copy.copy(_walker(fields, any_day))
    walk.set_current(start)
    found: datetime = walk.get_next(datetime)  # type: ignore[no-untyped-call]
    return found


@functools.lru_cache(maxsize=4096)
def _walker(fields: str, any_day: bool) -> croniter:
    return croniter(fields, datetime(2026, 1, 1), ret_type=datetime, day_or=any_day)


@functools.lru_cache(maxsize=4096)
def parse(expression: str, timezone: str) -> Cron:
    """Checks an expression and a zone.

    Raises ``InvalidArgument``: CRON_INVALID for anything but five fields or an @alias, a date that never comes, or more
    than one minute an hour; TIMEZONE_UNKNOWN.
    """
    if timezone not in _zones():
        raise _refused("TIMEZONE_UNKNOWN", "timezone", f"{timezone!r} is not an IANA zone such as Europe/Berlin or UTC")
    try:
        return _parse(expression, timezone)
    except ValueError as exc:
        raise _refused("CRON_INVALID", "cron", str(exc)) from None


def _parse(expression: str, timezone: str) -> Cron:
    text = expression.strip()
    if text.startswith("@") and text.lower() not in _ALIASES:
        raise ValueError(f"{text!r} is not one of {', '.join(_ALIASES)}")
    parts = _ALIASES.get(text.lower(), text).upper().split()
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"it has {len(parts)} fields, not five: minute, hour, day of month, month, day of week; no seconds, no year"
        )
    minutes, _hours, days, months, _weekdays = (field.parse(part) for field, part in zip(_FIELDS, parts, strict=True))
    if len(minutes) > 1:
        raise ValueError("it fires more than once an hour; give the minute as one number")
    # As in Debian's cron: both day fields must match if one begins with a star, else either.
    any_day = not (parts[2].startswith("*") or parts[4].startswith("*"))
    if not any_day and min(days) > max(_LONGEST_MONTHS[month] for month in months):
        raise ValueError("its date never comes")
    cron = Cron(
        expression=text,
        timezone=timezone,
        _fields=" ".join(_numbers(field, part) for field, part in zip(_FIELDS, parts, strict=True)),
        _any_day=any_day,
        _real_time=parts[0].startswith("*") or parts[1].startswith("*"),
    )
    try:
        cron.next(datetime(2026, 1, 1, tzinfo=UTC))
    except CroniterBadDateError:
        raise ValueError("its date never comes") from None
    return cron


def _numbers(field: _Field, part: str) -> str:
    """The field as croniter reads it without dialects of its own: a star, or the list of its values."""
    if part == "*":
        return part
    values = field.parse(part)
    if field.last == 7:
        values = frozenset(value % 7 for value in values)
    return ",".join(str(value) for value in sorted(values))


def _fixed(walls: Iterator[datetime], zone: ZoneInfo) -> Iterator[datetime]:
    for wall in walls:
        first = _instant(wall, zone, fold=0)
        yield _gap_end(wall, zone) if first is None else first


def _real(walls: Iterator[datetime], zone: ZoneInfo) -> Iterator[datetime]:
    """Every instant at which the clock shows one of ``walls``, both times where it shows it twice.

    A wall time's second instant waits until no later wall time can have an earlier first one.
    """
    waiting: list[datetime] = []
    for wall in walls:
        first, second = _instant(wall, zone, fold=0), _instant(wall, zone, fold=1)
        if first is None:
            continue
        while waiting and waiting[0] < first:
            yield heapq.heappop(waiting)
        if second is not None and second != first:
            heapq.heappush(waiting, second)
        yield first


def _instant(wall: datetime, zone: ZoneInfo, *, fold: int) -> datetime | None:
    """The UTC time at which the zone's clock shows ``wall``; None if it never does."""
    instant = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    return instant if instant.astimezone(zone).replace(tzinfo=None) == wall else None


def _gap_end(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant at which the clock jumps over ``wall``."""
    after = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    old = before.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == old:
            low = middle
        else:
            high = middle
    return before + timedelta(seconds=high)


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - {"Factory", "localtime"}


def _refused(reason: str, field: str, text: str) -> InvalidArgument:
    return InvalidArgument(reason, f"{field}: {text}.", field_violations=[FieldViolation(field, text)])
