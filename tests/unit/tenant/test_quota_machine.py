"""Three replicas reserve, renew, settle and crash on a store that fails; whatever the order, the counts are right.

Invariants (named as in the tests below): I2 a grant is only added while fewer than the limit are live; I3 a day's count
is its distinct reservations less its refunds, and no addition exceeds a limit; I4 what ended never changes; I5 a dead
owner's slot frees itself within its lease; I8 no request touches another tenant's row. Hypothesis prints the seed of a
failure (``@reproduce_failure``); the faults of the store are seeded by it too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from libs import errors
from services.tenant.quotas import (
    KEEP_ENDED,
    LEASE,
    Grant,
    GrantState,
    Plan,
    QuotaRow,
    Reserve,
    SetPlan,
    SetState,
    Settle,
    TenantState,
    rolled,
)
from tests.support.examples import examples
from tests.support.fakes import Clock, Faults, MemoryTable
from tests.support.tenant_world import Disk, Process, Steps
from tests.support.virtual_time import VirtualTimeLoop

TENANTS = ("a_tenant", "b_tenant", "c_tenant")
REPLICAS = 3
# The last day of a month and of a year, so that midnight is also the month's end.
START = datetime(2025, 12, 31, 23, 57, tzinfo=UTC)

tenants = st.sampled_from(TENANTS)
replicas = st.integers(0, REPLICAS - 1)
runs = st.integers(0, 7).map("run-{}".format)
attempts = st.integers(1, 2)
owners = st.sampled_from(("executor-1", "executor-2"))
ends = st.sampled_from((GrantState.SETTLED, GrantState.REFUNDED, GrantState.REAPED))

type Key = tuple[str, str, int]


@dataclass
class Seen:
    """All grants that ever stood in the table, in their last form."""

    grants: dict[Key, Grant] = field(default_factory=dict)
    rows: dict[str, QuotaRow] = field(default_factory=dict)


class QuotaMachine(RuleBasedStateMachine):
    """The faults are set per test; see ``machine``."""

    faults = Faults()

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.loop = VirtualTimeLoop()
        self.clock = Clock(START)
        self.disk = Disk(self.clock)
        rows = [QuotaRow.fresh(tenant, plan, START) for tenant, plan in zip(TENANTS, Plan, strict=True)]
        self.disk.quotas = MemoryTable(rows, key=lambda row: row.tenant_id, faults=self.faults, seed=seed)
        self.processes = [Process(self.disk) for _ in range(REPLICAS)]
        self.seen = Seen(rows=dict(self.disk.quotas.rows))
        self.answered: dict[Key, str] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self._everything_ends()
            self.loop.close()

    # ------------------------------------------------------------ what happens

    @rule(
        asks=st.lists(st.tuples(replicas, tenants, runs, attempts, owners), min_size=1, max_size=12),
    )
    def reserve(self, asks: list[tuple[int, str, str, int, str]]) -> None:
        """Many at once, some of them twice, on several replicas."""
        answers = self._all(
            self.processes[replica].quotas.reserve(tenant, Reserve(run, attempt, owner))
            for replica, tenant, run, attempt, owner in asks
        )
        for (_, tenant, run, attempt, _), answer in zip(asks, answers, strict=True):
            if isinstance(answer, errors.Error):
                assert isinstance(answer, errors.ResourceExhausted | errors.FailedPrecondition | errors.Unavailable)
                continue
            stored = self._stored(tenant, run, attempt)
            assert stored is not None, "a client was told of a grant that is not there"
            assert answer.grant.owner == stored.owner
            assert self.answered.setdefault((tenant, run, attempt), stored.owner) == stored.owner

    @rule(replica=replicas, owner=owners)
    def renew(self, replica: int, owner: str) -> None:
        """The executor renews all it thinks it has."""
        mine = [key for key, grant in self.seen.grants.items() if grant.owner == owner]
        (answer,) = self._all([self.processes[replica].quotas.renew(owner, mine)])
        if isinstance(answer, errors.Error):
            return
        now = self.clock()
        for tenant, renewal in answer.items():
            for grant in renewal.renewed:
                stored = self._stored(tenant, grant.run_id, grant.attempt)
                assert stored is not None and stored.in_use(now) and stored.until >= grant.until

    @rule(replica=replicas, pick=st.integers(0, 50), state=ends)
    def settle(self, replica: int, pick: int, state: GrantState) -> None:
        """An attempt that is known ends, maybe not for the first time, maybe after midnight."""
        if not self.seen.grants:
            return
        tenant, run, attempt = sorted(self.seen.grants)[pick % len(self.seen.grants)]
        (answer,) = self._all([self.processes[replica].quotas.settle(tenant, Settle(run, attempt, state))])
        if isinstance(answer, Grant):
            stored = self._stored(tenant, run, attempt)
            assert stored is not None and stored.state is answer.state is not GrantState.LIVE

    @rule(replica=replicas)
    def reap(self, replica: int) -> None:
        """I5: an executor asks for expired grants and ends them."""
        quotas = self.processes[replica].quotas
        (found,) = self._all([quotas.expired(100)])
        now = self.clock()
        due = {
            (row.tenant_id, grant.run_id, grant.attempt)
            for row in self.disk.quotas.rows.values()
            for grant in row.grants
            if grant.state is GrantState.LIVE and grant.until <= now
        }
        assert {(tenant, grant.run_id, grant.attempt) for tenant, grant in found} == due
        self._all(quotas.settle(t, Settle(grant.run_id, grant.attempt, GrantState.REAPED)) for t, grant in found)

    @rule(replica=replicas, tenant=tenants, plan=st.sampled_from(Plan))
    def change_plan(self, replica: int, tenant: str, plan: Plan) -> None:
        self._all([self.processes[replica].quota_ledger.ask(tenant, SetPlan(plan))])

    @rule(replica=replicas, tenant=tenants, state=st.sampled_from((TenantState.ACTIVE, TenantState.SUSPENDED)))
    def switch(self, replica: int, tenant: str, state: TenantState) -> None:
        self._all([self.processes[replica].quota_ledger.ask(tenant, SetState(state))])

    @rule(replica=replicas)
    def restart(self, replica: int) -> None:
        """A replica is killed and comes back knowing nothing."""
        self.processes[replica] = Process(self.disk)

    @rule(
        asks=st.lists(st.tuples(tenants, runs, attempts, owners), min_size=1, max_size=6),
        step=st.integers(1, 4),
        after=st.booleans(),
    )
    def die_amid_a_round(self, asks: list[tuple[str, str, int, str]], step: int, after: bool) -> None:
        """A replica is killed before or after any of its statements; whoever asked it hears nothing."""
        dying = Process(self.disk, Steps(kill_at=step, after=after))
        self._all(dying.quotas.reserve(tenant, Reserve(run, attempt, owner)) for tenant, run, attempt, owner in asks)

    @rule(replica=replicas, times=st.integers(1, 5))
    def reset(self, replica: int, times: int) -> None:
        self._all(self.processes[replica].quotas.reset_daily() for _ in range(times))

    @rule(seconds=st.sampled_from((1, 20, 59, 60, 61, 200, 3600, 86_400, 3 * 86_400)))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    # ------------------------------------------------------------ what must hold

    @invariant()
    def rows_are_right(self) -> None:
        if not hasattr(self, "disk"):
            return
        for tenant in TENANTS:
            self._row_is_right(self.disk.quotas.rows[tenant])

    def _row_is_right(self, row: QuotaRow) -> None:
        # Looked at after every write (see ``_all``), so additions are seen one write at a time.
        tenant = row.tenant_id
        counted: Counter[date] = Counter()
        for (owner_tenant, _, _), grant in self.seen.grants.items():
            if owner_tenant == tenant and grant.state is not GrantState.REFUNDED:
                counted[grant.day] += 1
        assert row.pipelines_run_today == counted[row.day]
        month = sum(runs for day, runs in counted.items() if f"{day:%Y-%m}" == row.month)
        assert row.pipelines_run_month == month
        assert dict(row.history) == {
            day: runs for day, runs in counted.items() if runs and day < row.day and (row.day - day).days <= 90
        }

    def _watch(self, before: QuotaRow, after: QuotaRow) -> None:
        """One write of one row."""
        now = after.updated_at
        rows = {(grant.run_id, grant.attempt): grant for grant in after.grants}
        assert len(rows) == len(after.grants), "one attempt has two grants"
        old = {
            (grant.run_id, grant.attempt): grant
            for grant in before.grants
            if grant.ended is None or grant.ended + KEEP_ENDED > now
        }
        added = [grant for key, grant in rows.items() if key not in old]
        for key, grant in old.items():
            if grant.state is not GrantState.LIVE:
                assert rows.get(key, grant) == grant, "what ended changed"
                continue
            assert key in rows, "a live grant was dropped"
            if rows[key].until > grant.until:
                assert grant.in_use(now), "a lease that ran out came back"
        assert after.in_use(now) <= max(before.in_use(now), after.limits.concurrent), "I2"
        for grant in added:
            earlier = self.seen.grants.get((after.tenant_id, grant.run_id, grant.attempt))
            assert earlier is None or earlier.ended is not None
            if earlier is not None:
                # After 48 hours an attempt is forgotten; the machine's ids are few, so it comes back as a new one.
                renamed = f"{grant.run_id} before {len(self.seen.grants)}"
                self.seen.grants[(after.tenant_id, renamed, grant.attempt)] = earlier
                self.answered.pop((after.tenant_id, grant.run_id, grant.attempt), None)
        if added:
            assert after.state is TenantState.ACTIVE
            assert after.in_use(now) <= after.limits.concurrent
            assert after.pipelines_run_today <= after.limits.daily
            assert after.pipelines_run_month <= after.limits.monthly
            assert all(grant.day == after.day for grant in added)
        for (run, attempt), grant in rows.items():
            self.seen.grants[(after.tenant_id, run, attempt)] = grant

    # ------------------------------------------------------------ helpers

    def _all(self, works: Any) -> list[Any]:
        """Runs all at once; errors of ours are answers. Every write is looked at as it is made."""

        async def gathered() -> list[Any]:
            table, commit = self.disk.quotas, self.disk.quotas._commit

            def watched(rows: Any) -> int:
                before = dict(table.rows)
                written = commit(rows)
                wanted = {row.tenant_id for row in rows}
                for tenant, row in table.rows.items():
                    if row != before[tenant]:
                        assert tenant in wanted, "I8: another tenant's row was touched"
                        self._watch(before[tenant], row)
                return written

            table._commit = watched  # type: ignore[method-assign]
            try:
                return await asyncio.gather(*works, return_exceptions=True)
            finally:
                table._commit = commit  # type: ignore[method-assign]

        answers = self.loop.run_until_complete(gathered())
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, errors.Error):
                raise answer
        return answers

    def _stored(self, tenant: str, run: str, attempt: int) -> Grant | None:
        grants = self.disk.quotas.rows[tenant].grants
        return next((grant for grant in grants if (grant.run_id, grant.attempt) == (run, attempt)), None)

    def _everything_ends(self) -> None:
        """I5: with all owners dead, one lease and one round of reaping later every slot is free."""
        self.disk.quotas.faults = Faults()
        self.clock.advance(LEASE + timedelta(seconds=20))
        self.reap(0)
        for tenant in TENANTS:
            row = self.disk.quotas.rows[tenant]
            assert all(grant.state is not GrantState.LIVE for grant in row.grants)
            now = self.clock()
            current = rolled(row, now)
            (answer,) = self._all([self.processes[1].quotas.reserve(tenant, Reserve("last", 1, "me"))])
            full = current.pipelines_run_today >= row.limits.daily or current.pipelines_run_month >= row.limits.monthly
            if row.state is not TenantState.ACTIVE:
                assert isinstance(answer, errors.FailedPrecondition)
            elif full:
                assert isinstance(answer, errors.ResourceExhausted)
            else:
                assert answer.created
        self.rows_are_right()


def _machine(faults: Faults) -> type[QuotaMachine]:
    return type("QuotaMachine", (QuotaMachine,), {"faults": faults})


@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(lost_reply=0.05, conflict=0.1),
        Faults(lost_reply=0.2, conflict=0.1, partial=0.1, unavailable=0.05, read_unavailable=0.05),
    ],
    ids=["a store that works", "5 % lost replies", "20 % lost replies and all else"],
)
def test_quotas_stay_right(faults: Faults) -> None:
    run_state_machine_as_test(
        _machine(faults),
        settings=settings(
            max_examples=examples(12, 100),
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
