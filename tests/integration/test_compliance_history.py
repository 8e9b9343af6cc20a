"""The history of findings: what days of scans leave, what a day run again leaves, and what a scan may close."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
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
from services.pipeline_executor.run_context import Outcome, SourceEndpoints
from tests.conftest import Emulator
from tests.support.compliance import ComplianceRuns, days, faults, finding, prowler_scan

ACME = TenantId("acme")
PIPELINE = "aws/compliance/prowler"
ONE, TWO, THREE, FOUR = days(4)


@pytest.fixture(scope="module")
def made(warehouse: Warehouse, bigquery_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> ComplianceRuns:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    runs = ComplianceRuns(warehouse, ACME, endpoints, tmp_path_factory.mktemp("staging"))
    asyncio.run(runs.prepare("aws"))
    return runs


@pytest.fixture
def runs(made: ComplianceRuns) -> ComplianceRuns:
    """No findings and no scans."""
    for table, column in (("compliance_history", "valid_to"), ("compliance_scans", "scan_date")):
        made.warehouse.client.query(f"DELETE FROM acme.{table} AS t WHERE t.{column} IS NOT NULL").result()
    return made


async def scan(runs: ComplianceRuns, day: date, *records: dict[str, Any], **changes: Any) -> RunResult:
    given = {name: changes.pop(name) for name in ("scopes", "started") if name in changes}
    return await runs.run(PIPELINE, day, prowler_scan(records, **given), **changes)


async def states(runs: ComplianceRuns) -> dict[str, dict[str, Any]]:
    rows = await runs.rows("SELECT * FROM aws_compliance_findings AS f")
    return {row["compliance_check_uid"]: row for row in rows}


async def history(runs: ComplianceRuns) -> list[tuple[Any, ...]]:
    rows = await runs.rows(
        "SELECT h.check_uid, h.valid_from, h.valid_to, h.state, h.change, h.first_seen, h.closed_at, h.reopened_at, "
        "h.reopen_count FROM compliance_history AS h ORDER BY h.check_uid, h.valid_from"
    )
    return [tuple(row.values()) for row in rows]


async def test_three_days_give_exactly_these_states(runs: ComplianceRuns) -> None:
    other = finding("elsewhere", account="999988887777")
    await scan(
        runs, ONE, other,
        finding("unchanged"), finding("fixed"), finding("reopened"), finding("muted"), finding("vanished"),
        finding("passing", status="PASS"), finding("returning"), finding("manual", status="MANUAL"),
    )  # fmt: skip
    await scan(
        runs, TWO,
        finding("unchanged", detail="Another text."), finding("fixed", status="PASS"),
        finding("reopened", status="PASS"), finding("muted", muted=True), finding("passing", status="PASS"),
        finding("new"), finding("manual", status="MANUAL"),
    )  # fmt: skip
    result = await scan(
        runs, THREE,
        finding("unchanged"), finding("fixed", status="PASS"), finding("reopened"), finding("muted"),
        finding("passing", status="PASS"), finding("new", severity="Low"), finding("returning"),
        finding("manual", status="MANUAL"),
    )  # fmt: skip
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, 8)
    found = await states(runs)
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
    [versions] = await runs.rows("SELECT COUNT(*) AS n FROM compliance_history AS h")
    assert versions["n"] == 9 + 5 + 4 + 1, "nine new, then changes only"
    assert [fault for event in await runs.events() for fault in faults(event)] == []


async def test_a_day_run_again_is_replaced_to_the_last_letter(runs: ComplianceRuns) -> None:
    first = [finding("kept"), finding("fixed"), finding("gone"), finding("passing", status="PASS")]
    second = [finding("kept"), finding("fixed", status="PASS"), finding("new"), finding("passing", status="PASS")]
    await scan(runs, ONE, *first)
    await scan(runs, TWO, *second)
    once = await history(runs)
    await scan(runs, TWO, *second)
    assert await history(runs) == once, "the same again leaves the same"
    await scan(runs, TWO, *first)
    assert [row[:5] for row in await history(runs)] == [
        (check, ONE, date(9999, 12, 31), state, "NEW")
        for check, state in (("fixed", "OPEN"), ("gone", "OPEN"), ("kept", "OPEN"), ("passing", "PASSED"))
    ], "a second scan that saw no change leaves no trace of the first"
    await scan(runs, TWO, *second)
    assert await history(runs) == once


async def test_history_only_goes_forward(runs: ComplianceRuns) -> None:
    await scan(runs, ONE, finding("a"))
    later = await scan(runs, THREE, finding("a", status="PASS"))
    before = await history(runs)
    result = await scan(runs, TWO, finding("a"), finding("b"))
    assert (result.outcome, result.rows_published) == (Outcome.SUPERSEDED, 0)
    [run] = await runs.rows(
        "SELECT r.pipeline_logging_id AS id FROM x_meta_pipeline_runs AS r "
        f"WHERE r.start_date = DATE '{THREE}' ORDER BY r.end_time DESC LIMIT 1"
    )
    assert result.superseded_by == run["id"]
    assert (later.outcome, await history(runs)) == (Outcome.PUBLISHED, before)
    late = await scan(runs, THREE, finding("a"), started=datetime(2025, 11, 19, tzinfo=UTC))
    assert late.outcome is Outcome.SUPERSEDED, "of two looks on one day the later one stands"
    other = await scan(runs, TWO, finding("a", account="999988887777"))
    assert other.outcome is Outcome.PUBLISHED, "another account has a history of its own"


async def test_what_a_scan_does_not_cover_is_not_closed(runs: ComplianceRuns) -> None:
    west, east = finding("a", region="eu-west-1"), finding("b", region="us-east-1")
    await scan(runs, ONE, west, east, finding("c", account="2"))
    await scan(runs, TWO, west, scopes=[Scope("111122223333", complete=False)])
    await scan(runs, THREE, west, scopes=[Scope("111122223333", "eu-west-1")])
    assert {check: row["state"] for check, row in (await states(runs)).items()} == dict.fromkeys("abc", "OPEN")
    await scan(runs, FOUR, west)
    found = await states(runs)
    assert {check: row["state"] for check, row in found.items()} == {"a": "OPEN", "b": "CLOSED", "c": "OPEN"}
    assert (found["b"]["last_seen"], found["b"]["closed_at"]) == (TWO, FOUR)


async def test_questions_are_answered_for_a_day_for_each_day_and_for_what_changed(runs: ComplianceRuns) -> None:
    await scan(runs, ONE, finding("a"), finding("b", status="PASS"), finding("c", frameworks={}))
    await scan(runs, TWO, finding("a", status="PASS"), finding("b", status="PASS"))
    store = BigQueryComplianceStore(runs.warehouse)
    compliance = Compliance(store, now=lambda: datetime(2025, 11, 19, tzinfo=UTC))

    def question(**asked: Any) -> ComplianceQuestion:
        return compliance.check(ComplianceRequest(tenant_id=ACME, **asked))

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
    rates = await runs.rows(
        "SELECT r.day, r.passed, r.open, r.pass_rate FROM compliance_pass_rates AS r ORDER BY r.day"
    )
    assert [(row["day"], row["passed"], row["open"], Decimal(str(row["pass_rate"]))) for row in rates] == [
        (ONE, 1, 1, Decimal("0.5")),
        (TWO, 2, 0, Decimal(1)),
    ]


async def test_of_several_records_of_a_finding_the_worst_stands_and_a_warning_says_so(runs: ComplianceRuns) -> None:
    context = await runs.begin(PIPELINE, ONE)
    records = [finding("a", status="PASS"), finding("a", muted=True), finding("a", severity="Low"), finding("a")]
    await runs.walk(PIPELINE, context, prowler_scan(records))
    found = await states(runs)
    assert {check: (row["state"], row["severity"]) for check, row in found.items()} == {"a": ("OPEN", "High")}
    [check] = [item for item in context.journal.results if item.check_name == "findings_distinct"]
    assert (check.status, check.actual) == ("WARN", "3")


async def test_what_is_not_a_finding_stops_the_run(runs: ComplianceRuns) -> None:
    odd: dict[str, dict[str, Any]] = {
        "resource_known": {"resources": [{"uid": "", "name": ""}]},
        "severity_allowed": {"severity": "Awful"},
        "status_allowed": {"status_code": "DUNNO"},
        "record_complete": {"time": None},
        "check_known": {"metadata": {}},
        "account_known": {"cloud": {"account": {"uid": ""}}},
    }
    with pytest.raises(errors.FailedPrecondition) as caught:
        await scan(runs, ONE, finding("fine"), *({**finding("odd"), **change} for change in odd.values()))
    assert caught.value.reason == "QUALITY_CHECK_FAILED"
    assert set(caught.value.metadata["checks"].split(",")) == set(odd)
    assert await history(runs) == []


async def test_a_drop_that_nobody_explained_stops_the_run(runs: ComplianceRuns) -> None:
    everything = [finding(f"check_{number}") for number in range(24)]
    await scan(runs, ONE, *everything, finding("elsewhere", account="2"))
    context = await runs.begin(PIPELINE, TWO)
    await runs.walk(PIPELINE, context, prowler_scan(everything[:14]))
    warned = {item.check_name: item.actual for item in context.journal.results if item.status == "WARN"}
    assert warned == {"no_large_drop": "10", "no_account_absent": "1"}
    await scan(runs, THREE, *everything)
    with pytest.raises(errors.FailedPrecondition) as caught:
        await scan(runs, FOUR, *everything[:10])
    assert caught.value.metadata["checks"] == "no_unexplained_drop"
    await scan(runs, FOUR, *everything[:10], scopes=[Scope("111122223333", complete=False)])
    assert (await states(runs))["check_23"]["state"] == "OPEN"
    await scan(runs, FOUR, *everything[:10], parameters={"accept_drop": True})
    assert (await states(runs))["check_23"]["state"] == "CLOSED"


# ------------------------------------------------------------------------------------------------- the rule


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


async def test_any_sequence_of_scans_leaves_what_the_rule_says(runs: ComplianceRuns) -> None:
    dice = random.Random(20251117)
    checks = [f"check_{number:03}" for number in range(150)]
    told: dict[str, Known | None] = dict.fromkeys(checks)
    forms: dict[str, dict[str, Any]] = {
        "OPEN": {}, "PASSED": {"status": "PASS"}, "MUTED": {"muted": True}, "UNDECIDED": {"status": "MANUAL"},
    }  # fmt: skip
    for day in days(6):
        seen = {check: dice.choice([None, *forms]) for check in checks}
        records = [finding(check, **forms[state]) for check, state in seen.items() if state]
        if dice.random() < 0.5:  # a first look that is replaced by the second one of the day
            await scan(
                runs, day, *[finding(check) for check in dice.sample(checks, 90)], parameters={"accept_drop": True}
            )
        await scan(runs, day, *records, parameters={"accept_drop": True})
        told = {check: after(told[check], seen[check], day) for check in checks}
    found = await states(runs)
    columns = ("first_seen", "opened_at", "closed_at", "closed_reason", "reopened_at", "reopen_count")
    assert {
        check: Known(row["state"], row["last_change"], *(row[name] for name in columns)) for check, row in found.items()
    } == {check: known for check, known in told.items() if known}
    twice = await runs.rows(
        "SELECT h.finding_uid FROM compliance_history AS h GROUP BY h.finding_uid, h.valid_to HAVING COUNT(*) > 1"
    )
    assert twice == [], "one version at a time"
