"""How a queue row may change: every answer of the executor on every kind of row; all pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs import errors
from services.scheduler.domain import (
    Attempt,
    AttemptStatus,
    Item,
    Policy,
    State,
    Stop,
    cancel,
    defer,
    expire,
    judge,
    refuse,
    requeue,
    retire,
    unknown_outcome,
)
from tests.support.scheduler_suite import HOUR, NOW, queued

POLICY = Policy()


def claimed(**values: Any) -> Item:
    given = {"state": State.CLAIMED, "lease_id": "l", "lease_until": NOW + timedelta(seconds=60), **values}
    return queued(**given)[1]


def started(**values: Any) -> Item:
    return claimed(lease_id=None, lease_until=None, **{"started_at": NOW - HOUR, **values})


def seen(item: Item, status: str, **values: Any) -> Attempt:
    return Attempt(item.run_id, item.attempt, AttemptStatus(status), **values)


def judged(item: Item, attempt: Attempt | None, chance: float = 0.5) -> Item:
    return judge(item, attempt, NOW, chance, POLICY)


@pytest.mark.parametrize("item", [claimed(), started(), started(retry_count=0, error="The attempt before failed.")])
def test_success_ends_the_run(item: Item) -> None:
    after = judged(item, seen(item, "COMPLETED", outcome="NO_DATA"))
    assert (after.state, after.reason, after.retry_count) == (State.COMPLETED, "NO_DATA", 0)
    assert after.started_at is not None and after.lease_id is None and after.error is None


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "CANCELLING"])
def test_an_attempt_that_runs_has_started(status: str) -> None:
    item = claimed(refusals=3)
    after = judged(item, seen(item, status))
    assert (after.state, after.started_at, after.lease_id, after.refusals) == (State.CLAIMED, NOW, None, 0)
    assert judged(after, seen(item, status)) == after


def test_a_failed_attempt_is_tried_again_with_full_jitter() -> None:
    item = started(retry_count=2, max_retries=3, attempt=5)
    after = judged(item, seen(item, "FAILED", reason="RATE_LIMITED", message="m", retryable=True), chance=0.25)
    assert (after.state, after.reason, after.error) == (State.QUEUED, "RATE_LIMITED", "m")
    assert (after.retry_count, after.attempt, after.started_at) == (3, 6, None)
    assert after.not_before == NOW + 0.25 * POLICY.retry_base * 4
    longest = judged(started(retry_count=9, max_retries=10), seen(item, "FAILED", retryable=True), chance=1.0)
    assert longest.not_before == NOW + POLICY.retry_cap


@pytest.mark.parametrize(("retries", "retryable"), [(3, True), (0, False)])
def test_what_cannot_be_tried_again_is_a_dead_letter_with_its_reason(retries: int, retryable: bool) -> None:
    item = started(retry_count=retries, max_retries=3)
    after = judged(item, seen(item, "FAILED", reason="BROKEN", message="text", retryable=retryable))
    assert (after.state, after.reason, after.error) == (State.DEAD_LETTER, "BROKEN", "text")
    assert after.retry_count == retries


@pytest.mark.parametrize("stop", Stop)
def test_a_run_that_shall_stop_is_not_tried_again(stop: Stop) -> None:
    item = started(stop=stop)
    assert judged(item, seen(item, "FAILED", retryable=True)).state is State.CANCELLED
    assert judged(item, seen(item, "COMPLETED")).state is State.COMPLETED
    assert judged(item, seen(item, "RUNNING")).state is State.CLAIMED


def test_a_cancelled_attempt_cancels_its_run() -> None:
    item = started()
    assert judged(item, seen(item, "CANCELLED")).state is State.CANCELLED


def test_a_claim_that_started_nothing_is_given_back_when_its_lease_ends() -> None:
    item = claimed()
    assert judged(item, None) == item
    after = judged(replace(item, lease_until=NOW), None)
    assert (after.state, after.attempt, after.retry_count, after.lease_id) == (State.QUEUED, 1, 0, None)
    assert judged(replace(item, lease_until=NOW, stop=Stop.NOW), None).state is State.CANCELLED


def test_an_attempt_that_the_executor_lost_is_tried_under_the_next_number() -> None:
    item = started(started_at=NOW - timedelta(seconds=119))
    assert judged(item, None) == item
    after = judged(replace(item, started_at=NOW - timedelta(minutes=2)), None)
    assert (after.state, after.attempt, after.retry_count) == (State.QUEUED, 2, 0)


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLAIMED])
def test_only_claimed_rows_are_judged(state: State) -> None:
    item = replace(started(), state=state)
    assert judged(item, seen(item, "COMPLETED")) == item


def exhausted(*quota_ids: str, after: timedelta | None = None) -> errors.ResourceExhausted:
    violations = [errors.QuotaViolation("t", quota_id, 1, "") for quota_id in quota_ids]
    return errors.ResourceExhausted("QUOTA", "No.", retry_after=after, quota_violations=violations)


def refused(item: Item, error: errors.Error, chance: float = 0.5) -> Item:
    return refuse(item, error, NOW, chance, POLICY)


@pytest.mark.parametrize("quotas", [("DAILY_RUNS",), ("MONTHLY_RUNS",), ("CONCURRENT_RUNS", "DAILY_RUNS")])
def test_out_of_quota_waits_for_the_next_window(quotas: tuple[str, ...]) -> None:
    after = refused(claimed(), exhausted(*quotas, after=5 * HOUR))
    assert (after.state, after.not_before, after.retry_count) == (State.DEFERRED, NOW + 5 * HOUR, 0)


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("STORE_BUSY", ""),
        errors.Internal("INTERNAL", ""),
        errors.FailedPrecondition("SUBSCRIPTION_INACTIVE", ""),
        errors.FailedPrecondition("ATTEMPT_RUNNING", ""),
    ],
)
def test_a_refusal_gives_the_row_back_and_costs_no_retry(error: errors.Error) -> None:
    after = refused(claimed(refusals=2), error)
    assert (after.state, after.reason, after.retry_count, after.attempt) == (State.QUEUED, error.reason, 0, 1)
    assert (after.refusals, after.lease_id) == (3, None)
    assert NOW < after.not_before <= NOW + POLICY.refusal_cap
    assert refused(claimed(refusals=10**9), error, 1.0).not_before == NOW + POLICY.refusal_cap


@pytest.mark.parametrize("error", [exhausted("CONCURRENT_RUNS"), errors.Unavailable("EXECUTOR_FULL", "")])
def test_no_room_gives_the_row_back_for_the_next_moment(error: errors.Error) -> None:
    item = claimed(refusals=2)
    after = refused(item, error)
    assert (after.state, after.refusals, after.not_before) == (State.QUEUED, 2, item.not_before)


def test_a_number_that_somebody_holds_is_passed_over() -> None:
    after = refused(claimed(attempt=2), errors.Aborted("ATTEMPT_REFUNDED", ""))
    assert (after.state, after.attempt, after.retry_count) == (State.QUEUED, 3, 0)


@pytest.mark.parametrize(
    "error",
    [
        errors.FailedPrecondition("CREDENTIAL_INVALID", "Store another."),
        errors.NotFound("TEMPLATE_NOT_FOUND", "No such template."),
        errors.InvalidArgument("PARAMETERS_INVALID", "No."),
    ],
)
def test_what_no_later_try_can_help_is_a_dead_letter(error: errors.Error) -> None:
    after = refused(claimed(), error)
    assert (after.state, after.reason, after.error) == (State.DEAD_LETTER, error.reason, error.message)


def test_data_that_are_in_are_never_loaded_again() -> None:
    assert refused(claimed(), errors.FailedPrecondition("RUN_COMPLETED", "")).state is State.COMPLETED


@pytest.mark.parametrize(
    "error",
    [
        errors.Ambiguous("ANYTHING", ""),
        errors.Unavailable("DEADLINE_EXCEEDED", ""),
        errors.Unavailable("DEPENDENCY_UNAVAILABLE", ""),
    ],
)
def test_an_unknown_outcome_leaves_the_row_claimed(error: errors.Error) -> None:
    assert unknown_outcome(error)
    item = claimed()
    assert refused(item, error) == item


def test_a_refused_start_of_a_run_that_shall_stop_ends_it() -> None:
    assert refused(claimed(stop=Stop.NOW), errors.Unavailable("EXECUTOR_FULL", "")).state is State.CANCELLED


def test_cancelling_in_every_state() -> None:
    for state in (State.QUEUED, State.DEFERRED, State.DEAD_LETTER):
        assert cancel(queued(state=state)[1]).state is State.CANCELLED
    for item in (claimed(), started()):
        after = cancel(item)
        assert (after.state, after.stop) == (State.CLAIMED, Stop.NOW)
        assert cancel(after) == after


def test_a_deleted_schedule_lets_its_running_run_end() -> None:
    assert retire(queued()[1]).state is State.CANCELLED
    assert retire(started()).stop is Stop.AFTER
    assert retire(started(stop=Stop.NOW)).stop is Stop.NOW


def test_a_dead_letter_is_queued_again_with_its_retries_given_back() -> None:
    item = replace(started(retry_count=3, attempt=4, refusals=1), state=State.DEAD_LETTER, reason="BROKEN", error="no")
    after = requeue(item, NOW, POLICY)
    assert (after.state, after.retry_count, after.attempt, after.started_at) == (State.QUEUED, 0, 5, None)
    assert after.not_before == NOW and after.expires_at == NOW + POLICY.max_age and after.error is None
    never_started = replace(claimed(), state=State.DEAD_LETTER)
    assert requeue(never_started, NOW, POLICY).attempt == 1


def test_too_old_and_deferred() -> None:
    assert (expire(queued()[1]).state, expire(queued()[1]).reason) == (State.SKIPPED, "TOO_OLD")
    assert defer(claimed(), NOW + HOUR, "DAILY_RUNS").state is State.DEFERRED


answers = st.sampled_from([None, *AttemptStatus])


@given(
    answers,
    st.sampled_from([None, *Stop]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 4),
    st.floats(0, 1),
    st.sampled_from([NOW - HOUR, NOW + HOUR]),
)
def test_judging_twice_changes_nothing_more(
    status: AttemptStatus | None,
    stop: Stop | None,
    begun: bool,
    retryable: bool,
    retries: int,
    chance: float,
    lease_until: Any,
) -> None:
    item = started(stop=stop, retry_count=retries) if begun else claimed(stop=stop, lease_until=lease_until)
    answer = Attempt(item.run_id, item.attempt, status, "R", "m", retryable) if status else None
    after = judge(item, answer, NOW, chance, POLICY)
    assert judge(after, answer, NOW, chance, POLICY) == after
    assert after.retry_count - item.retry_count in (0, 1)
    assert after.retry_count <= max(item.max_retries, item.retry_count)
    assert after.run_id == item.run_id and after.version == item.version
