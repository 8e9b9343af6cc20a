"""Thousands of generated expressions (10,000 in ``make properties``) in 20 zones: instants strictly increase."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from services.scheduler import cron
from tests.support.examples import examples
from tests.unit.scheduler.test_cron import ZONES, expressions

DAY = timedelta(days=1)


def first_change(zone: ZoneInfo) -> datetime:
    """The day of 2026 on which the zone's clock changes first; 15 June where it never does."""
    days = (datetime(2026, 1, 1, tzinfo=UTC) + n * DAY for n in range(365))
    changes = (day for day in days if day.astimezone(zone).utcoffset() != (day + DAY).astimezone(zone).utcoffset())
    return next(changes, datetime(2026, 6, 15, tzinfo=UTC)).replace(tzinfo=None)


def test_expressions_in_twenty_zones_strictly_increase() -> None:
    zones = [ZoneInfo(name) for name in ZONES]
    assert len(zones) == 20
    # Wall times do not depend on the zone: each expression is walked once, over one zone's change, and mapped in all.
    changes = itertools.cycle([first_change(zone) for zone in zones])
    for expression, day in zip(expressions(7, examples(1_000, 10_000)), changes, strict=False):
        made = cron.parse(expression, "UTC")
        mapped = cron._real if made._real_time else cron._fixed
        walls = list(itertools.islice(made._walls(day), 4))
        for zone in zones:
            found = list(mapped(iter(walls), zone))
            # What is fixed may fall on an instant twice, at the end of a gap; ``after`` leaves the second out.
            assert found == (sorted(set(found)) if made._real_time else sorted(found)), (expression, zone)
