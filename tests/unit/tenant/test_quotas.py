"""Every decision on a quota row, one by one."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta

import pytest

from libs.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.tenant.quotas import (
    KEEP_ENDED,
    KEEP_REFUNDED,
    LEASE,
    LIMITS,
    Grant,
    GrantState,
    Limits,
    Plan,
    QuotaRequest,
    QuotaRow,
    Quotas,
    Renew,
    Renewal,
    Reservation,
    Reserve,
    Roll,
    SetPlan,
    SetState,
    Settle,
    TenantState,
    decide,
    next_day,
    next_month,
    rolled,
)
from services.tenant.store import quota_from_row, quota_to_json
from tests.support.fakes import Clock
from tests.support.tenant_world import Disk, Process
from tests.support.virtual_time import run

NOON = datetime(2025, 11, 17, 12, tzinfo=UTC)


def fresh(plan: Plan = Plan.STARTER, now: datetime = NOON, **changes: object) -> QuotaRow:
    return dataclasses.replace(QuotaRow.fresh("acme", plan, now), **changes)  # type: ignore[arg-type]


def after(row: QuotaRow, request: QuotaRequest, now: datetime = NOON) -> QuotaRow:
    changed, _ = decide(row, request, now)
    assert changed is not None
    return changed


def used(row: QuotaRow, runs: int, now: datetime = NOON) -> QuotaRow:
    """The row after ``runs`` runs that came and went."""
    for number in range(runs):
        row = after(row, Reserve(f"used-{now}-{number}", 1, "me"), now)
        row = after(row, Settle(f"used-{now}-{number}", 1, GrantState.SETTLED), now)
    return row


def refused(row: QuotaRow, now: datetime = NOON) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as info:
        decide(row, Reserve("one-more", 1, "me"), now)
    return info.value


# ---------------------------------------------------------------- reserving


def test_a_reservation_charges_day_and_month_and_takes_a_slot() -> None:
    row, answer = decide(fresh(), Reserve("run", 1, "me", "print"), NOON)
    assert row is not None and isinstance(answer, Reservation)
    assert answer.created
    assert answer.grant == Grant("run", 1, "me", date(2025, 11, 17), NOON + LEASE, fingerprint="print")
    assert (row.pipelines_run_today, row.pipelines_run_month, row.in_use(NOON)) == (1, 1, 1)
    assert row.next_expiry == NOON + LEASE


def test_the_same_attempt_gets_the_grant_it_has_whoever_asks_and_whatever_became_of_it() -> None:
    row = after(fresh(), Reserve("run", 1, "me"))
    again, answer = decide(row, Reserve("run", 1, "somebody else"), NOON)
    assert again == row and isinstance(answer, Reservation)
    assert (answer.created, answer.grant.owner) == (False, "me")
    for state in (GrantState.SETTLED, GrantState.REFUNDED, GrantState.REAPED):
        ended = after(row, Settle("run", 1, state))
        same, answer = decide(ended, Reserve("run", 1, "me"), NOON)
        assert same == ended and isinstance(answer, Reservation)
        assert answer.grant.state is state


def test_a_retry_finds_its_grant_even_when_nothing_new_may_start() -> None:
    row = after(fresh(), Reserve("run", 1, "me"))
    for state in (TenantState.SUSPENDED, TenantState.OFFBOARDING):
        _, answer = decide(after(row, SetState(state)), Reserve("run", 1, "me"), NOON)
        assert isinstance(answer, Reservation) and not answer.created


def test_another_attempt_is_another_reservation() -> None:
    row = after(fresh(Plan.PROFESSIONAL), Reserve("run", 1, "me"))
    row = after(row, Reserve("run", 2, "me"))
    assert (row.pipelines_run_today, row.in_use(NOON)) == (2, 2)


def test_a_reused_key_with_another_request_is_told() -> None:
    row = after(fresh(), Reserve("run", 1, "me", "print"))
    with pytest.raises(InvalidArgument) as info:
        decide(row, Reserve("run", 1, "me", "other"), NOON)
    assert info.value.reason == "IDEMPOTENCY_KEY_REUSED"


def test_concurrency_is_refused_until_a_lease_ends() -> None:
    row = after(fresh(), Reserve("run", 1, "me"))
    error = refused(row)
    assert error.reason == "QUOTA_CONCURRENT_EXCEEDED"
    assert error.retry_after == LEASE
    assert [(item.quota_id, item.limit) for item in error.quota_violations] == [("CONCURRENT_RUNS", 1)]
    later = NOON + LEASE
    assert after(row, Reserve("next", 1, "me"), later).in_use(later) == 1


@pytest.mark.parametrize("plan", list(Plan))
def test_a_day_allows_exactly_its_limit(plan: Plan) -> None:
    row = used(fresh(plan), LIMITS[plan].daily)
    error = refused(row)
    assert error.reason == "QUOTA_DAILY_EXCEEDED"
    assert error.retry_after == timedelta(hours=12)
    assert error.quota_violations[0].limit == LIMITS[plan].daily
    midnight = datetime(2025, 11, 18, tzinfo=UTC)
    assert after(row, Reserve("next", 1, "me"), midnight).pipelines_run_today == 1


def test_a_month_allows_exactly_its_limit() -> None:
    row = fresh(pipelines_run_month=180)
    error = refused(row)
    assert error.reason == "QUOTA_MONTHLY_EXCEEDED"
    assert error.retry_after == datetime(2025, 12, 1, tzinfo=UTC) - NOON
    december = datetime(2025, 12, 1, tzinfo=UTC)
    assert after(row, Reserve("next", 1, "me"), december).pipelines_run_month == 1


def test_all_exhausted_quotas_are_told_and_the_last_to_open_names_the_refusal() -> None:
    row = after(fresh(pipelines_run_today=5, pipelines_run_month=179), Reserve("run", 1, "me"))
    error = refused(row)
    assert error.reason == "QUOTA_MONTHLY_EXCEEDED"
    assert [item.quota_id for item in error.quota_violations] == ["CONCURRENT_RUNS", "DAILY_RUNS", "MONTHLY_RUNS"]


@pytest.mark.parametrize("limits", [Limits(0, 9, 9), Limits(9, 0, 9), Limits(9, 9, 0)])
def test_a_limit_of_zero_is_zero(limits: Limits) -> None:
    assert refused(fresh(limits=limits)).quota_violations[0].limit == 0


@pytest.mark.parametrize("state", [TenantState.SUSPENDED, TenantState.OFFBOARDING])
def test_nothing_starts_for_a_tenant_that_is_not_active(state: TenantState) -> None:
    with pytest.raises(FailedPrecondition) as info:
        decide(after(fresh(), SetState(state)), Reserve("run", 1, "me"), NOON)
    assert info.value.reason == "SUBSCRIPTION_INACTIVE"


def test_a_tenant_that_is_gone_or_never_was_is_not_found() -> None:
    gone = after(after(fresh(), SetState(TenantState.OFFBOARDING)), SetState(TenantState.DELETED))
    for row in (None, gone):
        with pytest.raises(NotFound):
            decide(row, Reserve("run", 1, "me"), NOON)


# ---------------------------------------------------------------- renewing


def test_a_renewal_prolongs_the_owners_live_grants_and_tells_the_lost_ones() -> None:
    row = after(fresh(Plan.PROFESSIONAL), Reserve("mine", 1, "me"))
    row = after(row, Reserve("theirs", 1, "they"))
    row = after(after(row, Reserve("done", 1, "me")), Settle("done", 1, GrantState.SETTLED))
    until = NOON + timedelta(seconds=80)
    wanted = frozenset({("mine", 1), ("theirs", 1), ("done", 1), ("never", 1)})
    changed, answer = decide(row, Renew("me", wanted, until), NOON + timedelta(seconds=20))
    assert changed is not None and isinstance(answer, Renewal)
    assert [(grant.run_id, grant.until) for grant in answer.renewed] == [("mine", until)]
    assert answer.lost == (("done", 1), ("never", 1), ("theirs", 1))
    assert decide(changed, Renew("me", wanted, until), NOON + timedelta(seconds=21)) == (changed, answer)


def test_a_lease_that_ran_out_is_lost_even_for_its_owner() -> None:
    row = after(fresh(), Reserve("run", 1, "me"))
    late = NOON + LEASE
    changed, answer = decide(row, Renew("me", frozenset({("run", 1)}), late + LEASE), late)
    assert changed == row and isinstance(answer, Renewal)
    assert answer.lost == (("run", 1),)


def test_a_lease_is_never_shortened() -> None:
    row = after(fresh(), Reserve("run", 1, "me"))
    changed, _ = decide(row, Renew("me", frozenset({("run", 1)}), NOON), NOON)
    assert changed == row


# ---------------------------------------------------------------- settling


@pytest.mark.parametrize("state", [GrantState.SETTLED, GrantState.REAPED])
def test_an_attempt_that_ended_stays_charged_and_frees_its_slot(state: GrantState) -> None:
    row = after(after(fresh(), Reserve("run", 1, "me")), Settle("run", 1, state))
    assert (row.pipelines_run_today, row.pipelines_run_month, row.in_use(NOON)) == (1, 1, 0)
    assert row.next_expiry is None


def test_a_refund_gives_back_day_and_month() -> None:
    row = after(after(fresh(), Reserve("run", 1, "me")), Settle("run", 1, GrantState.REFUNDED))
    assert (row.pipelines_run_today, row.pipelines_run_month, row.in_use(NOON)) == (0, 0, 0)


def test_a_refund_after_midnight_goes_to_the_day_it_was_charged_to() -> None:
    row = used(fresh(), 2)
    row = after(row, Reserve("run", 1, "me"))
    tomorrow = NOON + timedelta(days=1)
    row = after(row, Reserve("other", 1, "me"), tomorrow)
    assert row.history == ((date(2025, 11, 17), 3),)
    row = after(row, Settle("run", 1, GrantState.REFUNDED), tomorrow)
    assert row.history == ((date(2025, 11, 17), 2),)
    assert (row.pipelines_run_today, row.pipelines_run_month) == (1, 3)


def test_a_refund_of_last_month_leaves_this_month_alone() -> None:
    eve = datetime(2025, 11, 30, 23, 59, 50, tzinfo=UTC)
    row = after(fresh(now=eve), Reserve("run", 1, "me"), eve)
    december = eve + timedelta(seconds=20)
    row = after(row, Settle("run", 1, GrantState.REFUNDED), december)
    assert (row.pipelines_run_today, row.pipelines_run_month, row.history) == (0, 0, ())
    assert row.month == "2025-12"


def test_what_ended_stays_as_it_ended() -> None:
    row = after(after(fresh(), Reserve("run", 1, "me")), Settle("run", 1, GrantState.SETTLED))
    for state in (GrantState.REFUNDED, GrantState.REAPED, GrantState.SETTLED):
        changed, answer = decide(row, Settle("run", 1, state), NOON)
        assert changed == row and isinstance(answer, Grant)
        assert answer.state is GrantState.SETTLED


def test_settling_what_is_not_known_answers_nothing() -> None:
    assert decide(fresh(), Settle("run", 1, GrantState.SETTLED), NOON)[1] is None


def test_ended_grants_are_kept_two_days_and_live_ones_for_ever() -> None:
    row = used(after(fresh(Plan.PROFESSIONAL), Reserve("lost", 1, "me")), 1)
    just = NOON + KEEP_ENDED - timedelta(seconds=1)
    assert len(after(row, Reserve("a", 1, "me"), just).grants) == 3
    later = NOON + KEEP_ENDED
    assert [grant.run_id for grant in after(row, Reserve("a", 1, "me"), later).grants] == ["lost", "a"]


def test_refunds_in_a_loop_do_not_fill_the_row() -> None:
    row = fresh()
    for number in range(KEEP_REFUNDED + 20):
        row = after(row, Reserve(f"run-{number}", 1, "me"))
        row = after(row, Settle(f"run-{number}", 1, GrantState.REFUNDED))
    assert len(row.grants) <= KEEP_REFUNDED + 1
    assert row.grants[-1].run_id == f"run-{KEEP_REFUNDED + 19}"
    assert row.pipelines_run_today == 0


# ---------------------------------------------------------------- time


def test_counters_roll_over_by_themselves_and_history_keeps_ninety_days() -> None:
    row = used(fresh(), 4)
    assert rolled(row, NOON) is row
    next_year = rolled(row, NOON + timedelta(days=90))
    assert (next_year.pipelines_run_today, next_year.history) == (0, ((date(2025, 11, 17), 4),))
    assert rolled(row, NOON + timedelta(days=91)).history == ()


def test_days_without_a_run_leave_no_history() -> None:
    assert rolled(fresh(), NOON + timedelta(days=3)).history == ()


def test_a_clock_that_is_behind_takes_nothing_back() -> None:
    midnight = datetime(2025, 11, 18, 0, 0, 1, tzinfo=UTC)
    row = after(fresh(), Reserve("run", 1, "me"), midnight)
    behind = after(row, Settle("run", 1, GrantState.SETTLED), midnight - timedelta(seconds=5))
    assert (behind.day, behind.pipelines_run_today) == (date(2025, 11, 18), 1)
    assert behind.updated_at == midnight


def test_rolling_is_written_only_when_asked_for() -> None:
    row = used(fresh(), 2)
    tomorrow = NOON + timedelta(days=1)
    assert decide(row, Settle("never", 1, GrantState.SETTLED), tomorrow)[0] == row
    written = after(row, Roll(), tomorrow)
    assert (written.day, written.pipelines_run_today) == (date(2025, 11, 18), 0)
    assert decide(written, Roll(), tomorrow)[0] == written


def test_the_day_and_the_month_end_when_they_do() -> None:
    assert next_day(date(2025, 12, 31)) == datetime(2026, 1, 1, tzinfo=UTC)
    assert next_month(date(2025, 12, 31)) == datetime(2026, 1, 1, tzinfo=UTC)
    assert next_month(date(2024, 1, 31)) == datetime(2024, 2, 1, tzinfo=UTC)


# ---------------------------------------------------------------- plan and state


def test_a_higher_plan_holds_at_once() -> None:
    row = used(fresh(), 6)
    refused(row)
    row = after(row, SetPlan(Plan.PROFESSIONAL))
    assert after(row, Reserve("run", 1, "me")).pipelines_run_today == 7
    assert decide(row, SetPlan(Plan.PROFESSIONAL), NOON)[0] == row


def test_a_lower_plan_lets_running_work_end_and_starts_nothing_above_it() -> None:
    row = fresh(Plan.SCALE)
    for number in range(5):
        row = after(row, Reserve(f"run-{number}", 1, "me"))
    row = after(row, SetPlan(Plan.STARTER))
    assert row.in_use(NOON) == 5
    renewal = decide(row, Renew("me", frozenset({("run-4", 1)}), NOON + 2 * LEASE), NOON)[1]
    assert isinstance(renewal, Renewal) and not renewal.lost
    for number in range(5):
        refused(row)
        row = after(row, Settle(f"run-{number}", 1, GrantState.SETTLED))
    assert after(row, Reserve("next", 1, "me")).in_use(NOON) == 1


def test_suspending_lets_running_work_end_and_reactivating_undoes_it() -> None:
    row = after(after(fresh(), Reserve("run", 1, "me")), SetState(TenantState.SUSPENDED))
    renewal = decide(row, Renew("me", frozenset({("run", 1)}), NOON + 2 * LEASE), NOON)[1]
    assert isinstance(renewal, Renewal) and not renewal.lost
    assert after(row, SetState(TenantState.ACTIVE)).state is TenantState.ACTIVE


def test_offboarding_ends_every_lease_and_leaves_the_grants_to_the_reapers() -> None:
    row = after(after(fresh(), Reserve("run", 1, "me")), SetState(TenantState.OFFBOARDING))
    assert row.in_use(NOON) == 0
    assert (row.grants[0].state, row.next_expiry) == (GrantState.LIVE, NOON)
    renewal = decide(row, Renew("me", frozenset({("run", 1)}), NOON + LEASE), NOON)[1]
    assert isinstance(renewal, Renewal) and renewal.lost == (("run", 1),)
    later = NOON + timedelta(minutes=1)
    assert decide(row, SetState(TenantState.OFFBOARDING), later)[0] == row


@pytest.mark.parametrize(
    "request_", [SetState(TenantState.ACTIVE), SetState(TenantState.SUSPENDED), SetPlan(Plan.SCALE)]
)
def test_leaving_cannot_be_undone(request_: QuotaRequest) -> None:
    leaving = after(fresh(), SetState(TenantState.OFFBOARDING))
    with pytest.raises(FailedPrecondition):
        decide(leaving, request_, NOON)
    with pytest.raises(NotFound):
        decide(after(leaving, SetState(TenantState.DELETED)), request_, NOON)


# ---------------------------------------------------------------- use cases


def test_usage_allowances_and_expired_grants() -> None:
    async def scenario() -> None:
        disk = Disk(Clock(NOON))
        disk.quotas.rows = {
            name: dataclasses.replace(used(fresh(plan), runs), tenant_id=name)
            for name, plan, runs in (("a", Plan.STARTER, 6), ("b", Plan.PROFESSIONAL, 1), ("c", Plan.SCALE, 0))
        }
        disk.quotas.rows["c"] = after(disk.quotas.rows["c"], SetState(TenantState.SUSPENDED))
        quotas: Quotas = Process(disk).quotas
        await quotas.reserve("b", Reserve("run", 1, "me"))
        assert disk.quotas.reads == 1

        found = await quotas.allowances(["a", "nobody", "b", "c", "b"])
        assert [item.free_slots for item in found] == [1, 0, 2, 0, 2]
        assert [item.daily_remaining for item in found] == [0, 0, 23, 0, 23]
        assert [item.state for item in found][:2] == [TenantState.ACTIVE, None]
        assert found[0].reset_time == datetime(2025, 11, 18, tzinfo=UTC) and found[2].reset_time is None

        usage = await quotas.usage("b")
        assert (usage.daily.used, usage.daily.remaining, usage.concurrent.used) == (2, 23, 1)
        assert usage.concurrent.reset_time == NOON + LEASE
        with pytest.raises(NotFound):
            await quotas.usage("nobody")

        assert await quotas.expired(10) == []
        disk.clock.advance(LEASE)
        assert [(tenant, grant.run_id) for tenant, grant in await quotas.expired(10)] == [("b", "run")]

        disk.clock.advance(timedelta(days=1))
        writes = disk.quotas.writes
        assert await quotas.reset_daily() == 3
        assert disk.quotas.writes == writes + 1
        assert await quotas.reset_daily() == 0
        assert (await quotas.usage("a")).history == ((date(2025, 11, 17), 6),)

    run(scenario())


def test_a_row_survives_the_store() -> None:
    row = used(after(fresh(Plan.SCALE), Reserve("live", 2, "me", "print")), 2)
    row = after(row, Reserve("next", 1, "me"), NOON + timedelta(days=1))
    json_form = dict(quota_to_json(row))
    import json

    stored = {**json_form, "grants": json.dumps(json_form["grants"]), "history": json.dumps(json_form["history"])}
    assert quota_from_row(stored) == row
    assert json_form["concurrent_running"] == 1
