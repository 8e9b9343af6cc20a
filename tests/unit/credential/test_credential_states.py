"""What holds for a credential's row whatever happens to it, in any order and twice over."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from libs import errors
from services.credential.states import (
    KEPT_VERSIONS,
    Change,
    Credential,
    Judge,
    Kind,
    Provider,
    Prune,
    Put,
    Revoke,
    Rewrap,
    Sealed,
    SetSource,
    Status,
    Verdict,
    born,
    credential_id,
    decide,
    usable,
)
from tests.support.examples import examples

START = datetime(2025, 11, 17, 12, tzinfo=UTC)
_verdicts = st.builds(
    Verdict,
    st.sampled_from([Status.VALID, Status.INVALID, Status.PENDING]),
    st.sampled_from(["", "why"]),
    st.booleans(),
)
_stored = st.builds(Verdict, st.sampled_from([Status.VALID, Status.PENDING]), st.just(""), st.booleans())
_sources = st.sampled_from([{}, {"dataset_id": "a"}, {"dataset_id": "b"}])


def put(number: int, verdict: Verdict = Verdict(Status.VALID), **changes) -> Put:  # noqa: B008
    made = Put(
        tenant_id="acme",
        provider=Provider.GCP,
        name="default",
        version_id=f"v{number}",
        kind=Kind.SERVICE_ACCOUNT,
        sealed=Sealed(b"c%d" % number, b"w%d" % number, "kek/1", 1),
        display="reader@x",
        expire_time=None,
        source=None,
        verdict=verdict,
    )
    return replace(made, **changes)


class Life(RuleBasedStateMachine):
    """One credential, its changes in any order, each one maybe decided again much later."""

    @initialize()
    def store(self) -> None:
        self.now = START
        self.puts = 1
        self.done: list[Change] = []
        self.row: Credential = born(put(1), self.now)
        self.revocations = 0
        self.highest = 1

    def change(self, change: Change) -> None:
        before = self.row
        try:
            self.row, answer = decide(before, change, self.now)
        except (errors.FailedPrecondition, errors.Aborted):
            return
        assert answer == self.row
        assert decide(self.row, change, self.now) == (self.row, self.row), "the second time changes nothing"
        assert self.row.version == before.version, "the version is the ledger's"
        identity = lambda r: (r.credential_id, r.tenant_id, r.provider, r.name, r.create_time)  # noqa: E731
        assert identity(self.row) == identity(before)
        self.done.append(change)

    @rule(verdict=_stored, source=st.none() | _sources, life=st.none() | st.integers(1, 400))
    def post(self, verdict, source, life) -> None:
        self.puts += 1
        end = None if life is None else self.now + timedelta(hours=life)
        self.change(put(self.puts, verdict, source=source, expire_time=end))
        assert self.row.current.version_id == f"v{self.puts}"

    @rule(source=_sources, verdict=_stored)
    def move(self, source, verdict) -> None:
        version = self.row.current.version_id if self.row.secrets else "none"
        self.change(SetSource("acme", source, version, verdict))

    @rule(verdict=_verdicts, back=st.integers(0, 3))
    def judge(self, verdict, back) -> None:
        self.change(Judge("acme", f"v{self.puts - back}", self.row.source, verdict, self.now))

    @rule()
    def revoke(self) -> None:
        self.change(Revoke("acme"))
        self.revocations += 1

    @rule()
    def rewrap(self) -> None:
        old = {s.version_id: s.sealed for s in self.row.secrets}
        self.change(Rewrap("acme", old, {v: replace(s, key_version="kek/2") for v, s in old.items()}))
        assert all(s.sealed.key_version == "kek/2" for s in self.row.secrets)

    @rule()
    def prune(self) -> None:
        self.change(Prune("acme"))
        assert all(s.destroy_time is None or s.destroy_time > self.now for s in self.row.secrets)

    @rule(hours=st.integers(0, 100))
    def wait(self, hours) -> None:
        self.now += timedelta(hours=hours, seconds=1)

    @rule(data=st.data())
    def decide_a_put_again(self, data) -> None:
        """A reply was lost long ago: the same version may not come back, least of all over a revocation."""
        puts = [c for c in self.done[-30:] if isinstance(c, Put)]
        if puts:
            before = [s.version_id for s in self.row.secrets]
            self.change(data.draw(st.sampled_from(puts)))
            assert {s.version_id for s in self.row.secrets} <= set(before)

    @rule(tenant=st.sampled_from(["globex", "", "Acme"]))
    def another_tenant(self, tenant) -> None:
        with pytest.raises(errors.NotFound):
            decide(self.row, Revoke(tenant), self.now)
        with pytest.raises(errors.NotFound):
            usable(self.row, tenant, self.now)

    @invariant()
    def holds(self) -> None:
        row = self.row
        assert (row.status is Status.REVOKED) == (not row.secrets)
        assert len(row.secrets) <= KEPT_VERSIONS
        assert len({s.version_id for s in row.secrets}) == len(row.secrets)
        assert row.last_number >= self.highest, "a number is never given twice"
        self.highest = row.last_number
        assert all(s.destroy_time is not None for s in row.secrets[1:])
        if row.secrets:
            assert row.current.destroy_time is None
            assert (row.kind, row.display) == (row.current.kind, row.current.display)
        if row.status is Status.REVOKED:
            assert not row.secrets and row.expire_time is None
        ended = row.expire_time is not None and row.expire_time <= self.now
        if row.status in (Status.PENDING, Status.VALID) and not ended:
            assert usable(row, "acme", self.now) is row
        else:
            with pytest.raises(errors.FailedPrecondition):
                usable(row, "acme", self.now)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=examples(30, 300), stateful_step_count=40, deadline=None)


def test_no_row_is_not_found():
    with pytest.raises(errors.NotFound):
        decide(None, put(1), START)


def test_an_id_follows_from_tenant_provider_and_name():
    assert credential_id("acme", Provider.GCP, "default") == credential_id("acme", Provider.GCP, "default")
    ids = {credential_id(t, p, n) for t in ("acme", "acm") for p in Provider for n in ("default", "e", "Default")}
    assert len(ids) == 18


def test_a_verdict_on_what_is_no_longer_in_force_is_nobody_s():
    row, _ = decide(born(put(1), START), put(2), START)
    late = Judge("acme", "v1", {}, Verdict(Status.INVALID), START + timedelta(hours=1))
    assert decide(row, late, START + timedelta(hours=1))[0] == row
    elsewhere = Judge("acme", "v2", {"dataset_id": "x"}, Verdict(Status.INVALID), START + timedelta(hours=1))
    assert decide(row, elsewhere, START + timedelta(hours=1))[0] == row
