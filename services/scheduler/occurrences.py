"""What a due schedule becomes: which occurrences run, which are skipped and why, and when it is due again; pure.

Called by the trigger, and by an edit that must not swallow what is due. The invariant: the next time follows from the
scheduled times, never from the clock, so a trigger that comes late, twice or not at all fires nothing twice and loses
nothing silently.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from libs.errors import InvalidArgument
from services.scheduler import cron
from services.scheduler.domain import (
    Catchup,
    Due,
    Firing,
    Item,
    Overlap,
    Policy,
    Run,
    Schedule,
    State,
    Trigger,
    jitter,
    queue_item,
    rank,
    run_id_of,
)


def fire(due: Due, now: datetime, policy: Policy, *, skip_as: str | None = None) -> Firing:
    """Decides a schedule that is due at ``now``; with ``skip_as`` all of it is skipped for that reason.

    A schedule whose expression or zone is not accepted any more is paused, visibly.
    """
    schedule = due.schedule
    if schedule.next_run_time is None or schedule.next_run_time > now:
        raise ValueError("not due")
    try:
        expression = cron.parse(schedule.cron, schedule.timezone)
    except InvalidArgument as refused:
        paused = replace(schedule, is_active=False, next_run_time=None, paused_at=now, updated_at=now)
        times = [schedule.next_run_time]
        return Firing(replace(paused, last_scheduled_for=times[-1]), _skipped(schedule, times, refused.reason, now), ())
    times = _times(expression, schedule.next_run_time, now, policy)
    runs: list[Run] = []
    items: list[Item] = []
    run, missed = _choose(schedule, times, now, policy)
    runs += _skipped(schedule, missed, skip_as or "MISSED", now, policy.missed_rows)
    reason = skip_as or _overlap(due)
    if reason:
        runs += _skipped(schedule, run, reason, now, policy.missed_rows)
    else:
        for scheduled_for in run:
            made, item = occurrence(schedule, scheduled_for, now, policy)
            runs.append(made)
            items.append(item)
    left = replace(schedule, next_run_time=expression.next(times[-1]), last_scheduled_for=times[-1])
    return Firing(left, tuple(runs), tuple(items))


def occurrence(schedule: Schedule, scheduled_for: datetime, now: datetime, policy: Policy) -> tuple[Run, Item]:
    """The run of one occurrence and its queue row."""
    run = _run(schedule, scheduled_for, now, State.QUEUED)
    not_before = scheduled_for + jitter(schedule.config_id, schedule.jitter_seconds)
    run = replace(run, not_before=not_before)
    return run, waiting(run, schedule, not_before=not_before, since=scheduled_for, now=now, policy=policy)


def waiting(
    run: Run, schedule: Schedule, *, not_before: datetime, since: datetime, now: datetime, policy: Policy
) -> Item:
    """The queue row of a schedule's run; unless overlaps are allowed, its runs go one after another."""
    return queue_item(
        run,
        parameters=schedule.parameters,
        serial_id=run.run_id if schedule.overlap_policy is Overlap.ALLOW else schedule.config_id,
        not_before=not_before,
        rank_at=rank(since, run.priority, policy),
        expires_at=now + policy.max_age,
    )


def window(schedule: Schedule, scheduled_for: datetime) -> tuple[date, date]:
    """First and last date a run covers: days before its occurrence in the schedule's zone, never a UTC day ahead."""
    local = scheduled_for.astimezone(ZoneInfo(schedule.timezone)).date()
    last = min(local - timedelta(days=schedule.date_offset_days), scheduled_for.astimezone(UTC).date())
    return last - timedelta(days=schedule.refresh_window_days), last


def upcoming(schedule: Schedule, count: int) -> list[datetime]:
    """The schedule's next times, its ``next_run_time`` first; none while it is paused.

    Of a schedule whose expression or zone is not accepted any more only that one is known: it will be paused then.
    """
    if schedule.next_run_time is None:
        return []
    try:
        expression = cron.parse(schedule.cron, schedule.timezone)
    except InvalidArgument:
        return [schedule.next_run_time]
    return [schedule.next_run_time, *expression.upcoming(schedule.next_run_time, count - 1)]


def next_time(schedule: Schedule, now: datetime) -> datetime:
    """When a schedule that was changed or resumed at ``now`` is due: later than now, and than anything it fired."""
    expression = cron.parse(schedule.cron, schedule.timezone)
    return expression.next(max(now, schedule.last_scheduled_for or now))


def _times(expression: cron.Cron, first: datetime, now: datetime, policy: Policy) -> list[datetime]:
    """The due times from ``first`` to ``now``; of a very long absence the oldest and the newest."""
    times = _until([first], expression, now, policy.missed_walk)
    if len(times) <= policy.missed_walk:
        return times
    period = (times[-1] - times[0]) / (len(times) - 1)
    newest = _until(
        [], expression, now, 2 * policy.missed_walk, after=max(times[-1], now - policy.missed_walk * period)
    )
    while newest and (later := expression.next(newest[-1])) <= now:
        newest.append(later)
    return times + newest


def _until(
    times: list[datetime], expression: cron.Cron, now: datetime, count: int, after: datetime | None = None
) -> list[datetime]:
    walk = itertools.islice(expression.after(after or times[-1]), count)
    return times + list(itertools.takewhile(lambda time: time <= now, walk))


def _choose(
    schedule: Schedule, times: Sequence[datetime], now: datetime, policy: Policy
) -> tuple[Sequence[datetime], Sequence[datetime]]:
    """The times that run and those that were missed."""
    if now - times[0] <= policy.grace:
        return times, []
    match schedule.catchup_policy:
        case Catchup.ALL:
            return times[-schedule.catchup_limit :], times[: -schedule.catchup_limit]
        case Catchup.LAST:
            return times[-1:], times[:-1]
        case Catchup.NONE:
            return [], times


def _overlap(due: Due) -> str | None:
    match due.schedule.overlap_policy:
        case Overlap.SKIP if due.waiting + due.claimed:
            return "OVERLAP"
        case Overlap.QUEUE_ONE if due.waiting:
            return "OVERLAP"
    return None


def _skipped(
    schedule: Schedule, times: Sequence[datetime], reason: str, now: datetime, rows: int = 1
) -> tuple[Run, ...]:
    """A SKIPPED row for each of the newest times and one for all before them."""
    older, newest = times[:-rows], times[-rows:]
    made = [_run(schedule, time, now, State.SKIPPED, reason) for time in newest]
    if older:
        shared = _run(schedule, older[-1], now, State.SKIPPED, reason)
        made.insert(0, replace(shared, occurrence_count=len(older)))
    return tuple(made)


def _run(schedule: Schedule, scheduled_for: datetime, now: datetime, state: State, reason: str | None = None) -> Run:
    try:
        first, last = window(schedule, scheduled_for)
    except (KeyError, ValueError):
        # Its zone is gone; the row only says so.
        first = last = scheduled_for.date()
    return Run(
        run_id=run_id_of(schedule.config_id, scheduled_for),
        config_id=schedule.config_id,
        tenant_id=schedule.tenant_id,
        trigger=Trigger.SCHEDULED,
        provider=schedule.provider,
        domain=schedule.domain,
        template=schedule.template,
        scheduled_for=scheduled_for,
        start_date=first,
        end_date=last,
        state=state,
        reason=reason,
        max_retries=schedule.max_retries,
        priority=schedule.priority,
        created_at=now,
        updated_at=now,
        ended_at=now if state.ended else None,
    )
