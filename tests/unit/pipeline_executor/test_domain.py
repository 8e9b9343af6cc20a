"""The pure decisions on runs."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import FailedPrecondition, InvalidArgument, NotFound
from libs.tenancy import TenantId
from services.pipeline_executor.domain import (
    Check,
    Key,
    Outcome,
    Run,
    RunStatus,
    Spec,
    Step,
    StepStatus,
    Trigger,
    check_may_cancel,
    check_may_start,
    check_run_id,
    fingerprint,
    newest,
    parse_dates,
    percent_of,
    resolve_dates,
    run_id_of,
    view_of,
)
from services.pipeline_executor.wire import decode_progress, encode_progress, encode_view

ACME = TenantId("acme")
NOW = datetime(2025, 11, 17, 0, 30, tzinfo=UTC)
DAY = date(2025, 11, 16)


def run(status: RunStatus = RunStatus.RUNNING, attempt: int = 1) -> Run:
    return Run(
        key=Key(ACME, "r", attempt),
        spec=Spec("gcp", "cost", "billing", DAY, DAY),
        status=status,
        trigger=Trigger.MANUAL,
        owner="o",
        fingerprint="f",
        start_time=NOW,
    )


def test_yesterday_is_utcs() -> None:
    west = NOW.astimezone(timezone(timedelta(hours=-8)))
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    for now in (NOW, west, east):
        assert resolve_dates(None, now=now, max_days=1) == (DAY, DAY)


def test_today_may_be_run_and_tomorrow_may_not() -> None:
    today = NOW.date()
    assert resolve_dates((today, today), now=NOW, max_days=1) == (today, today)
    with pytest.raises(InvalidArgument) as refusal:
        resolve_dates((today, today + timedelta(days=1)), now=NOW, max_days=9)
    assert refusal.value.field_violations[0].field == "end_date"


@given(days=st.integers(1, 400), most=st.integers(1, 366))
def test_a_window_has_at_most_so_many_days(days: int, most: int) -> None:
    window = NOW.date() - timedelta(days=days - 1), NOW.date()
    if days <= most:
        assert resolve_dates(window, now=NOW, max_days=most) == window
    else:
        with pytest.raises(InvalidArgument):
            resolve_dates(window, now=NOW, max_days=most)


@pytest.mark.parametrize(
    "text", ["2025-13-01", "2025-02-29", "0000-01-01", "٢٠٢٥-١١-١٧", "20251117", "2025-W47-1", "x"]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        parse_dates(text, "", "")
    assert refusal.value.reason == "DATE_INVALID"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(parameters=st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_the_order_of_parameters_does_not_matter(parameters: dict[str, object]) -> None:
    turned = dict(reversed(parameters.items()))
    one = fingerprint("gcp", "cost", "billing", (DAY, DAY), parameters)
    assert one == fingerprint("gcp", "cost", "billing", (DAY, DAY), turned)
    assert one != fingerprint("gcp", "cost", "billing", None, parameters)
    assert one != fingerprint("gcp", "cost", "billing", (DAY, DAY), {**parameters, "one more": 1})


@given(st.text(min_size=1, max_size=128), st.text(min_size=1, max_size=128))
def test_a_key_is_one_run_of_one_tenant(one: str, other: str) -> None:
    assert check_run_id(run_id_of(ACME, one)) == run_id_of(ACME, one)
    assert (run_id_of(ACME, one) == run_id_of(ACME, other)) == (one == other)
    assert run_id_of(ACME, one) != run_id_of(TenantId("other"), one)


@given(st.text(max_size=40))
def test_only_a_uuid_in_its_usual_spelling_names_a_run(text: str) -> None:
    try:
        wanted = str(uuid.UUID(text)) if len(text) == 36 and "-" in text else None
    except ValueError:
        wanted = None
    try:
        assert check_run_id(text) == wanted
    except NotFound:
        assert wanted is None or wanted != text.lower()


def test_upper_case_names_the_same_run() -> None:
    run_id = str(uuid.uuid4())
    assert check_run_id(run_id.upper()) == run_id


@pytest.mark.parametrize("status", RunStatus)
def test_what_may_be_cancelled(status: RunStatus) -> None:
    if status.ended:
        with pytest.raises(FailedPrecondition):
            check_may_cancel(run(status))
    else:
        assert check_may_cancel(run(status)) == (status is not RunStatus.CANCELLING)


@pytest.mark.parametrize("status", RunStatus)
def test_what_an_earlier_attempt_forbids(status: RunStatus) -> None:
    check_may_start(1, [run(status)])
    if status in (RunStatus.FAILED, RunStatus.CANCELLED):
        check_may_start(2, [run(status)])
    else:
        with pytest.raises(FailedPrecondition):
            check_may_start(2, [run(status), run(RunStatus.FAILED, 2)])


def test_the_newest_attempt() -> None:
    assert newest([]) is None
    assert newest([run(attempt=2), run(attempt=10), run(attempt=9)]) == run(attempt=10)


def steps(*statuses: StepStatus) -> list[Step]:
    return [
        Step(attempt=1, position=position, name=str(position), type="t", status=status)
        for position, status in enumerate(statuses)
    ]


@given(st.lists(st.sampled_from(StepStatus), max_size=8), st.sampled_from(RunStatus))
def test_percent(statuses: list[StepStatus], status: RunStatus) -> None:
    percent = percent_of(run(status), steps(*statuses))
    assert 0 <= percent <= 100
    assert (percent == 100) == (status is RunStatus.COMPLETED)


def test_a_run_says_what_its_newest_attempt_has_put_into_quarantine_to_other_replicas_too() -> None:
    [checked] = [replace(step, details={"rows_quarantined": 2}) for step in steps(StepStatus.COMPLETED)]
    done = replace(run(RunStatus.COMPLETED), outcome=Outcome.PUBLISHED)
    view = view_of(done, [checked])
    assert view.rows_quarantined == 2
    assert view_of(replace(done, outcome=Outcome.SUPERSEDED), [checked]).rows_quarantined is None
    assert decode_progress(encode_progress(view)).rows_quarantined == 2
    later = view_of(replace(done, key=run(attempt=2).key), [checked, replace(checked, attempt=2, details={})])
    assert later.rows_quarantined is None and not encode_view(later).HasField("rows_quarantined")
    # The steps of a process that died once it had published were never logged; its checks were.
    result = {
        "attempt": 1,
        "type": "quarantine",
        "severity": "WARNING",
        "status": "WARN",
        "message": "",
        "expected": "0",
    }
    checks = [
        Check(name=name, dimension=currency, actual=actual, check_time=NOW, **result)
        for name, currency, actual in (
            ("rows_quarantined", "EUR", "1"), ("rows_quarantined", "USD", "2"), ("cost_quarantined", "USD", "9.5"),
        )
    ]  # fmt: skip
    assert view_of(done, [], checks).rows_quarantined == 3
    assert view_of(done, [], []).rows_quarantined is None


def test_a_step_that_ends_moves_a_run_forward() -> None:
    states = [
        (StepStatus.PENDING, StepStatus.PENDING),
        (StepStatus.RUNNING, StepStatus.PENDING),
        (StepStatus.COMPLETED, StepStatus.PENDING),
        (StepStatus.COMPLETED, StepStatus.RUNNING),
        (StepStatus.COMPLETED, StepStatus.COMPLETED),
    ]
    percents = [percent_of(run(), steps(*state)) for state in states]
    assert percents == [0, 25, 50, 75, 99]
    assert percent_of(replace(run(), status=RunStatus.COMPLETED), []) == 100
