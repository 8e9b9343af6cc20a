"""The history of findings: what days of scans leave, what a day run again leaves, and what a scan may close.

An account has a history of its own, so each scenario is one or two accounts, all of them in the same scans: a run costs
the same whatever is in it. Scans that must change nothing come afterwards, a run each.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from libs import errors
from libs.bigquery import Warehouse
from libs.tenancy import TenantId
from services.pipeline_executor.compliance import Compliance, ComplianceQuestion, ComplianceRequest
from services.pipeline_executor.compliance_store import BigQueryComplianceStore
from services.pipeline_executor.engine import RunResult
from services.pipeline_executor.providers.extraction import Scope
from services.pipeline_executor.run_context import Outcome, RunContext, SourceEndpoints
from tests.conftest import Emulator
from tests.support.billing import MemoryJournal
from tests.support.compliance import ComplianceRuns, days, faults, finding, prowler_scan

ACME = TenantId("acme")
PIPELINE = "aws/compliance/prowler"
DAYS = days(6)
ONE, TWO, THREE, FOUR, FIVE, SIX = DAYS
# Every scan that is published, in its order: a day may be looked at again, even after a later one of other accounts.
LOOKS: Mapping[str, date] = {
    "one, first": ONE, "one": ONE, "two": TWO, "two, again": TWO, "three": THREE, "two, other": TWO, "two, back": TWO,
    "four": FOUR, "four, accepted": FOUR, "five": FIVE, "six": SIX,
}  # fmt: skip
Findings = Sequence[dict[str, Any]]


# ------------------------------------------------------------------------------------------------- what the scans find

STATES: Mapping[str, Findings] = {
    "one": [
        finding("unchanged"), finding("fixed"), finding("reopened"), finding("muted"), finding("vanished"),
        finding("passing", status="PASS"), finding("returning"), finding("manual", status="MANUAL"),
    ],
    "two": [
        finding("unchanged", detail="Another text."), finding("fixed", status="PASS"),
        finding("reopened", status="PASS"), finding("muted", muted=True), finding("passing", status="PASS"),
        finding("new"), finding("manual", status="MANUAL"),
    ],
    "three": [
        finding("unchanged"), finding("fixed", status="PASS"), finding("reopened"), finding("muted"),
        finding("passing", status="PASS"), finding("new", severity="Low"), finding("returning"),
        finding("manual", status="MANUAL"),
    ],
}  # fmt: skip
FIRST = [finding("kept"), finding("fixed"), finding("gone"), finding("passing", status="PASS")]
SECOND = [finding("kept"), finding("fixed", status="PASS"), finding("new"), finding("passing", status="PASS")]
WEST, EAST = finding("a", region="eu-west-1"), finding("b", region="us-east-1")
MANY = [finding(f"check_{number}") for number in range(24)]
WORST = [finding("a", status="PASS"), finding("a", muted=True), finding("a", severity="Low"), finding("a")]
ACCOUNTS: dict[str, Mapping[str, Findings]] = {
    "states": STATES,
    "states, elsewhere": {"one": [finding("elsewhere")]},
    "again": {"one": FIRST, "two": SECOND, "two, again": SECOND, "two, other": FIRST, "two, back": SECOND},
    "forward": {"one": [finding("a")], "three": [finding("a", status="PASS")]},
    "forward, elsewhere": {"two, other": [finding("a")]},
    "covered": {"one": [WEST, EAST], "two": [WEST], "three": [WEST], "four": [WEST]},
    "covered, elsewhere": {"one": [finding("c")]},
    "asked": {
        "one": [finding("a"), finding("b", status="PASS"), finding("c", frameworks={})],
        "two": [finding("a", status="PASS"), finding("b", status="PASS")],
    },
    "worst": {"one": WORST},
    "dropped": {"one": MANY, "two": MANY[:14], "three": MANY, "four": MANY[:10], "four, accepted": MANY[:10]},
    "dropped, elsewhere": {"one": [finding("elsewhere")]},
}
# What a scan covers of an account, where it is not all of it.
COVERED = {
    ("two", "covered"): Scope("covered", complete=False),
    ("three", "covered"): Scope("covered", "eu-west-1"),
    ("four", "dropped"): Scope("dropped", complete=False),
}
FORMS: Mapping[str, dict[str, Any]] = {
    "OPEN": {}, "PASSED": {"status": "PASS"}, "MUTED": {"muted": True}, "UNDECIDED": {"status": "MANUAL"},
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- any sequence


@dataclass(frozen=True)
class Known:
    """What the rule knows of a finding; ``None`` is a finding that was never seen."""

    state: str
    change: str
    first_seen: date
    opened_at: date | None = None
    closed_at: date | None = None
    closed_reason: str | None = None
    reopened_at: date | None = None
    reopen_count: int = 0


def after(known: Known | None, seen: str | None, day: date) -> Known | None:
    """The rule of the history, once more and in words of its own; ``seen`` is a state, None if it is not there."""
    if known is None:
        return None if seen is None else Known(seen, "NEW", day, day if seen == "OPEN" else None)
    state = seen or "CLOSED"
    if state == known.state:
        return known
    failing = known.opened_at is not None and known.closed_at is None
    if state == "CLOSED":
        return replace(known, state=state, change="VANISHED", closed_at=day, closed_reason="VANISHED")
    fixed = known.closed_reason == "FIXED"
    kept = replace(
        known,
        state=state,
        closed_at=known.closed_at if fixed else None,
        closed_reason=known.closed_reason if fixed else None,
    )
    suppressed = known.state in ("MUTED", "EXEMPT")
    if state == "OPEN":
        again = known.opened_at is not None and known.closed_at is not None
        return replace(
            kept,
            change="REOPENED" if again else "UNMUTED" if suppressed else "OPENED",
            opened_at=known.opened_at if failing else day,
            closed_at=None,
            closed_reason=None,
            reopened_at=day if again else known.reopened_at,
            reopen_count=known.reopen_count + again,
        )
    if state == "MUTED":
        return replace(kept, change="MUTED")
    returned = "UNMUTED" if suppressed else "RETURNED" if known.state == "CLOSED" else "CHANGED"
    if state == "PASSED" and known.opened_at is not None and not fixed:
        return replace(kept, change="FIXED" if failing else returned, closed_at=day, closed_reason="FIXED")
    return replace(kept, change=returned)


@dataclass(frozen=True)
class Sequences:
    """Accounts whose scans are chance, and what the rule says of each of their findings in the end."""

    accounts: Mapping[str, Mapping[str, Findings]]
    told: Mapping[tuple[str, str], Known]


def sequences(accounts: int = 15, checks: int = 10) -> Sequences:
    """Some of the days that are looked at twice find something else at first, which the second look replaces."""
    dice = random.Random(20251117)
    names = [f"check_{number:03}" for number in range(checks)]
    firsts = {ONE: "one, first", TWO: "two", FOUR: "four"}
    lasts = dict(zip(DAYS, ("one", "two, again", "three", "four, accepted", "five", "six"), strict=True))
    scans: dict[str, dict[str, Findings]] = {}
    told: dict[tuple[str, str], Known | None] = {}
    for account in (f"chance {number}" for number in range(accounts)):
        scans[account] = {}
        for day in DAYS:
            seen = {check: dice.choice([None, *FORMS]) for check in names}
            if day in firsts and dice.random() < 0.5:
                scans[account][firsts[day]] = [finding(check) for check in dice.sample(names, 6)]
            scans[account][lasts[day]] = [finding(check, **FORMS[state]) for check, state in seen.items() if state]
            for check in names:
                told[account, check] = after(told.get((account, check)), seen[check], day)
    return Sequences(scans, {key: known for key, known in told.items() if known})


CHANCE = sequences()


# ------------------------------------------------------------------------------------------------- the scans


@dataclass
class Scans:
    """The published scans: what each answered, its context, and the history of the scenarios' accounts after it."""

    runs: ComplianceRuns
    results: dict[str, RunResult] = field(default_factory=dict)
    contexts: dict[str, RunContext] = field(default_factory=dict)
    histories: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    async def look(self, name: str) -> None:
        """One run with every account that has this look."""
        accounts = {account: looks[name] for account, looks in {**ACCOUNTS, **CHANCE.accounts}.items() if name in looks}
        scopes = [COVERED.get((name, account), Scope(account)) for account in accounts]
        context = await self.runs.begin(PIPELINE, LOOKS[name], parameters={"accept_drop": name == "four, accepted"})
        planted = prowler_scan([of(account, one) for account, found in accounts.items() for one in found], scopes)
        self.contexts[name] = context
        self.results[name] = await self.runs.walk(PIPELINE, context, planted)
        self.histories[name] = await self.history()

    async def scan(self, day: date, account: str, *records: dict[str, Any], **changes: Any) -> RunResult:
        """One more scan, of one account."""
        return await self.runs.run(PIPELINE, day, prowler_scan([of(account, one) for one in records], **changes))

    async def history(self) -> list[tuple[Any, ...]]:
        rows = await self.runs.rows(
            "SELECT h.account_uid, h.check_uid, h.valid_from, h.valid_to, h.state, h.change, h.first_seen, "
            "h.closed_at, h.reopened_at, h.reopen_count FROM compliance_history AS h "
            "WHERE NOT STARTS_WITH(h.account_uid, 'chance') "
            "ORDER BY h.account_uid, h.check_uid, h.valid_from"
        )
        return [tuple(row.values()) for row in rows]

    def of(self, account: str, look: str) -> list[tuple[Any, ...]]:
        """An account's history after a look."""
        return [row[1:] for row in self.histories[look] if row[0] == account]

    def current(self, account: str, look: str) -> dict[str, str]:
        """The state of each finding of an account after a look."""
        return {row[0]: row[3] for row in self.of(account, look) if row[2] == date(9999, 12, 31)}

    async def states(self, *accounts: str) -> dict[str, dict[str, Any]]:
        """The findings of accounts as they are in the end."""
        rows = await self.runs.rows("SELECT * FROM aws_compliance_findings AS f")
        return {row["compliance_check_uid"]: row for row in rows if row["cloud_account_uid"] in accounts}

    def checks(self, look: str, status: str = "WARN") -> dict[str, str | None]:
        """The checks of a look that said something."""
        journal = self.contexts[look].journal
        assert isinstance(journal, MemoryJournal)
        return {item.check_name: item.actual for item in journal.results if item.status == status}


def of(account: str, record: dict[str, Any]) -> dict[str, Any]:
    """The finding in this account."""
    return {**record, "cloud": {**record["cloud"], "account": {**record["cloud"]["account"], "uid": account}}}


@pytest.fixture(scope="module")
def scans(warehouse: Warehouse, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Scans:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    runs = ComplianceRuns(warehouse, ACME, endpoints, tmp_path_factory.mktemp("staging"))
    made = Scans(runs)

    async def look() -> None:
        await runs.prepare("aws")
        for name in LOOKS:
            await made.look(name)

    asyncio.run(look())
    return made


def test_every_scan_is_published_whole(scans: Scans) -> None:
    accounts = {**ACCOUNTS, **CHANCE.accounts}
    found = {look: sum(len(looks.get(look, ())) for looks in accounts.values()) for look in LOOKS}
    found["one"] -= len(WORST) - 1
    assert {look: (result.outcome, result.rows_published) for look, result in scans.results.items()} == {
        look: (Outcome.PUBLISHED, number) for look, number in found.items()
    }


async def test_three_days_give_exactly_these_states(scans: Scans) -> None:
    found = await scans.states("states", "states, elsewhere")
    columns = (
        "state", "last_change", "first_seen", "last_seen", "changed_at", "opened_at", "closed_at", "closed_reason",
        "reopened_at", "reopen_count",
    )  # fmt: skip
    assert {check: tuple(row[name] for name in columns) for check, row in found.items()} == {
        "unchanged": ("OPEN", "NEW", ONE, THREE, ONE, ONE, None, None, None, 0),
        "fixed": ("PASSED", "FIXED", ONE, THREE, TWO, ONE, TWO, "FIXED", None, 0),
        "reopened": ("OPEN", "REOPENED", ONE, THREE, THREE, THREE, None, None, THREE, 1),
        "muted": ("OPEN", "UNMUTED", ONE, THREE, THREE, ONE, None, None, None, 0),
        "vanished": ("CLOSED", "VANISHED", ONE, ONE, TWO, ONE, TWO, "VANISHED", None, 0),
        "passing": ("PASSED", "NEW", ONE, THREE, ONE, None, None, None, None, 0),
        "new": ("OPEN", "CHANGED", TWO, THREE, THREE, TWO, None, None, None, 0),
        "returning": ("OPEN", "REOPENED", ONE, THREE, THREE, THREE, None, None, THREE, 1),
        "manual": ("UNDECIDED", "NEW", ONE, THREE, ONE, None, None, None, None, 0),
        "elsewhere": ("OPEN", "NEW", ONE, ONE, ONE, ONE, None, None, None, 0),
    }
    assert len(scans.of("states", "six")) == 8 + 5 + 4 + 1, "eight new, then changes only"
    assert len(scans.of("states, elsewhere", "six")) == 1
    judged = [event for event in await scans.runs.events() if not event["cloud"]["account"]["uid"].startswith("chance")]
    assert len(judged) == len([row for row in scans.histories["six"] if row[3] == date(9999, 12, 31)])
    assert [fault for event in judged for fault in faults(event)] == []


def test_a_day_run_again_is_replaced_to_the_last_letter(scans: Scans) -> None:
    once = scans.of("again", "two")
    assert len(once) == 7
    assert scans.of("again", "two, again") == once, "the same again leaves the same"
    assert [row[:5] for row in scans.of("again", "two, other")] == [
        (check, ONE, date(9999, 12, 31), state, "NEW")
        for check, state in (("fixed", "OPEN"), ("gone", "OPEN"), ("kept", "OPEN"), ("passing", "PASSED"))
    ], "a second scan that saw no change leaves no trace of the first"
    assert scans.of("again", "two, back") == once


async def test_history_only_goes_forward(scans: Scans) -> None:
    before = await scans.history()
    result = await scans.scan(TWO, "forward", finding("a"), finding("b"))
    assert (result.outcome, result.rows_published) == (Outcome.SUPERSEDED, 0)
    assert result.superseded_by == scans.contexts["three"].pipeline_logging_id
    late = await scans.scan(THREE, "forward", finding("a"), started=datetime(2025, 11, 19, tzinfo=UTC))
    assert late.outcome is Outcome.SUPERSEDED, "of two looks on one day the later one stands"
    assert await scans.history() == before
    assert scans.current("forward, elsewhere", "two, other") == {"a": "OPEN"}, "another account has its own"


async def test_what_a_scan_does_not_cover_is_not_closed(scans: Scans) -> None:
    assert scans.current("covered", "three") == dict.fromkeys("ab", "OPEN")
    found = await scans.states("covered", "covered, elsewhere")
    assert {check: row["state"] for check, row in found.items()} == {"a": "OPEN", "b": "CLOSED", "c": "OPEN"}
    assert (found["b"]["last_seen"], found["b"]["closed_at"]) == (TWO, FOUR)


async def test_questions_are_answered_for_a_day_for_each_day_and_for_what_changed(scans: Scans) -> None:
    store = BigQueryComplianceStore(scans.runs.warehouse)
    compliance = Compliance(store, now=lambda: datetime(2025, 11, 19, tzinfo=UTC))

    def question(**asked: Any) -> ComplianceQuestion:
        return compliance.check(ComplianceRequest(tenant_id=ACME, **{"account": "asked", **asked}))

    [now] = await compliance.groups(question(), 10, None)
    assert (now.passed, now.failed) == (2, 0)
    trend = question(group_by=("day", "standard"), start_date="2025-11-16")
    days_found = await compliance.groups(trend, 10, None)
    assert [(group.values, group.passed, group.failed) for group in days_found] == [
        (("2025-11-17", "CIS-1.4"), 1, 1),
        (("2025-11-17", ""), 0, 1),
        (("2025-11-18", "CIS-1.4"), 2, 0),
        (("2025-11-19", "CIS-1.4"), 2, 0),
    ]
    first = days_found[0]
    assert await compliance.groups(trend, 10, (first.day, first.failed, first.key)) == days_found[1:]
    changed = await compliance.changes(question(changed_since="2025-11-18"), 10, None)
    assert {(change.check, change.kind) for change in changed} == {("a", "FIXED"), ("c", "VANISHED")}
    rates = await scans.runs.rows(
        "SELECT r.day, r.passed, r.open, r.pass_rate FROM compliance_pass_rates AS r "
        "WHERE r.account_uid = 'asked' ORDER BY r.day"
    )
    assert [(row["day"], row["passed"], row["open"], Decimal(str(row["pass_rate"]))) for row in rates] == [
        (ONE, 1, 1, Decimal("0.5")),
        (TWO, 2, 0, Decimal(1)),
    ]
    # Of all accounts: what the views of findings say.
    compliance = Compliance(store, now=lambda: datetime(2025, 11, 22, tzinfo=UTC))
    everything = await compliance.groups(question(account="", group_by=("account",)), 100, None)
    counted = await scans.runs.rows(
        "SELECT f.cloud_account_uid AS account, COUNTIF(f.state = 'PASSED') AS passed, "
        "COUNTIF(f.state = 'OPEN') AS failed FROM aws_compliance_findings AS f WHERE f.state != 'CLOSED' GROUP BY 1"
    )
    assert {(*group.values, group.passed, group.failed) for group in everything} == {
        (row["account"], row["passed"], row["failed"]) for row in counted
    }


def test_of_several_records_of_a_finding_the_worst_stands_and_a_warning_says_so(scans: Scans) -> None:
    assert scans.current("worst", "one") == {"a": "OPEN"}
    assert scans.checks("one") == {"findings_distinct": "3"}


async def test_what_is_not_a_finding_stops_the_run(scans: Scans) -> None:
    odd: dict[str, dict[str, Any]] = {
        "resource_known": {"resources": [{"uid": "", "name": ""}]},
        "severity_allowed": {"severity": "Awful"},
        "status_allowed": {"status_code": "DUNNO"},
        "record_complete": {"time": None},
        "check_known": {"metadata": {}},
        "account_known": {"cloud": {"account": {"uid": ""}}},
    }
    before = await scans.history()
    records = [finding("fine"), *({**finding("odd"), **change} for change in odd.values())]
    with pytest.raises(errors.FailedPrecondition) as caught:
        await scans.runs.run(PIPELINE, ONE, prowler_scan(records))
    assert caught.value.reason == "QUALITY_CHECK_FAILED"
    assert set(caught.value.metadata["checks"].split(",")) == set(odd)
    assert await scans.history() == before


async def test_a_drop_that_nobody_explained_stops_the_run(scans: Scans) -> None:
    accounts = {**ACCOUNTS, **CHANCE.accounts}
    absent = [name for name, looks in accounts.items() if "one" in looks and "two" not in looks]
    assert scans.checks("two") == {"no_large_drop": "10", "no_account_absent": str(len(absent))}
    before = await scans.history()
    with pytest.raises(errors.FailedPrecondition) as caught:
        await scans.scan(FOUR, "dropped", *MANY[:10])
    assert caught.value.metadata["checks"] == "no_unexplained_drop"
    assert await scans.history() == before
    # Not if the scan was not whole, and not if somebody accepts it.
    assert scans.current("dropped", "four")["check_23"] == "OPEN"
    assert scans.current("dropped", "four, accepted")["check_23"] == "CLOSED"


async def test_any_sequence_of_scans_leaves_what_the_rule_says(scans: Scans) -> None:
    rows = await scans.runs.rows(
        "SELECT * FROM aws_compliance_findings AS f WHERE STARTS_WITH(f.cloud_account_uid, 'chance')"
    )
    columns = ("first_seen", "opened_at", "closed_at", "closed_reason", "reopened_at", "reopen_count")
    assert {
        (row["cloud_account_uid"], row["compliance_check_uid"]): Known(
            row["state"], row["last_change"], *(row[name] for name in columns)
        )
        for row in rows
    } == CHANCE.told
    twice = await scans.runs.rows(
        "SELECT h.finding_uid FROM compliance_history AS h GROUP BY h.finding_uid, h.valid_to HAVING COUNT(*) > 1"
    )
    assert twice == [], "one version at a time"
