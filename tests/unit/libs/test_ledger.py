"""libs.ledger on the in-memory table: the conformance suite, the rules of group commit, and faults at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs import errors
from libs.ledger import Appender, Ledger, Table
from tests.contract.store_suites import Counter, TableSuite, take
from tests.support.examples import examples
from tests.support.fakes import Clock, Faults, MemoryInsert, MemoryTable, SkippingLoop


def memory(*rows: Counter, faults: Faults | None = None, seed: int = 0) -> MemoryTable[Counter]:
    return MemoryTable(rows, key=lambda row: row.key, faults=faults, seed=seed)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the fake yields between steps; there is nothing to signal
        await asyncio.sleep(0)


class TestMemoryTable(TableSuite):
    async def make(self, rows: list[Counter]) -> Table[Counter]:
        return memory(*rows)


async def test_asks_of_one_moment_share_one_read_and_one_write() -> None:
    table = memory(*(Counter(f"t{n}", limit=10) for n in range(50)))
    ledger = Ledger(table, take, now=Clock())
    answers = await asyncio.gather(*(ledger.ask(f"t{n % 50}", f"run-{n}") for n in range(200)))
    assert sorted(answers) == sorted([1, 2, 3, 4] * 50)
    assert (table.reads, table.writes) == (1, 1)


async def test_asks_that_arrive_during_a_write_go_into_the_next_one() -> None:
    table = memory(Counter("a", limit=1000))
    ledger = Ledger(table, take, now=Clock())
    first = asyncio.create_task(ledger.ask("a", "first"))
    await until(lambda: table.in_flight == 1)
    later = [asyncio.create_task(ledger.ask("a", f"run-{n}")) for n in range(100)]
    assert await first == 1
    assert sorted(await asyncio.gather(*later)) == list(range(2, 102))
    assert (table.writes, table.most_in_flight) == (2, 1)


async def test_max_rows_bounds_a_batch_but_not_the_asks_of_a_row() -> None:
    table = memory(*(Counter(f"t{n}", limit=10) for n in range(5)))
    ledger = Ledger(table, take, now=Clock(), max_rows=2)
    await asyncio.gather(*(ledger.ask(f"t{n % 5}", f"run-{n}") for n in range(20)))
    assert table.writes == 3


async def test_a_refusal_is_answered_after_the_read_without_a_write() -> None:
    table = memory(Counter("a", limit=0))
    ledger = Ledger(table, take, now=Clock())
    with pytest.raises(errors.ResourceExhausted):
        await ledger.ask("a", "run")
    assert await ledger.ask("absent", "run") == 0
    assert (table.reads, table.writes) == (2, 0)


async def test_a_refusal_waits_for_the_write_it_rests_on() -> None:
    table = memory(Counter("a", limit=1), faults=Faults(conflict=1.0))
    ledger = Ledger(table, take, now=Clock())
    granted = asyncio.create_task(ledger.ask("a", "one"))
    refused = asyncio.create_task(ledger.ask("a", "two"))
    await until(lambda: table.writes == 2)
    assert not granted.done() and not refused.done()
    table.rows["a"] = Counter("a", 2, 1, ("somebody else",))
    with pytest.raises(errors.ResourceExhausted):
        await granted
    with pytest.raises(errors.ResourceExhausted):
        await refused


async def test_a_lost_reply_is_decided_again_to_the_same_answer() -> None:
    table = memory(Counter("a", limit=5), faults=Faults(lost_reply=1.0))
    ledger = Ledger(table, take, now=Clock())
    assert await asyncio.gather(*(ledger.ask("a", f"run-{n}") for n in range(5))) == [1, 2, 3, 4, 5]
    assert table.rows["a"].taken == tuple(f"run-{n}" for n in range(5)) and table.writes == 1


async def test_a_cancelled_asker_hurts_nobody() -> None:
    table = memory(Counter("a", limit=10), Counter("b", limit=10))
    ledger = Ledger(table, take, now=Clock())
    tasks = [asyncio.create_task(ledger.ask("a" if n % 2 else "b", f"run-{n}")) for n in range(6)]
    await until(lambda: table.in_flight == 1)
    tasks[0].cancel()
    tasks[1].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in done] == [True, True, False, False, False, False]
    assert await ledger.ask("a", "later") == 4
    await ledger.close()


async def test_a_defect_in_one_decision_reaches_its_asker_only() -> None:
    def decide(row: Counter | None, request: str, now: datetime) -> tuple[Counter | None, int]:
        if request == "bad":
            raise ZeroDivisionError
        return take(row, request, now)

    ledger = Ledger(memory(Counter("a", limit=9)), decide, now=Clock())
    good, bad = await asyncio.gather(ledger.ask("a", "good"), ledger.ask("a", "bad"), return_exceptions=True)
    assert good == 1 and isinstance(bad, ZeroDivisionError)


async def test_the_deadline_says_whether_a_write_was_sent() -> None:
    short = timedelta(milliseconds=50)
    down = Ledger(memory(Counter("a", limit=1), faults=Faults(read_unavailable=1.0)), take, now=Clock())
    with pytest.raises(errors.Unavailable) as caught:
        await down.ask("a", "run", deadline=short)
    assert not isinstance(caught.value, errors.Ambiguous)
    losing = Ledger(memory(Counter("a", limit=1), faults=Faults(conflict=1.0)), take, now=Clock())
    with pytest.raises(errors.Ambiguous):
        await losing.ask("a", "run", deadline=short)


async def test_a_terminal_failure_of_the_table_is_everybodys_answer() -> None:
    class Missing(MemoryTable[Counter]):
        async def read(self, keys):  # type: ignore[no-untyped-def]
            raise errors.FailedPrecondition("STORE_OBJECT_MISSING", "Run make setup-bigquery.")

    ledger = Ledger(Missing(key=lambda row: row.key), take, now=Clock())
    answers = await asyncio.gather(*(ledger.ask("a", str(n)) for n in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [errors.FailedPrecondition] * 3


async def test_appends_share_statements_and_survive_lost_replies() -> None:
    insert = MemoryInsert[int](faults=Faults(lost_reply=0.5, unavailable=0.2), seed=3)
    appender = Appender(insert, max_rows=40)
    await asyncio.gather(*(appender.append(n) for n in range(100)))
    await appender.close()
    assert insert.rows == list(range(100))
    assert list(insert.batches.values()) == [40, 40, 20]


async def test_an_append_that_was_never_confirmed_says_so() -> None:
    insert = MemoryInsert[int](faults=Faults(lost_reply=1.0))
    appender = Appender(insert, deadline=timedelta(milliseconds=400))
    with pytest.raises(errors.Ambiguous):
        await appender.append(1)
    insert.faults.lost_reply = 0.0
    await appender.close()
    await appender.append(2)
    assert insert.rows == [1, 2]


@settings(max_examples=examples(60, 600), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    limit=st.integers(0, 12),
    faults=st.builds(
        Faults,
        conflict=st.floats(0, 0.4),
        lost_reply=st.floats(0, 0.4),
        partial=st.floats(0, 0.4),
        unavailable=st.floats(0, 0.3),
        read_unavailable=st.floats(0, 0.3),
    ),
    requests=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15), st.integers(0, 2)), max_size=40),
)
def test_under_faults_every_answer_is_true_and_no_limit_is_exceeded(
    seed: int, limit: int, faults: Faults, requests: list[tuple[str, int, int]]
) -> None:
    table = memory(*(Counter(key, limit=limit) for key in "abc"), faults=faults, seed=seed)

    async def run() -> list[int | BaseException]:
        ledgers = [Ledger(table, take, now=Clock(), max_rows=2) for _ in range(3)]
        asks = (ledgers[process].ask(key, f"run-{n}") for key, n, process in requests)
        return await asyncio.gather(*asks, return_exceptions=True)

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        answers = runner.run(run())
    for (key, n, _), answer in zip(requests, answers, strict=True):
        row = table.rows[key]
        if isinstance(answer, int):
            assert row.taken[answer - 1] == f"run-{n}"
        elif isinstance(answer, errors.ResourceExhausted):
            assert f"run-{n}" not in row.taken and len(row.taken) == limit
        else:
            assert isinstance(answer, errors.Unavailable)
    for row in table.rows.values():
        assert len(row.taken) == len(set(row.taken)) <= limit


class LedgerMachine(RuleBasedStateMachine):
    """Asks, faults, cancellations and other writers in any order; what was answered stays true."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SkippingLoop()
        self.table = memory(Counter("a", limit=4), Counter("b", limit=1))
        self.ledgers = [Ledger(self.table, take, now=Clock()) for _ in range(2)]
        self.asks: list[tuple[str, str, asyncio.Task[int]]] = []
        self.granted: dict[tuple[str, str], int] = {}

    @rule(key=st.sampled_from("ab"), n=st.integers(0, 6), process=st.integers(0, 1))
    def ask(self, key: str, n: int, process: int) -> None:
        coroutine = self.ledgers[process].ask(key, f"run-{n}")
        self.asks.append((key, f"run-{n}", self.loop.create_task(coroutine)))

    @rule(steps=st.integers(1, 6))
    def turn(self, steps: int) -> None:
        for _ in range(steps):
            self.loop.run_until_complete(asyncio.sleep(0))
        self.collect()

    @rule(kind=st.sampled_from(["conflict", "lost_reply", "partial", "unavailable", "read_unavailable"]))
    def break_it(self, kind: str) -> None:
        setattr(self.table.faults, kind, 0.5)

    @rule()
    def mend_it(self) -> None:
        self.table.faults = Faults()

    @precondition(lambda self: self.asks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.asks))[2].cancel()

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        for row in self.table.rows.values():
            assert len(row.taken) == len(set(row.taken)) <= row.limit
        for (key, request), slot in self.granted.items():
            assert self.table.rows[key].taken[slot - 1] == request

    def collect(self) -> None:
        for key, request, task in self.asks:
            if not task.done() or task.cancelled():
                continue
            if task.exception() is None:
                assert self.granted.setdefault((key, request), task.result()) == task.result()
            else:
                assert isinstance(task.exception(), errors.ResourceExhausted)
        self.asks = [ask for ask in self.asks if not ask[2].done()]

    def teardown(self) -> None:
        self.table.faults = Faults()
        for _, _, task in self.asks:
            self.loop.run_until_complete(asyncio.wait([task]))
        self.collect()
        self.no_limit_is_exceeded()
        for ledger in self.ledgers:
            self.loop.run_until_complete(ledger.close())
        self.loop.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=examples(40, 400), stateful_step_count=25, deadline=None)
