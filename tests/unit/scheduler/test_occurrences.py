"""What a due schedule becomes: catch-up, overlap, dates, jitter; all pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from services.scheduler import occurrences
from services.scheduler.domain import (
    Catchup,
    Due,
    Firing,
    Overlap,
    Policy,
    State,
    jitter,
    rank,
    run_id_of,
)
from tests.support.scheduler_suite import HOUR, NOW, schedule

POLICY = Policy()
NOON = NOW.replace(minute=0, second=0, microsecond=0)


def fire(*, late: timedelta = timedelta(0), waiting: int = 0, claimed: int = 0, **values: Any) -> Firing:
    """An hourly schedule that was due at noon, ``late`` after noon."""
    given = {"next_run_time": NOON, **values}
    return occurrences.fire(Due(schedule(**given), waiting, claimed), NOON + late, POLICY)


def test_on_time_one_run_and_the_next_time_from_the_scheduled_one() -> None:
    firing = fire(late=timedelta(minutes=59))
    [run], [item] = firing.runs, firing.items
    assert run.scheduled_for == item.scheduled_for == NOON
    assert run.run_id == item.run_id == run_id_of(firing.schedule.config_id, NOON)
    assert firing.schedule.next_run_time == NOON + HOUR
    assert firing.schedule.last_scheduled_for == NOON
    assert run.state is State.QUEUED


def test_whoever_fires_it_it_is_the_same_run() -> None:
    due = Due(schedule(next_run_time=NOON))
    first, second = (occurrences.fire(due, NOON + n * timedelta(minutes=5), POLICY) for n in (1, 2))
    assert [run.run_id for run in first.runs] == [run.run_id for run in second.runs]


@pytest.mark.parametrize(
    ("catchup", "limit", "queued", "missed"),
    [
        (Catchup.LAST, 24, 1, 9),
        (Catchup.NONE, 24, 0, 10),
        (Catchup.ALL, 24, 10, 0),
        (Catchup.ALL, 4, 4, 6),
        (Catchup.ALL, 1, 1, 9),
    ],
)
def test_catching_up(catchup: Catchup, limit: int, queued: int, missed: int) -> None:
    firing = fire(late=9 * HOUR, catchup_policy=catchup, catchup_limit=limit, overlap_policy=Overlap.ALLOW)
    assert [item.scheduled_for for item in firing.items] == [NOON + n * HOUR for n in range(10 - queued, 10)]
    skipped = [run for run in firing.runs if run.state is State.SKIPPED]
    assert [run.scheduled_for for run in skipped] == [NOON + n * HOUR for n in range(missed)]
    assert {run.reason for run in skipped} <= {"MISSED"}
    assert firing.schedule.next_run_time == NOON + 10 * HOUR


def test_a_little_late_is_not_missed() -> None:
    assert len(fire(late=timedelta(minutes=75), catchup_policy=Catchup.NONE, cron="0 0 * * *").items) == 1
    assert len(fire(late=timedelta(minutes=76), catchup_policy=Catchup.NONE, cron="0 0 * * *").items) == 0


def test_of_a_long_absence_the_older_occurrences_share_one_row() -> None:
    firing = fire(late=timedelta(days=7))
    skipped = [run for run in firing.runs if run.state is State.SKIPPED]
    assert len(skipped) == 1 + POLICY.missed_rows
    assert sum(run.occurrence_count for run in skipped) == 7 * 24
    assert len({run.run_id for run in firing.runs}) == len(firing.runs)
    assert firing.items[0].scheduled_for == NOON + timedelta(days=7)


@pytest.mark.parametrize("cron", ["0 * * * *", "0 0 * * *", "30 4 1 * *", "0 * 1 1 *"])
def test_years_of_absence_cost_no_more_than_weeks(cron: str) -> None:
    now = NOON + timedelta(days=5 * 365)
    due = schedule(cron=cron, catchup_policy=Catchup.ALL, catchup_limit=5, next_run_time=NOON)
    firing = occurrences.fire(Due(due), now, POLICY)
    assert len(firing.items) == 5
    assert len(firing.runs) <= 5 + 1 + POLICY.missed_rows
    times = [item.scheduled_for for item in firing.items]
    assert times == sorted(times) and times[-1] <= now < firing.schedule.next_run_time
    # Nothing between the newest run and the next time was left out.
    assert occurrences.next_time(replace(due, last_scheduled_for=times[-1]), times[-1]) == firing.schedule.next_run_time


@pytest.mark.parametrize(
    ("overlap", "waiting", "claimed", "runs"),
    [
        (Overlap.SKIP, 0, 0, True),
        (Overlap.SKIP, 1, 0, False),
        (Overlap.SKIP, 0, 1, False),
        (Overlap.QUEUE_ONE, 0, 1, True),
        (Overlap.QUEUE_ONE, 1, 1, False),
        (Overlap.ALLOW, 5, 5, True),
    ],
)
def test_overlapping(overlap: Overlap, waiting: int, claimed: int, runs: bool) -> None:
    firing = fire(overlap_policy=overlap, waiting=waiting, claimed=claimed)
    [run] = firing.runs
    assert bool(firing.items) is runs
    assert (run.state, run.reason) == ((State.QUEUED, None) if runs else (State.SKIPPED, "OVERLAP"))
    assert firing.schedule.next_run_time == NOON + HOUR


def test_runs_of_one_schedule_follow_each_other_unless_overlaps_are_allowed() -> None:
    one = fire(late=5 * HOUR, catchup_policy=Catchup.ALL)
    assert {item.serial_id for item in one.items} == {one.schedule.config_id}
    many = fire(late=5 * HOUR, catchup_policy=Catchup.ALL, overlap_policy=Overlap.ALLOW)
    assert len({item.serial_id for item in many.items}) == 6


@pytest.mark.parametrize(
    ("zone", "scheduled_for", "offset", "refresh", "first", "last"),
    [
        ("UTC", "2025-11-17T00:30", 1, 0, "2025-11-16", "2025-11-16"),
        ("UTC", "2025-11-17T00:30", 0, 0, "2025-11-17", "2025-11-17"),
        ("UTC", "2025-11-17T00:30", 2, 3, "2025-11-12", "2025-11-15"),
        # In New York it is still the 16th.
        ("America/New_York", "2025-11-17T03:00", 1, 0, "2025-11-15", "2025-11-15"),
        # In Tokyo it is the 18th; yesterday there is today in UTC, and today there has not come yet.
        ("Asia/Tokyo", "2025-11-17T21:00", 1, 0, "2025-11-17", "2025-11-17"),
        ("Asia/Tokyo", "2025-11-17T21:00", 0, 0, "2025-11-17", "2025-11-17"),
    ],
)
def test_the_dates_a_run_covers(
    zone: str, scheduled_for: str, offset: int, refresh: int, first: str, last: str
) -> None:
    made = schedule(timezone=zone, date_offset_days=offset, refresh_window_days=refresh)
    at = datetime.fromisoformat(scheduled_for).replace(tzinfo=UTC)
    assert occurrences.window(made, at) == (date.fromisoformat(first), date.fromisoformat(last))


def test_jitter_spreads_starts_the_same_way_each_time() -> None:
    made = [schedule(jitter_seconds=600) for _ in range(50)]
    shifts = {jitter(each.config_id, 600) for each in made}
    assert len(shifts) > 40 and all(timedelta(0) <= shift <= timedelta(seconds=600) for shift in shifts)
    firing = occurrences.fire(Due(made[0]), NOW, POLICY)
    assert firing.items[0].not_before == firing.items[0].scheduled_for + jitter(made[0].config_id, 600)
    assert firing.items[0].scheduled_for == made[0].next_run_time
    assert jitter("any", 0) == timedelta(0)


def test_a_zone_that_is_gone_pauses_its_schedule_visibly() -> None:
    firing = fire(timezone="Mars/Olympus")
    [run] = firing.runs
    assert (run.state, run.reason) == (State.SKIPPED, "TIMEZONE_UNKNOWN")
    assert not firing.schedule.is_active and firing.schedule.next_run_time is None and not firing.items


def test_pausing_skips_what_is_due_for_that_reason() -> None:
    due = Due(schedule(next_run_time=NOON))
    firing = occurrences.fire(due, NOON, POLICY, skip_as="PAUSED")
    assert [(run.state, run.reason) for run in firing.runs] == [(State.SKIPPED, "PAUSED")]
    assert not firing.items


def test_an_edit_looks_behind_what_was_fired_even_if_the_clock_is_slow() -> None:
    made = schedule(last_scheduled_for=NOON + HOUR)
    assert occurrences.next_time(made, NOON) == NOON + 2 * HOUR
    assert occurrences.next_time(replace(made, last_scheduled_for=None), NOON) == NOON + HOUR


def test_upcoming_begins_with_what_is_due() -> None:
    made = schedule(next_run_time=NOON, cron="0 0,12 * * *")
    assert occurrences.upcoming(made, 3) == [NOON, NOON + 12 * HOUR, NOON + 24 * HOUR]
    assert occurrences.upcoming(replace(made, next_run_time=None), 3) == []


def test_a_zone_that_is_gone_hides_no_schedule() -> None:
    assert occurrences.upcoming(schedule(next_run_time=NOON, timezone="Mars/Olympus"), 10) == [NOON]


def test_age_makes_up_for_priority() -> None:
    old_and_low, new_and_high = rank(NOON, 1, POLICY), rank(NOON, 10, POLICY)
    assert new_and_high < old_and_low
    assert rank(NOON + 10 * POLICY.ageing, 10, POLICY) > old_and_low
