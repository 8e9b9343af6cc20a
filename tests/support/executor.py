"""An executor without its neighbours: its store, tenant's quota and the other replicas in memory, each able to fail.

``World`` holds what outlives processes; ``Process`` is one executor in it, that can be killed between any two of its
calls, or go on as a zombie that never hears that its lease has run out. Quota decisions are tenant's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import random
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from libs import caller, errors
from libs.bigquery import Sql, Value
from libs.tenancy import Caller, Role, TenantId, tenant_not_found
from services.pipeline_executor.domain import (
    Check,
    Ending,
    Grant,
    GrantState,
    Key,
    Outcome,
    Renewal,
    Run,
    RunFilter,
    RunStatus,
    Step,
    StepStatus,
    View,
    newest,
)
from services.pipeline_executor.engine import RunResult
from services.pipeline_executor.execution import Tools
from services.pipeline_executor.executions import Executions
from services.pipeline_executor.leases import Leases
from services.pipeline_executor.publisher import TenantLocks
from services.pipeline_executor.reaper import Reaper
from services.pipeline_executor.run_context import RunContext, SourceEndpoints, StepEvent
from services.pipeline_executor.runs import Runs
from services.pipeline_executor.templates import Pipeline, Templates
from services.pipeline_executor.watch import Watch
from services.tenant import quotas
from tests.support.fakes import MemoryAudit, SkippingLoop

START = datetime(2025, 11, 17, 12, tzinfo=UTC)
TEMPLATES = Templates.load()
PUBLISH = Sql("fake/publish.sql", "")
RUNNER = Caller(Role.RUNNER, "acme", "key_1", user_id="ada")


@dataclass
class Faults:
    """How likely a call fails: before it does anything, after it did, or seemingly while it does it later."""

    before: float = 0.0
    after: float = 0.0
    late: float = 0.0
    seconds: float = 0.0


class Link:
    """Every call of one process to the outside goes through here; a dead process's calls neither begin nor return."""

    def __init__(self, faults: Faults, chance: random.Random) -> None:
        self.faults = faults
        self.alive = True
        self.calls: Counter[str] = Counter()
        self.crash_after: int | None = None
        self._chance = chance

    async def call[T](self, name: str, work: Callable[[], T], *, writes: bool = True) -> T:
        """Does ``work`` at one instant, some time after it was asked."""
        await self._boundary()
        self.calls[name] += 1
        await asyncio.sleep(self._chance.uniform(0, self.faults.seconds))
        roll = self._chance.random()
        if roll < self.faults.before:
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        if writes and roll < self.faults.before + self.faults.late:
            asyncio.get_running_loop().call_later(self._chance.uniform(0, 200), _quietly(work))
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake is late.")
        result = work()
        if writes and roll < self.faults.before + self.faults.late + self.faults.after:
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake lost the reply.")
        await self._boundary()
        return result

    async def _boundary(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                self.alive = False
        if not self.alive:
            await asyncio.Event().wait()


def _quietly(work: Callable[[], Any]) -> Callable[[], None]:
    def do() -> None:
        with suppress(errors.Error):
            work()

    return do


class MemoryRunStore:
    """A ``RunStore`` and ``Publications`` in memory: one per world, seen by each process through its link."""

    def __init__(self) -> None:
        self.rows: dict[Key, Run] = {}
        self.withdrawn: set[Key] = set()
        self.step_logs: dict[Key, tuple[Step, ...]] = {}
        self.check_logs: dict[Key, list[Check]] = defaultdict(list)
        self.data: dict[tuple[TenantId, date], tuple[Key, datetime]] = {}
        self.publications: Counter[Key] = Counter()
        self.read_at: dict[Key, datetime] = {}
        self.tenants: set[TenantId] | None = None

    def put(self, run: Run) -> None:
        """Writes a row; nothing may change one that has ended."""
        before = self.rows.get(run.key)
        assert before is None or not before.status.ended, f"{run.key} was {before.status} and became {run.status}"
        self.rows[run.key] = run

    def insert(self, run: Run) -> bool:
        """As ``RunStore.insert``; a second call by the one who made the row finds its own job."""
        if run.key in self.withdrawn:
            return False
        if run.key in self.rows:
            return self.rows[run.key].owner == run.owner
        self.put(run)
        return True

    def withdraw(self, key: Key) -> bool:
        """As ``RunStore.withdraw``."""
        if key in self.rows:
            return False
        self.withdrawn.add(key)
        return True

    def attempts(self, tenant_id: TenantId, run_ids: Collection[str]) -> list[Run]:
        """As ``RunStore.attempts``."""
        if self.tenants is not None and tenant_id not in self.tenants:
            raise tenant_not_found()
        found = [run for key, run in self.rows.items() if key.tenant_id == tenant_id and key.run_id in run_ids]
        return sorted(found, key=lambda run: (run.key.run_id, run.key.attempt))

    def list_runs(
        self, tenant_id: TenantId, wanted: RunFilter, size: int, after: tuple[datetime, str] | None
    ) -> list[Run]:
        """As ``RunStore.list_runs``."""
        ids = {key.run_id for key in self.rows if key.tenant_id == tenant_id}
        runs = [cast(Run, newest(self.attempts(tenant_id, [run_id]))) for run_id in ids]
        runs = [
            run
            for run in runs
            if (wanted.status is None or run.status is wanted.status)
            and wanted.provider in (None, run.spec.provider)
            and wanted.domain in (None, run.spec.domain)
            and wanted.template in (None, run.spec.template)
            and (after is None or (run.start_time, run.key.run_id) < after)
        ]
        return sorted(runs, key=lambda run: (run.start_time, run.key.run_id), reverse=True)[:size]

    def end(self, endings: Sequence[Ending]) -> int:
        """As ``RunStore.end``."""
        ended = 0
        for ending in endings:
            run = self.rows.get(ending.key)
            if run is None or run.status not in (RunStatus.RUNNING, RunStatus.CANCELLING):
                continue
            ended += 1
            cancelling = run.status is RunStatus.CANCELLING
            status = ending.if_cancelling if cancelling else ending.status
            error = None if cancelling and status is RunStatus.CANCELLED else ending.error
            outcome = None if cancelling else ending.outcome
            self.put(dataclasses.replace(run, status=status, outcome=outcome, error=error, end_time=ending.end_time))
        return ended

    def cancel(self, key: Key) -> bool:
        """As ``RunStore.cancel``."""
        run = self.rows.get(key)
        if run is None or run.status is not RunStatus.RUNNING:
            return False
        self.put(dataclasses.replace(run, status=RunStatus.CANCELLING))
        return True

    def publish(self, key: Key, started: datetime, now: datetime, rows: int) -> None:
        """What a publishing script does."""
        run = self.rows.get(key)
        if run is None or run.status is not RunStatus.RUNNING:
            raise errors.Aborted("RUN_FENCED", "The fence held.")
        days = [day for day in _days(run) if (key.tenant_id, day) in self.data]
        newer = [self.data[key.tenant_id, day][0] for day in days if self.data[key.tenant_id, day][1] > started]
        outcome = Outcome.SUPERSEDED if newer else Outcome.PUBLISHED
        self.put(
            dataclasses.replace(
                run,
                status=RunStatus.COMPLETED,
                outcome=outcome,
                superseded_by=newer[0].run_id if newer else "",
                rows_published=0 if newer else rows,
                end_time=now,
            )
        )
        if not newer:
            self.publications[key] += 1
            for day in _days(run):
                self.data[key.tenant_id, day] = key, started

    def append_steps(self, run: Run, steps: Sequence[Step]) -> None:
        """As ``RunStore.append_steps``."""
        self.step_logs.setdefault(run.key, tuple(steps))

    def append_checks(self, run: Run, checks: Sequence[Check]) -> None:
        """As ``RunStore.append_checks``."""
        known = {(check.name, check.dimension, check.actual) for check in self.check_logs[run.key]}
        self.check_logs[run.key] += [
            check for check in checks if (check.name, check.dimension, check.actual) not in known
        ]


def _days(run: Run) -> list[date]:
    count = (run.spec.end_date - run.spec.start_date).days + 1
    return [run.spec.start_date + timedelta(days=index) for index in range(count)]


class LinkedStore:
    """The store as one process reaches it."""

    def __init__(self, store: MemoryRunStore, link: Link, now: Callable[[], datetime]) -> None:
        self._store = store
        self._link = link
        self._now = now

    async def insert(self, run: Run) -> bool:
        return await self._link.call("insert", lambda: self._store.insert(run))

    async def withdraw(self, key: Key) -> bool:
        return await self._link.call("withdraw", lambda: self._store.withdraw(key))

    async def attempts(self, tenant_id: TenantId, run_ids: Collection[str]) -> Sequence[Run]:
        return await self._link.call("attempts", lambda: self._store.attempts(tenant_id, run_ids), writes=False)

    async def list_runs(
        self, tenant_id: TenantId, wanted: RunFilter, size: int, after: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        found = lambda: self._store.list_runs(tenant_id, wanted, size, after)  # noqa: E731
        return await self._link.call("list", found, writes=False)

    async def end(self, tenant_id: TenantId, endings: Sequence[Ending]) -> int:
        return await self._link.call("end", lambda: self._store.end(endings))

    async def cancel(self, key: Key, now: datetime) -> bool:
        return await self._link.call("cancel", lambda: self._store.cancel(key))

    async def publish(self, key: Key, sql: Sql, params: Mapping[str, Value], limit_seconds: float) -> None:
        started, rows = cast(datetime, params["extract_start_time"]), cast(int, params["rows"])
        await self._link.call("publish", lambda: self._store.publish(key, started, self._now(), rows))

    async def append_steps(self, run: Run, steps: Sequence[Step]) -> None:
        await self._link.call("append_steps", lambda: self._store.append_steps(run, steps))

    async def append_checks(self, run: Run, checks: Sequence[Check]) -> None:
        await self._link.call("append_checks", lambda: self._store.append_checks(run, checks))

    async def steps(
        self, run_id: str, attempts: Sequence[Run], size: int, after: tuple[int, int] | None
    ) -> Sequence[Step]:
        found = [step for run in attempts for step in self._store.step_logs.get(run.key, ())]
        rest = [step for step in found if after is None or (step.attempt, step.position) > after]
        return await self._link.call("steps", lambda: rest[:size], writes=False)

    async def checks(
        self, run_id: str, attempts: Sequence[Run], size: int, after: tuple[int, str, str] | None
    ) -> Sequence[Check]:
        found = [check for run in attempts for check in self._store.check_logs.get(run.key, ())]
        found.sort(key=lambda check: (check.attempt, check.name, check.dimension))
        rest = [check for check in found if after is None or (check.attempt, check.name, check.dimension) > after]
        return await self._link.call("checks", lambda: rest[:size], writes=False)


class MemoryQuotas:
    """Tenant's quota rows, decided by tenant's own ``decide``; checks its limits at every step."""

    def __init__(self, now: Callable[[], datetime], plan: quotas.Plan = quotas.Plan.SCALE) -> None:
        self.rows: dict[str, quotas.QuotaRow] = {}
        self._now = now
        self._plan = plan

    def ask(self, tenant_id: str, request: quotas.QuotaRequest) -> quotas.QuotaAnswer:
        """One decision."""
        row = self.rows.get(tenant_id) or quotas.QuotaRow.fresh(tenant_id, self._plan, self._now())
        after, answer = quotas.decide(row, request, self._now())
        assert after is not None
        self.rows[tenant_id] = after
        assert after.in_use(self._now()) <= after.limits.concurrent
        return answer

    def grants(self) -> dict[Key, quotas.Grant]:
        """All grants of all tenants."""
        return {
            Key(TenantId(tenant_id), grant.run_id, grant.attempt): grant
            for tenant_id, row in self.rows.items()
            for grant in row.grants
        }


class LinkedQuotas:
    """Tenant's quota as one process reaches it."""

    def __init__(self, rows: MemoryQuotas, link: Link, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._link = link
        self._now = now
        self.deaf = False

    async def reserve(self, key: Key, owner: str, fingerprint: str) -> Grant:
        request = quotas.Reserve(key.run_id, key.attempt, owner, fingerprint)
        answer = await self._link.call("reserve", lambda: self._rows.ask(key.tenant_id, request))
        return _grant(key.tenant_id, cast(quotas.Reservation, answer).grant)

    async def renew(self, owner: str, keys: Collection[Key]) -> Renewal:
        if self.deaf:
            return Renewal({}, frozenset())
        return await self._link.call("renew", lambda: self._renew(owner, keys))

    def _renew(self, owner: str, keys: Collection[Key]) -> Renewal:
        renewed: dict[Key, datetime] = {}
        lost: set[Key] = set()
        for tenant_id in {key.tenant_id for key in keys}:
            wanted = frozenset((key.run_id, key.attempt) for key in keys if key.tenant_id == tenant_id)
            request = quotas.Renew(owner, wanted, self._now() + quotas.LEASE)
            answer = cast(quotas.Renewal, self._rows.ask(tenant_id, request))
            renewed |= {_grant(tenant_id, grant).key: grant.until for grant in answer.renewed}
            lost |= {Key(tenant_id, *item) for item in answer.lost}
        return Renewal(renewed, frozenset(lost))

    async def settle(self, key: Key, state: GrantState) -> None:
        request = quotas.Settle(key.run_id, key.attempt, quotas.GrantState(state.value))
        await self._link.call("settle", lambda: self._rows.ask(key.tenant_id, request))

    async def expired(self, limit: int) -> Sequence[Grant]:
        return await self._link.call("expired", lambda: self._expired(limit), writes=False)

    def _expired(self, limit: int) -> list[Grant]:
        found = [
            _grant(key.tenant_id, grant)
            for key, grant in self._rows.grants().items()
            if grant.state is quotas.GrantState.LIVE and grant.until <= self._now()
        ]
        return sorted(found, key=lambda grant: grant.until)[:limit]


def _grant(tenant_id: str, grant: quotas.Grant) -> Grant:
    key = Key(TenantId(tenant_id), grant.run_id, grant.attempt)
    return Grant(key, grant.owner, grant.day, grant.until, GrantState(grant.state.value))


@dataclass
class Script:
    """What the fake engine does with a run: how long it takes, and how it ends."""

    seconds: float = 5.0
    failure: errors.Error | None = None
    no_data: bool = False
    rows: int = 7


class FakeEngine:
    """Stands in for the steps: an extraction of some seconds, then the publication. Counts who began what."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, pipeline: Pipeline, context: RunContext) -> RunResult:
        key = Key(context.tenant_id, context.pipeline_logging_id, context.attempt)
        self._world.begun[key] += 1
        now = context.now
        steps = {
            name: StepEvent(step_name=name, step_type=name, position=position)
            for position, name in enumerate(("extract", "publish"))
        }

        def set_step(name: str, **changes: Any) -> None:
            steps[name] = dataclasses.replace(steps[name], **changes)
            context.journal.step(steps[name])

        for name in steps:
            set_step(name)
        started = now()
        set_step("extract", status=StepStatus.RUNNING, tries=1, start_time=started)
        try:
            secret = await context.open_credential()
            assert secret.reveal()["for"] == context.tenant_id
            # The script may still be changed while it plays.
            while (left := self._world.script_of(key).seconds - (now() - started).total_seconds()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(min(1.0, left))
            script = self._world.script_of(key)
            if script.failure is not None:
                set_step("extract", status=StepStatus.FAILED, end_time=now(), error=script.failure)
                set_step("publish", status=StepStatus.SKIPPED)
                raise script.failure
            set_step("extract", status=StepStatus.COMPLETED, end_time=now(), rows=0 if script.no_data else script.rows)
            if script.no_data:
                set_step("publish", status=StepStatus.SKIPPED)
                return RunResult(Outcome.NO_DATA, 0, None, tuple(steps.values()))
            set_step("publish", status=StepStatus.RUNNING, tries=1, start_time=now())
            params: dict[str, Value] = {"extract_start_time": started, "rows": script.rows}
            published = await context.publisher.publish(PUBLISH, params)
            set_step("publish", status=StepStatus.COMPLETED, end_time=now(), rows=published.rows)
        except asyncio.CancelledError:
            for name, step in steps.items():
                if not step.status.ended:
                    set_step(name, status=StepStatus.CANCELLED, end_time=now())
            raise
        except errors.Error as failure:
            if steps["publish"].status is StepStatus.RUNNING:
                set_step("publish", status=StepStatus.FAILED, end_time=now(), error=failure)
            raise
        return RunResult(published.outcome, published.rows, published.superseded_by, tuple(steps.values()))


class FakeNeighbours:
    """Tenant's datasets and the credentials."""

    def __init__(self, link: Link, world: World) -> None:
        self._link = link
        self._world = world

    async def ensure_dataset(self, tenant_id: TenantId, provider: str) -> None:
        def ensure() -> None:
            if self._world.store.tenants is not None and tenant_id not in self._world.store.tenants:
                raise tenant_not_found()

        await self._link.call("ensure_dataset", ensure, writes=False)

    async def source(self, tenant_id: TenantId, provider: str) -> Mapping[str, Any]:
        def check() -> Mapping[str, Any]:
            if self._world.credential_failure is not None:
                raise self._world.credential_failure
            return dict(self._world.source)

        return await self._link.call("source", check, writes=False)

    async def open(self, key: Key, provider: str) -> Mapping[str, Any]:
        return await self._link.call("open", lambda: {"for": str(key.tenant_id)}, writes=False)


class Replicas:
    """``Owners``: the other processes of the world, as one of them reaches them."""

    def __init__(self, world: World, link: Link) -> None:
        self._world = world
        self._link = link

    async def watch(self, owner: str, key: Key) -> AsyncGenerator[View]:
        process = self._process(owner)
        self._link.calls["forward"] += 1
        async with aclosing(process.watch.owned(key)) as views:
            async for view in views:
                yield view
                self._process(owner)

    async def cancelled(self, owner: str, key: Key) -> None:
        self._process(owner).executions.cancel(key)

    def _process(self, owner: str) -> Process:
        process = self._world.processes.get(owner)
        if process is None or not process.link.alive:
            raise errors.Unavailable("PEER_GONE", "Nobody answers there.")
        return process


class Process:
    """One executor process of a world."""

    def __init__(self, world: World, name: str, *, max_runs: int = 16) -> None:
        self.world = world
        self.name = name
        self.link = Link(world.faults, world.chance)
        self.store = LinkedStore(world.store, self.link, world.now)
        self.quotas = LinkedQuotas(world.quotas, self.link, world.now)
        self.audit = MemoryAudit()
        neighbours = FakeNeighbours(self.link, world)
        self.leases = Leases(self.quotas, lambda: name, now=world.now)
        self.executions = Executions(
            Tools(
                owner=lambda: name,
                now=world.now,
                store=self.store,
                publications=self.store,
                quotas=self.quotas,
                tenants=neighbours,
                credentials=neighbours,
                engine=FakeEngine(world),
                leases=self.leases,
                locks=TenantLocks(),
                audit=self.audit,
                warehouse=cast(Any, None),
                staging_dir=Path("/nonexistent"),
                source_endpoints=SourceEndpoints(),
            ),
            max_runs=max_runs,
        )
        replicas = Replicas(world, self.link)
        self.watch = Watch(self.store, replicas, self.executions.progress, lambda: name)
        self.runs = Runs(
            templates=TEMPLATES,
            executions=self.executions,
            store=self.store,
            watch=self.watch,
            owners=replicas,
            audit=self.audit,
            now=world.now,
        )
        self.reaper = Reaper(self.quotas, self.store, now=world.now)
        self._loops = [asyncio.create_task(self.leases.run()), asyncio.create_task(self.reaper.run())]

    # ---- its ends

    def kill(self) -> None:
        """Dies at once: nothing it began is finished, nothing it holds is given back."""
        self.link.alive = False
        for loop in self._loops:
            loop.cancel()
        self.world.processes.pop(self.name, None)
        self.world.buried.append(self)

    def outlive_its_leases(self) -> None:
        """Goes on as if it had been stopped and resumed: renews nothing and never hears that it should have."""
        self.quotas.deaf = True
        for lease in self.leases._held.values():
            lease.drop()
            lease._ends = float("inf")
        self.leases._ends = lambda sent, until: float("inf")  # type: ignore[method-assign]

    async def close(self) -> None:
        """Ends the simulation of it."""
        for loop in self._loops:
            loop.cancel()
        await self.executions.close()


@dataclass
class World:
    """What is shared and what is durable."""

    seed: int = 0
    plan: quotas.Plan = quotas.Plan.SCALE
    faults: Faults = field(default_factory=Faults)
    begun: Counter[Key] = field(default_factory=Counter)
    scripts: dict[str, Script] = field(default_factory=dict)
    given: dict[Key, Script] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    credential_failure: errors.Error | None = None
    processes: dict[str, Process] = field(default_factory=dict)
    buried: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.store = MemoryRunStore()
        self.quotas = MemoryQuotas(self.now, self.plan)
        self.default_script = Script()

    def now(self) -> datetime:
        """The time, which is the loop's."""
        return START + timedelta(seconds=asyncio.get_running_loop().time())

    def script_of(self, key: Key) -> Script:
        """What a run does."""
        return self.scripts.get(key.run_id) or self.given.setdefault(key, self.default_script)

    def boot(self, name: str, *, max_runs: int = 16) -> Process:
        """A further process."""
        self.processes[name] = Process(self, name, max_runs=max_runs)
        return self.processes[name]

    async def close(self) -> None:
        """Ends the simulation."""
        for process in [*self.processes.values(), *self.buried]:
            await process.close()


async def as_client[T](work: Awaitable[T], who: Caller = RUNNER, *, request_id: str = "req-1") -> T:
    """Awaits ``work`` as a call of ``who``."""
    with caller.bind(who, request_id=request_id):
        return await work


async def until(condition: Callable[[], bool], *, seconds: float = 600.0) -> None:
    """Waits, in virtual time, until something holds."""
    ends = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < ends, "it never came true"
        await asyncio.sleep(0.25)


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a coroutine test with a world of its own (its first argument) on a loop whose time is skipped."""

    async def whole(*args: Any, **kwargs: Any) -> None:
        world = World()
        try:
            await test(world, *args, **kwargs)
        finally:
            await world.close()

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=SkippingLoop) as runner:
            runner.run(whole(*args, **kwargs))

    signature = inspect.signature(test)
    rest = [item for name, item in signature.parameters.items() if name != "world"]
    run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    return run
