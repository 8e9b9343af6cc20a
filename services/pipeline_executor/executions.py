"""The executions of this process: at most ``max_runs``, each attempt once, and an orderly end of all of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from libs import caller, errors, logs, metrics
from services.pipeline_executor.domain import Key, View, check_fingerprint
from services.pipeline_executor.execution import Execution, Launch, Stop, Tools
from services.pipeline_executor.watch import Progress

# What marking runs as interrupted and settling them may take, out of the grace of a shutdown.
_LAST_SECONDS = 8.0
_FULL_RETRY = timedelta(seconds=10)

_log = logs.get(__name__)


class Executions:
    """Used from one event loop. A place is taken before anything is awaited, so ``max_runs`` is never passed."""

    def __init__(self, tools: Tools, *, max_runs: int) -> None:
        self._tools = tools
        self._max_runs = max_runs
        self._live: dict[Key, tuple[Execution, asyncio.Task[None]]] = {}
        self._draining = False

    async def launch(self, launch: Launch) -> View:
        """Starts an attempt, or joins the call that is starting it; returns the run as it was started or found.

        Waits while the last places are taken by attempts that may yet be refused, so that of a burst each hears its own
        answer. Raises ``Unavailable`` (EXECUTOR_FULL, EXECUTOR_DRAINING) before anything is reserved, and what
        ``Execution`` refuses with. A caller that is cancelled takes no attempt with it.
        """
        while True:
            if found := self._live.get(launch.key):
                execution = found[0]
                check_fingerprint(execution.progress.view.run, launch.fingerprint)
                break
            if not self._draining and len(self._live) >= self._max_runs and (undecided := self._undecided()):
                await asyncio.wait(undecided, return_when=asyncio.FIRST_COMPLETED)
                continue
            execution = self._begin(launch)
            break
        return await asyncio.shield(execution.started)

    def _undecided(self) -> set[asyncio.Future[View] | asyncio.Task[None]]:
        """What ends when an attempt without a reservation has got one, or has gone."""
        starting = ((execution, task) for execution, task in self._live.values() if execution.lease is None)
        return {task if execution.started.done() else execution.started for execution, task in starting}

    def _begin(self, launch: Launch) -> Execution:
        if self._draining:
            raise errors.NotBegun("EXECUTOR_DRAINING", "This executor is shutting down; try again.")
        if len(self._live) >= self._max_runs:
            raise errors.NotBegun(
                "EXECUTOR_FULL",
                f"This executor runs {self._max_runs} runs already; try again.",
                retry_after=_FULL_RETRY,
            )
        execution = Execution(launch, self._tools)
        with caller.detached():
            task = asyncio.create_task(execution.live(), name=f"run {launch.key.run_id}")
        self._live[launch.key] = execution, task
        metrics.RUNS_LIVE.inc()
        task.add_done_callback(lambda _: self._ended(launch.key))
        return execution

    def _ended(self, key: Key) -> None:
        metrics.RUNS_LIVE.dec()
        self._live.pop(key, None)

    def progress(self, key: Key) -> Progress | None:
        """The progress of an attempt that this process executes."""
        found = self._live.get(key)
        return found[0].progress if found and found[0].lease is not None else None

    def holds(self, key: Key) -> View | None:
        """An attempt as this process knows it, if its lease is good and it has not ended: then its row says no more."""
        found = self._live.get(key)
        if found is None or found[0].lease is None or not found[0].lease.valid:
            return None
        view = found[0].progress.view
        return None if view.run.status.ended else view

    def cancel(self, key: Key) -> bool:
        """Tells the attempt's execution that its row says CANCELLING; False if it is not here."""
        found = self._live.get(key)
        if found is None:
            return False
        found[0].stop(Stop.CANCEL)
        return True

    async def drain(self, grace: float) -> None:
        """Takes no new run, lets those there finish, and stops the rest as INTERRUPTED while there is time."""
        self._draining = True
        ends = asyncio.get_running_loop().time() + grace
        await self._wait(grace - min(_LAST_SECONDS, grace / 3))
        if self._live:
            _log.warning("runs_interrupted", runs=len(self._live))
        for execution, _ in list(self._live.values()):
            execution.stop(Stop.INTERRUPTED)
        await self._wait(max(4.0, ends - asyncio.get_running_loop().time()))

    async def close(self) -> None:
        """Lets go of whatever is still there; the reaper of another process completes it."""
        tasks = [task for _, task in self._live.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, seconds: float) -> None:
        if tasks := [task for _, task in self._live.values()]:
            await asyncio.wait(tasks, timeout=max(0.0, seconds))
