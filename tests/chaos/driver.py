"""The phases of an endurance run on one stack: rolling restarts, overload, chaos; then drain and check.

``run`` is what ``make chaos`` and the test of it call. Whatever was asked in any phase is held against the store at the
end, and a report says what was done, survived and found.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from google.cloud import bigquery

from deploy.local import processes
from deploy.local.layout import PYTHONPATH, Folder
from tests.chaos import faults, invariants, overload, planted
from tests.chaos.invariants import Sampler
from tests.chaos.load import Client, Customer, History, Jobs, Kind
from tests.chaos.source import OUT_OF_REACH, Growth, Source, plant
from tests.support.ports import free_port
from tests.support.stack import ROOT, Stack, until

# Figures that only build/chaos.json has.
_LONG = frozenset({"operations", "most_leases", "restarts"})

type Say = Callable[[str], None]

_PLANS = ("SCALE", "PROFESSIONAL", "SCALE", "STARTER", "SCALE", "PROFESSIONAL", "SCALE", "SCALE")
_BOOT_SECONDS, _BEGIN_SECONDS, _DRAIN_SECONDS, _LEAVE_SECONDS = 300.0, 600.0, 400.0, 180.0
_ENDED = (
    "SELECT r.`trigger` AS `by`, r.status, IFNULL(r.outcome, r.error_reason) AS what, COUNT(*) AS n "
    "FROM x_meta_pipeline_runs AS r GROUP BY 1, 2, 3"
)
_HANDED_BACK = "INTERRUPTED"
_FAILED = "SELECT error_reason AS r, COUNT(*) AS n FROM x_meta_pipeline_runs WHERE status = 'FAILED' GROUP BY 1"
_SETTINGS = {
    # So small that faults and load meet the limits.
    "CONVERGENCE_MAX_RUNS": "6",
    "CONVERGENCE_MAX_CONCURRENT_RPCS": "100",
    "CONVERGENCE_DRAIN_SECONDS": "15",
}


@dataclass(slots=True)
class Report:
    """What was done, what was found. ``wrong`` empty: everything held."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The figures, a line each; the last says what it comes to."""
        lines = [f"{name}: {_line(value)}" for name, value in self.figures.items() if name not in _LONG]
        faults, asked, runs = (self.figures.get(name, {}) for name in ("faults", "requests", "runs"))
        completed = sum(number for name, number in runs.items() if "COMPLETED" in name)
        verdict = "everything held" if not self.wrong else f"{len(self.wrong)} THINGS WENT WRONG"
        return "\n".join(
            [
                *lines,
                f"seed {self.seed}: {sum(faults.values())} faults, {sum(asked.values())} requests "
                f"({asked.get('ok', 0)} ok), {sum(runs.values())} runs ({completed} completed): {verdict}",
            ]
        )


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_line(one)}" for name, one in value.items())
    return str(value)


async def run(
    folder: Path,
    *,
    seed: int,
    phases: Collection[str],
    plan: Sequence[faults.Fault],
    tenants: int,
    paced: bool = False,
    say: Say = print,
) -> Report:
    """Runs the phases on a stack of their own in ``folder``, which is left behind if anything went wrong.

    ``plan`` is what phase ``chaos`` does, at its times, or (``paced``) each part when all is well again; the seed is
    the customers' mind.
    """
    say(f"seed {seed}; logs in {folder}")
    with running(folder) as stack:
        source = await asyncio.to_thread(plant, stack)
        report = await _Endurance(stack, source, folder, seed, plan, paced, tenants, say).run(phases)
    if not report.wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return report


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """The stack of two replicas each, from its start to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    own = processes.start(
        [sys.executable, "-m", "tests.chaos.stack"],
        env=_kept_environment() | _SETTINGS | {"DATA_DIR": str(folder), "PORT": str(free_port())},
        cwd=ROOT,
        log=folder / "supervisor.log",
    )
    try:
        file = Folder(folder).stack_file
        until(lambda: file.exists() or own.poll() is not None, bool, timeout=_BOOT_SECONDS, what="the stack is ready")
        assert own.poll() is None, processes.tail(folder / "supervisor.log", 40)
        yield Stack.load(file)
    finally:
        own.terminate()
        try:
            own.wait(60)
        except subprocess.TimeoutExpired:
            own.kill()
            own.wait()


def _kept_environment() -> dict[str, str]:
    import os

    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}


class _Endurance:
    """One run of all phases."""

    def __init__(
        self,
        stack: Stack,
        source: Source,
        folder: Path,
        seed: int,
        plan: Sequence[faults.Fault],
        paced: bool,
        tenants: int,
        say: Say,
    ) -> None:
        self._stack = stack
        self._source = source
        self._seed = seed
        self._plan = plan
        self._paced = paced
        self._say = say
        self._history = History(folder / "requests.jsonl")
        self._client = Client(stack, self._history)
        self._customers = [
            Customer(f"endure_{n}", _PLANS[n % len(_PLANS)], stack, self._client, source, seed * 1000 + n)
            for n in range(tenants)
        ]
        self._jobs = Jobs(self._client, stack.admin_api_key, seed)
        self._report = Report(seed)
        self._dice = random.Random(seed)
        self._growth = Growth(stack, source, seed)
        self._held: Counter[str] = Counter()
        self._worked = 0.0

    async def run(self, phases: Collection[str]) -> Report:
        sampler = Sampler(self._stack, self._customers)
        harm = faults.Harm(self._stack, lambda line: self._say(f"  {line}"))
        known: list[Customer] = []
        try:
            async with self._running(sampler.live()):
                if "rolling" in phases:
                    await self._rolling()
                if "overload" in phases:
                    await self._overload()
                if "chaos" in phases:
                    await self._chaos(harm)
                await harm.heal()
                await _until_healthy(self._stack)
                # Whoever has not got through yet asks again, as a customer would.
                known = [customer for customer in self._customers if customer.begun]
                for each in known:
                    each.leaving = False
                await asyncio.wait_for(asyncio.gather(*(each.begin() for each in known)), _BEGIN_SECONDS)
                await self._drain(known)
            for date in self._source.dates:
                await asyncio.to_thread(self._growth.look, date)
            found = await invariants.check(self._stack, known, self._client, self._source, self._held)
            self._report.wrong += sampler.wrong + self._history.wrong + found
            self._sum_up(known, harm, sampler)
            if not self._report.wrong:
                await self._prove(known, sampler)
        finally:
            await harm.close()
            await self._client.close()
        return self._report

    async def _prove(self, known: Sequence[Customer], sampler: Sampler) -> None:
        """Nothing was found: then what is planted now must be."""
        number, missed = await asyncio.to_thread(planted.found, self._stack, known, self._source, sampler)
        self._report.wrong += [f"the checks did not find what was planted: {text}" for text in missed]
        self._report.figures["planted"] = {"harms": number, "found": number - len(missed)}

    # ---------------------------------------------------------------- the phases

    async def _rolling(self) -> None:
        """Restarts every replica, one after another, under load: no request may notice."""
        self._say("rolling restart of every replica under load")
        async with self._working():
            await self._until_begun(len(self._customers))
            before = self._history.total(Kind.UNKNOWN)
            for name in self._stack.replicas:
                await self._restart(name)
                lost = self._history.total(Kind.UNKNOWN) - before
                self._say(f"  {name} restarted; {lost} requests lost so far")
        if lost := self._history.total(Kind.UNKNOWN) - before:
            self._report.wrong.append(f"the rolling restart lost {lost} requests: see requests.jsonl")
        failed = await asyncio.to_thread(self._failures)
        # Those that do not end within the grace are handed back, and say so.
        if others := {reason: number for reason, number in failed.items() if reason != _HANDED_BACK}:
            self._report.wrong.append(f"the rolling restart failed runs: {others}")
        self._report.figures["rolling"] = {
            "replicas": len(self._stack.replicas),
            "requests": sum(self._history.counts.values()),
            "lost": lost,
            "handed_back": failed.get(_HANDED_BACK, 0),
        }

    async def _restart(self, name: str) -> None:
        old = self._stack.process(name)
        old.send(15)
        await _until(lambda: self._stack.process(name) != old, 60, f"{name} is started again")
        host, _, port = self._stack.replicas[name]["address"].rpartition(":")

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return False
            writer.close()
            return True

        deadline = time.monotonic() + 60
        while not await listens():
            assert time.monotonic() < deadline, f"{name} does not listen again"
            await asyncio.sleep(0.1)
        # As a deployment does: the next one goes when this one has been found healthy by those who call it.
        await asyncio.sleep(3)

    def _failures(self) -> dict[str, int]:
        client = self._stack.bigquery()
        try:
            found: dict[str, int] = {}
            for customer in self._customers:
                if customer.key:
                    for row in invariants.read(client, _FAILED, customer.tenant_id):
                        found[row["r"]] = found.get(row["r"], 0) + row["n"]
            return found
        finally:
            client.close()

    async def _overload(self) -> None:
        """Ten times what a port admits, on every service: it sheds, stays up and recovers."""
        self._say("overload: ten times the calls that a port admits")
        if not any(customer.key for customer in self._customers):
            await self._customers[0].begin()
        tenant_id = next(customer.tenant_id for customer in self._customers if customer.key)
        limit = int(_SETTINGS["CONVERGENCE_MAX_CONCURRENT_RPCS"])
        figures, wrong = await overload.flood(self._stack, tenant_id, in_flight=10 * limit, say=self._say)
        self._report.wrong += wrong
        self._report.figures["overload"] = figures

    async def _chaos(self, harm: faults.Harm) -> None:
        self._say(f"chaos: {len(self._plan)} faults")
        async with self._working():
            # The others are onboarded while it goes on.
            await self._until_begun(max(1, len(self._customers) // 2))
            await (harm.pace if self._paced else harm.follow)(self._plan, self._seed)
            await _until(self._everybody_runs, _BEGIN_SECONDS, "each tenant has a run that was acknowledged")

    async def _drain(self, known: Sequence[Customer]) -> None:
        self._say("draining")
        began = time.monotonic()
        left = await invariants.drained(self._stack, known, self._jobs, seconds=_DRAIN_SECONDS)
        if left:
            self._report.wrong.append(f"after {_DRAIN_SECONDS:.0f} s there is left: {left}")
        self._report.figures["drain_seconds"] = round(time.monotonic() - began, 1)

    # ---------------------------------------------------------------- the load

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Everybody works inside the block."""
        lives = [customer.live(self._customers) for customer in self._customers]
        workers: list[Customer | Jobs] = [*self._customers, self._jobs]
        for worker in workers:
            worker.leaving = False
        tasks = [asyncio.create_task(life) for life in (*lives, self._jobs.live())]
        began = time.monotonic()
        async with self._running(self._hours_pass(), self._growth.live(), self._progress()):
            try:
                yield
            finally:
                self._worked += time.monotonic() - began
                for worker in workers:
                    worker.leaving = True
                _, late = await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)
                self._report.wrong += [f"a request took more than {_LEAVE_SECONDS:.0f} s" for _ in late]
        await self._ended(tasks)

    @asynccontextmanager
    async def _running(self, *works: Any) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            await self._ended(tasks)

    async def _ended(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                self._report.wrong.append(f"the load itself failed: {type(ended).__name__}: {ended}")

    async def _until_begun(self, count: int) -> None:
        def begun() -> bool:
            return sum(bool(c.key and c.credential_id) for c in self._customers) >= count

        await _until(begun, _BEGIN_SECONDS, f"{count} tenants are onboarded")

    def _everybody_runs(self) -> bool:
        begun = [customer for customer in self._customers if customer.key]
        return all(any(run.acknowledged for run in customer.runs.values()) for customer in begun)

    async def _hours_pass(self) -> None:
        """Now and then a schedule finds that some hours have passed: once for each, or an occurrence would recur."""
        client = self._stack.bigquery()
        try:
            while True:
                await asyncio.sleep(self._dice.uniform(2, 6))
                known = [s for c in self._customers for s in c.schedules.values() if not s.shifted and s.active]
                if not known:
                    continue
                schedule = self._dice.choice(known)
                schedule.shifted = True
                with contextlib.suppress(*OUT_OF_REACH):
                    await asyncio.to_thread(_shift, client, schedule.config_id, self._dice.randint(1, 3))
        finally:
            client.close()

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(10)
            of = self._history.total
            runs = sum(run.acknowledged for c in self._customers for run in c.runs.values())
            tenants = sum(bool(customer.key) for customer in self._customers)
            self._say(
                f"{of(Kind.OK)} ok, {of(Kind.REFUSED)} refused, {of(Kind.UNKNOWN)} unanswered, "
                f"{len(self._history.wrong)} wrong; {tenants} tenants, {runs} runs by hand"
            )

    def _sum_up(self, known: Sequence[Customer], harm: faults.Harm, sampler: Sampler) -> None:
        client = self._stack.bigquery()
        runs: Counter[str] = Counter()
        try:
            for customer in known:
                for row in invariants.read(client, _ENDED, customer.tenant_id):
                    runs[f"{row['by']} {row['status']} {row['what'] or ''}".strip()] += row["n"]
        finally:
            client.close()
        of = self._history.total
        seconds = sorted(self._history.seconds) or [0.0]
        self._report.figures |= {
            "faults": dict(harm.done),
            "met": dict(harm.met),
            "requests": {kind.value: of(kind) for kind in Kind},
            "operations": _by_operation(self._history),
            "p50_seconds": round(statistics.median(seconds), 3),
            "p99_seconds": round(seconds[int(0.99 * (len(seconds) - 1))], 3),
            "working_seconds": round(self._worked, 1),
            "tenants": len(known),
            "runs": dict(sorted(runs.items())),
            "source_changes": self._growth.grown,
            "restarts": {name: one["restarts"] for name, one in self._stack.now().processes.items()},
            "samples": sampler.samples,
            "most_leases": dict(sampler.most),
            "held": dict(self._held),
        }


def _by_operation(history: History) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (what, kind), number in sorted(history.counts.items(), key=str):
        found.setdefault(what, {})[kind.value] = number
    return found


def _shift(client: bigquery.Client, config_id: str, hours: int) -> None:
    sql = (
        "UPDATE tenants.tenant_pipeline_configs "
        f"SET next_run_time = TIMESTAMP_SUB(next_run_time, INTERVAL {hours} HOUR) "
        # One that has fired by itself would fire the same occurrence again.
        f"WHERE config_id = '{config_id}' AND is_active AND last_scheduled_for IS NULL"
    )
    client.query_and_wait(sql, retry=None, job_retry=None)


async def _until(condition: Callable[[], bool], timeout: float, what: str) -> None:  # noqa: ASYNC109
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s until {what}"
        await asyncio.sleep(0.1)


def _ask_store(stack: Stack) -> None:
    client = stack.bigquery()
    try:
        invariants.read(client, "SELECT 1 AS one", patience=0)
    finally:
        client.close()


async def _until_healthy(stack: Stack) -> None:
    async with httpx.AsyncClient(timeout=5) as http:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.HTTPError, *OUT_OF_REACH):
                if (await http.get(f"{stack.rest}/health")).status_code == 200:
                    await asyncio.to_thread(_ask_store, stack)
                    return
            assert time.monotonic() < deadline, "the stack is not healthy again within 180 s"
            await asyncio.sleep(0.5)
