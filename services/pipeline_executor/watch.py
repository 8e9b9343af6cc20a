"""The progress of runs: kept in the memory of the process that executes them, shown to whoever watches.

``Progress`` is written by one execution and read by any number of watchers, each of which sees the newest state and
never holds the execution up. ``Watch`` finds the progress of a run wherever it is: here, at its owner, or in its row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from libs import errors, logs
from libs.tenancy import TenantId
from services.pipeline_executor.domain import (
    Key,
    Outcome,
    Owners,
    Run,
    RunStore,
    Step,
    View,
    check_run_id,
    newest,
    run_not_found,
    view_of,
)

# A stream says something at least this often, so that nobody between takes it for dead.
_QUIET_SECONDS = 15.0
_FIRST_POLL_SECONDS = 2.0
_LAST_POLL_SECONDS = 10.0
_GLANCE_SECONDS = 2.0
_LOG_SIZE = 1_000

_log = logs.get(__name__)


class Progress:
    """What one execution has come to."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._steps: dict[str, Step] = {}
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def view(self) -> View:
        """The state now."""
        return view_of(self._run, self._steps.values())

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps now, in their order."""
        return self.view.steps

    @property
    def over(self) -> bool:
        """True if it will not change any more."""
        return self._ended or self._run.status.ended

    def run(self, run: Run) -> None:
        """Takes the run's row."""
        self._run = run
        self._notify()

    def step(self, step: Step) -> None:
        """Takes a step's state."""
        self._steps[step.name] = step
        self._notify()

    def end(self) -> None:
        """Nothing more will change here."""
        self._ended = True
        self._notify()

    async def watch(self) -> AsyncGenerator[View]:
        """The state now, then at every change (and every few seconds without one), then the last."""
        while True:
            changed, over = self._changed, self.over
            yield self.view
            if over:
                return
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    await changed.wait()
            except TimeoutError:
                pass

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Watch:
    """Reads runs together with their steps, while they run and afterwards."""

    def __init__(
        self, store: RunStore, owners: Owners, local: Callable[[Key], Progress | None], owner: Callable[[], str]
    ) -> None:
        self._store = store
        self._owners = owners
        self._local = local
        self._owner = owner

    def owned(self, key: Key) -> AsyncGenerator[View]:
        """The progress of an attempt that this process executes; ``NotFound`` if it does not."""
        progress = self._local(key)
        if progress is None:
            raise run_not_found()
        return progress.watch()

    async def glance(self, run: Run) -> View:
        """The run with its steps, from where they are now: its owner's memory or the logs."""
        if progress := self._local(run.key):
            return view_of(run, progress.steps)
        if run.status.ended:
            return await self._logged(run)
        try:
            async with asyncio.timeout(_GLANCE_SECONDS), aclosing(self._owners.watch(run.owner, run.key)) as views:
                async for view in views:
                    return view_of(run, view.steps)
        except (errors.Error, TimeoutError):
            pass
        return view_of(run, ())

    async def watch(self, tenant_id: TenantId, run_id: str) -> AsyncGenerator[View]:
        """A run's newest attempt from now until it has ended; the last view holds its final state."""
        run_id = check_run_id(run_id)
        pause, forwarded = _FIRST_POLL_SECONDS, False
        heard: View | None = None
        while True:
            run = newest(await self._store.attempts(tenant_id, [run_id]))
            if run is None:
                raise run_not_found()
            progress = self._local(run.key)
            if progress is not None and not progress.over:
                views = progress.watch()
            elif run.status.ended:
                logged = await self._logged(run)
                # The owner logs the steps after the row has ended; until then what it said of them last is the newest.
                said = heard.steps if heard is not None and heard.run.key == run.key else ()
                yield view_of(run, said) if said and not logged.steps else logged
                return
            elif not forwarded and run.owner != self._owner():
                forwarded = True
                views = self._forward(run)
            else:
                yield view_of(run, ())
                await asyncio.sleep(pause)
                pause = min(_LAST_POLL_SECONDS, pause * 1.5)
                continue
            async with aclosing(views):
                async for view in views:
                    heard = view
                    # How it ended is said once, and by the row.
                    if not view.run.status.ended:
                        yield view

    async def _forward(self, run: Run) -> AsyncGenerator[View]:
        """What the owner reports, as far as it goes; the row says how it ended."""
        try:
            async with aclosing(self._owners.watch(run.owner, run.key)) as views:
                async for view in views:
                    yield view
        except errors.Error as exc:
            _log.info("owner_not_reached", run_id=run.key.run_id, reason=exc.reason)

    async def _logged(self, run: Run) -> View:
        if progress := self._local(run.key):
            return view_of(run, progress.steps)
        if steps := await self._store.steps(run.key.run_id, [run], _LOG_SIZE, None):
            return view_of(run, steps)
        # Its process died after it was published and before its steps were logged; its checks were logged before.
        published = run.outcome is Outcome.PUBLISHED
        return view_of(run, (), await self._store.checks(run.key.run_id, [run], _LOG_SIZE, None) if published else ())
