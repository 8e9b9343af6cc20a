"""Any text as a schedule: it is refused by its word, or it fires, ever later and soon enough to be found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import InvalidArgument
from services.scheduler import cron
from tests.support.examples import examples

FIELD = st.lists(
    st.sampled_from(
        [*map(str, range(0, 62)), "*", "/", "-", ",", "L", "W", "#", "?", "MON", "jan", "SUN", "FEB", "99999999999"]
    ),
    min_size=1,
    max_size=4,
).map("".join)
NEARLY = st.lists(FIELD, min_size=4, max_size=6).map(" ".join)
ANY = st.one_of(
    NEARLY, st.text(max_size=60), st.sampled_from(["@daily", "@DAILY", "@reboot", "@", "0 0 31 2 *", "0 0 29 2 *"])
)
ZONE = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia", "Mars/Olympus", "../x"]
)
START = st.datetimes(datetime(2024, 1, 1), datetime(2032, 1, 1)).map(lambda when: when.replace(tzinfo=UTC))


@settings(max_examples=examples(100, 3000), deadline=None)
@given(ANY, ZONE, START)
def test_any_text_is_refused_by_its_word_or_fires_ever_later(text: str, zone: str, start: datetime) -> None:
    try:
        schedule = cron.parse(text, zone)
    except InvalidArgument as refusal:
        assert refusal.reason in ("CRON_INVALID", "TIMEZONE_UNKNOWN")
        return
    times = [start]
    for _ in range(4):
        times.append(schedule.next(times[-1]))
    assert all(earlier < later for earlier, later in pairwise(times))
    # The rarest date that comes is the 29th of February, on one weekday.
    assert times[1] - start < timedelta(days=366 * 41)
    assert all(when.tzinfo is not None for when in times)
