"""Cron in zones: the golden table, cronsim as an independent oracle, and what is refused."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from libs.errors import InvalidArgument
from services.scheduler import cron

NEW_YORK, LONDON, SAO_PAULO = "America/New_York", "Europe/London", "America/Sao_Paulo"
ZONES = (
    "UTC",
    "Europe/Berlin",
    LONDON,
    "Europe/Dublin",
    NEW_YORK,
    "America/Los_Angeles",
    "America/St_Johns",
    SAO_PAULO,
    "America/Santiago",
    "America/Havana",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Tokyo",
    "Australia/Lord_Howe",
    "Australia/Adelaide",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Antarctica/Troll",
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def within(expression: str, zone: str, start: str, end: str) -> list[str]:
    """The instants of one stretch of time, as hour and minute."""
    found = itertools.takewhile(lambda at: at < utc(end), cron.parse(expression, zone).after(utc(start)))
    return [f"{at:%H:%M}" for at in found]


@pytest.mark.parametrize(
    ("expression", "zone", "start", "end", "expected"),
    [
        ("30 2 * * *", NEW_YORK, "2026-03-08T05:00", "2026-03-09T05:00", ["07:00"]),
        ("30 1 * * *", NEW_YORK, "2026-11-01T04:00", "2026-11-02T05:00", ["05:30"]),
        ("0 1 * * *", NEW_YORK, "2026-11-01T04:00", "2026-11-02T05:00", ["05:00"]),
        ("0 * * * *", NEW_YORK, "2026-11-01T03:30", "2026-11-01T08:30", ["04:00", "05:00", "06:00", "07:00", "08:00"]),
        ("0 */2 * * *", NEW_YORK, "2026-03-08T05:00", "2026-03-08T10:30", ["08:00", "10:00"]),
        ("30 1 * * *", LONDON, "2026-10-24T23:00", "2026-10-25T23:30", ["00:30"]),
        ("30 1 * * *", LONDON, "2026-03-29T00:00", "2026-03-29T23:00", ["01:00"]),
        ("0 0 * * *", SAO_PAULO, "2018-11-03T12:00", "2018-11-04T23:00", ["03:00"]),
    ],
)
def test_golden_table(expression: str, zone: str, start: str, end: str, expected: list[str]) -> None:
    assert within(expression, zone, start, end) == expected


def test_half_an_hour_of_change() -> None:
    # Lord Howe goes from 02:00 to 02:30: its 00:00, 03:00 and 06:00 are two and a half and three hours apart.
    found = within("0 */3 * * *", "Australia/Lord_Howe", "2026-10-03T13:00", "2026-10-03T20:00")
    assert found == ["13:30", "16:00", "19:00"]


def test_two_day_fields_are_either_or() -> None:
    assert cron.parse("0 0 1,15 * 1", "UTC").upcoming(utc("2026-01-01T00:00"), 2) == [
        utc("2026-01-05T00:00"),
        utc("2026-01-12T00:00"),
    ]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("* * * * * *", "6 fields"),
        ("0 0 * *", "4 fields"),
        ("", "0 fields"),
        ("0 0 31 2 *", "never"),
        ("0 0 30,31 FEB *", "never"),
        ("0 0 31 4,6,9,11 */2", "never"),
        ("*/30 * * * *", "more than once an hour"),
        ("* * * * *", "more than once an hour"),
        ("0,30 8 * * *", "more than once an hour"),
        ("0 25 * * *", "hour '25'"),
        ("60 0 * * *", "minute '60'"),
        ("0 0 0 * *", "day of month '0'"),
        ("0 0 * 13 *", "month '13'"),
        ("0 0 * * 8", "day of week '8'"),
        ("0 0 * * MON#1", "day of week"),
        ("0 0 L * *", "day of month"),
        ("0 0 ? * *", "day of month"),
        ("R 0 * * *", "minute"),
        ("H 0 * * *", "minute"),
        ("0 5-2 * * *", "ends before it begins"),
        ("0 5/6 * * *", "step of a single value"),
        ("0 */0 * * *", "step"),
        ("0 */24 * * *", "step"),
        ("0 *-5 * * *", "begins with *"),
        ("0 1,,2 * * *", "hour ''"),
        ("0 -1 * * *", "hour '-1'"),
        ("0 ١ * * *", "hour"),
        ("@reboot", "@hourly"),
        ("@every 5m", "@hourly"),
        ("0 0 * * * 2027", "6 fields"),
    ],
)
def test_refused_with_the_reason(expression: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        cron.parse(expression, "UTC")
    assert caught.value.reason == "CRON_INVALID"
    assert says in caught.value.message
    assert caught.value.field_violations[0].field == "cron"


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "utc", "../etc/passwd", "/etc/localtime", "EST6EDT\n", "Factory"])
def test_unknown_zones_are_refused(zone: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        cron.parse("@daily", zone)
    assert caught.value.reason == "TIMEZONE_UNKNOWN"


@pytest.mark.parametrize(
    ("alias", "same"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 JAN *"),
        ("@Daily", "0 0 * * *"),
    ],
)
def test_aliases(alias: str, same: str) -> None:
    start = utc("2026-02-03T04:05")
    assert cron.parse(alias, NEW_YORK).upcoming(start, 5) == cron.parse(same, NEW_YORK).upcoming(start, 5)


@pytest.mark.parametrize("weekdays", ["0-6", "0-7", "SUN-SAT"])
def test_all_weekdays_written_out_are_every_day(weekdays: str) -> None:
    assert within(f"0 0 1 * {weekdays}", "UTC", "2026-03-09T12:00", "2026-03-12T12:00") == ["00:00"] * 3


def expressions(seed: int, count: int) -> list[str]:
    """Accepted expressions of every shape: numbers, names, lists, ranges, steps, both day fields."""
    rng = random.Random(seed)
    days, months = (
        ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    )

    def field(first: int, last: int, words: list[str] | None = None) -> str:
        low, high = sorted(rng.sample(range(first, last + 1), 2))
        kinds = ["*", f"{low}", f"{low},{high}", f"{low}-{high}", f"*/{rng.randint(1, last)}", f"{low}-{high}/2"]
        return rng.choice([*kinds, rng.choice(words)] if words else kinds)

    made: list[str] = []
    while len(made) < count:
        # Hours of the night are where clocks change.
        hour = rng.choice([field(0, 23), field(0, 4), str(rng.randint(0, 3))])
        text = f"{rng.choice([0, 15, 30, 59])} {hour} {field(1, 31)} {field(1, 12, months)} {field(0, 7, days)}"
        try:
            cron.parse(text, "UTC")
        except InvalidArgument as refused:
            assert "never" in refused.message
            continue
        made.append(text)
    return made


@pytest.mark.parametrize("zone", ZONES)
def test_agrees_with_cronsim(zone: str) -> None:
    rng = random.Random(zone)
    for expression in ["0 * * * *", "30 2 * * *", "0 */3 * * *", "15 0-3 * * *", *expressions(1, 24)]:
        if zone == "Australia/Lord_Howe" and expression.split()[1].startswith("*/"):
            # cronsim walks in whole hours and misses 03:00 after a change of half an hour.
            continue
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(500_000))
        oracle = (at.astimezone(UTC) for at in CronSim(expression, start.astimezone(ZoneInfo(zone))))
        # cronsim gives an instant twice where a gap moves one wall time onto another.
        expected = [at for at, _ in itertools.groupby(itertools.islice(oracle, 120)) if at > start]
        found = cron.parse(expression, zone).upcoming(start, len(expected))
        assert found == expected, (expression, zone, start)


@pytest.mark.parametrize("zone", ZONES)
def test_every_instant_is_the_next_of_the_one_before(zone: str) -> None:
    # Walking on from an instant, as the trigger does, gives what one walk gives: nothing is lost or doubled.
    for expression in ["0 * * * *", "30 2 * * *", *expressions(len(zone), 4)]:
        schedule = cron.parse(expression, zone)
        start = datetime(2026, 3, 7, 12, tzinfo=UTC)
        walked = schedule.upcoming(start, 30)
        stepped = [start]
        for _ in range(30):
            stepped.append(schedule.next(stepped[-1]))
        assert stepped[1:] == walked
