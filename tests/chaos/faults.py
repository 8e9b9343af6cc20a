"""The schedule of harm: made whole from the seed before anything starts, so that a seed names a schedule.

``plan`` is pure; ``Harm`` does what it says to a running stack, and makes everything good again at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from deploy.local.processes import Identity
from tests.support.stack import Stack

# The lease is 60 s: whoever sleeps longer must find that its work is another's.
PAST_THE_LEASE = 66.0
_AT_WORK_SECONDS = 120.0
# BigQuery commits a job and its being done as one; the emulator does not, and may do again what a kill has parted.
# Where that must not fail a test, it is given no work for so long before it is killed.
_IDLE_SECONDS = 5.0
_REPLICAS = tuple(
    f"{service}-{number}" for service in ("tenant", "credential", "pipeline_executor", "scheduler") for number in (1, 2)
)
_RUNS_LIVE = re.compile(r"^convergence_runs_live ([0-9.]+)$", re.MULTILINE)
EVERYTHING = "everything"
_EXECUTORS = ("pipeline_executor-1", "pipeline_executor-2")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done ``at`` seconds after the start, and taken back ``lasting`` seconds later.

    Of a kill, ``lasting`` says for how long the store refuses everything before it.
    """

    at: float
    kind: str
    target: str
    lasting: float = 0.0
    rates: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        much = " ".join(f"{name}={rate:g}" for name, rate in self.rates)
        return f"{self.kind} {self.target} {much} {f'for {self.lasting:.0f} s' if self.lasting else ''}".strip()


def plan(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run of ``seconds``; each kind at least once if there is time for any."""
    dice = random.Random(seed)
    faults: list[Fault] = []
    makers: list[Callable[[float], Fault]] = [
        lambda at: Fault(at, "kill -9", dice.choice(_EXECUTORS)),
        lambda at: Fault(at, "kill -9", dice.choice(_REPLICAS)),
        lambda at: Fault(at, "store", "proxy", dice.uniform(4, 9), (("lose", 0.12), ("drop", 0.06), ("refuse", 0.06))),
        lambda at: Fault(
            at, "envoy", "between", dice.uniform(4, 9), (("abort", 15), ("delay", 20), ("delay_ms", 1500))
        ),
        lambda at: Fault(at, "kill -9", "bigquery"),
        lambda at: Fault(
            at, "envoy", "gateway", dice.uniform(4, 9), (("abort", 10), ("delay", 20), ("delay_ms", 1500))
        ),
        lambda at: Fault(at, "kill -9", dice.choice(("gateway", "between", "kms", *_REPLICAS, *_REPLICAS))),
        lambda at: Fault(at, "SIGTERM", dice.choice(_REPLICAS)),
        lambda at: Fault(at, "store", "proxy", dice.uniform(4, 9), (("late", 0.1), ("lose", 0.05))),
        lambda at: Fault(at, "SIGSTOP", dice.choice(_REPLICAS), dice.uniform(3, 20)),
    ]
    at = 5.0
    while at < seconds - 2:
        dice.shuffle(makers)
        for make in makers if faults else sorted(makers, key=makers.index):
            if at >= seconds - 2:
                break
            faults.append(make(at))
            at += dice.uniform(3, 10)
    # One executor after another sleeps past its lease, beside all else.
    start = dice.uniform(8, 14)
    turn = dice.randrange(2)
    while start < max(seconds - PAST_THE_LEASE, 15):
        faults.append(Fault(start, "SIGSTOP", _EXECUTORS[turn % 2], PAST_THE_LEASE))
        start, turn = start + PAST_THE_LEASE + dice.uniform(20, 60), turn + 1
    return sorted(faults, key=lambda fault: fault.at)


def each_once() -> list[Fault]:
    """A kill -9 of every part and of all at once, and lost replies: for ``Harm.pace``, which needs no times."""
    return [
        Fault(0, "kill -9", "pipeline_executor-1"),
        Fault(0, "kill -9", EVERYTHING, _IDLE_SECONDS),
        Fault(0, "store", "proxy", 5, (("lose", 0.15), ("drop", 0.05), ("refuse", 0.05))),
        Fault(0, "kill -9", "tenant-1"),
        Fault(0, "kill -9", "kms"),
        Fault(0, "kill -9", "scheduler-1"),
        Fault(0, "envoy", "between", 4, (("abort", 15), ("delay", 20), ("delay_ms", 1000))),
        Fault(0, "kill -9", "credential-1"),
        Fault(0, "kill -9", "between"),
        Fault(0, "kill -9", "bigquery", _IDLE_SECONDS),
        Fault(0, "kill -9", "gateway"),
    ]


class Harm:
    """Does the plan to a stack."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        # What was done, and how many statements and calls it met.
        self.done: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self._stack = stack
        self._say = say
        self._asleep: set[Identity] = set()
        self._http = httpx.AsyncClient(timeout=10)

    async def follow(self, faults: Sequence[Fault], seed: int) -> None:
        """Does each when its time has come; returns when all are done and over."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(faults):
                await asyncio.sleep(max(0.0, began + fault.at - asyncio.get_running_loop().time()))
                group.create_task(self._do(fault, seed + number))

    async def pace(self, faults: Sequence[Fault], seed: int) -> None:
        """Does one after another, each when all is well again and a run is under way, however fast the machine is."""
        for number, fault in enumerate(faults):
            await self._until_at_work()
            await self._do(fault, seed + number)

    async def _until_at_work(self) -> None:
        deadline = asyncio.get_running_loop().time() + _AT_WORK_SECONDS
        while not (await self._healthy() and await self._runs_under_way()):
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"within {_AT_WORK_SECONDS:.0f} s no run is under way again")
            await asyncio.sleep(0.2)

    async def _healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return (await self._http.get(f"{self._stack.rest}/health")).status_code == 200
        return False

    async def _do(self, fault: Fault, seed: int) -> None:
        self._say(str(fault))
        self.done[f"{fault.kind} {fault.target.rpartition('-')[0] or fault.target}"] += 1
        match fault.kind:
            case "kill -9":
                self.met["runs under way at kills"] += await self._runs_under_way()
                if fault.lasting:
                    await self._set_store({"refuse": 1.0})
                    await asyncio.sleep(fault.lasting)
                names = self._stack.now().processes if fault.target == EVERYTHING else [fault.target]
                for victim in [self._stack.process(name) for name in names]:
                    victim.send(signal.SIGKILL)
                if fault.lasting:
                    await self._set_store({})
            case "SIGTERM":
                self._stack.process(fault.target).send(signal.SIGTERM)
            case "SIGSTOP":
                await self._sleep_of(self._stack.process(fault.target), fault.lasting)
            case "store":
                before = await self._store_met()
                await self._set_store(dict(fault.rates) | {"seed": seed})
                await asyncio.sleep(fault.lasting)
                await self._set_store({})
                self.met += await self._store_met() - before
            case "envoy":
                before = await self._envoy_met(fault.target)
                await self._set_envoy(fault.target, dict(fault.rates))
                await asyncio.sleep(fault.lasting)
                await self._set_envoy(fault.target, dict.fromkeys(dict(fault.rates), 0))
                self.met += await self._envoy_met(fault.target) - before

    async def _sleep_of(self, process: Identity, seconds: float) -> None:
        if process in self._asleep:
            return
        self._asleep.add(process)
        process.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.send(signal.SIGCONT)
            self._asleep.discard(process)

    async def _set_store(self, rates: dict[str, float]) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self._http.post(f"{self._stack.store_proxy}/chaos", json=rates)

    async def _runs_under_way(self) -> int:
        """What the executors that can be asked say they execute."""
        found = 0
        for name in _EXECUTORS:
            with contextlib.suppress(httpx.HTTPError):
                page = await self._http.get(self._stack.metrics[name], timeout=1)
                found += sum(int(float(value)) for value in _RUNS_LIVE.findall(page.text))
        return found

    async def _store_met(self) -> Counter[str]:
        with contextlib.suppress(httpx.HTTPError):
            done = (await self._http.get(f"{self._stack.store_proxy}/chaos")).json()
            return Counter({f"store {kind}": number for kind, number in done.items() if kind != "passed"})
        return Counter()

    async def _envoy_met(self, which: str) -> Counter[str]:
        met: Counter[str] = Counter()
        with contextlib.suppress(httpx.HTTPError):
            stats = await self._http.get(
                f"{self._stack.described[f'{which}_admin']}/stats", params={"filter": "_injected", "format": "json"}
            )
            for stat in stats.json()["stats"]:
                if "fault." in stat.get("name", ""):
                    met[f"{which} {stat['name'].rpartition('.')[2].removesuffix('_injected')}"] += stat["value"]
        return met

    async def _set_envoy(self, which: str, values: dict[str, float]) -> None:
        query = {f"chaos.{which}.{name}": str(int(value)) for name, value in values.items()}
        with contextlib.suppress(httpx.HTTPError):
            await self._http.post(f"{self._stack.described[f'{which}_admin']}/runtime_modify", params=query)

    async def heal(self) -> None:
        """Wakes all sleepers and takes every fault back."""
        for process in list(self._asleep):
            process.send(signal.SIGCONT)
        await self._set_store({})
        for which in ("gateway", "between"):
            await self._set_envoy(which, {"abort": 0, "delay": 0})

    async def close(self) -> None:
        await self._http.aclose()
