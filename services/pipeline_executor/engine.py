"""Walks the steps of a pipeline: order, parallelism, retry, timeout, cancellation, and a record of every transition.

Called once per attempt by the run lifecycle. It knows neither gRPC nor quotas nor what a step does. Invariants: a
step starts only when all before it have COMPLETED; nothing of an attempt (tasks, files, staging tables) outlives
``run``; every step ends in a final status, which the journal has seen.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from libs import errors, logs, tracing
from services.pipeline_executor.domain import Outcome, StepStatus
from services.pipeline_executor.retry import pause
from services.pipeline_executor.run_context import Published, RunContext, StepEvent
from services.pipeline_executor.steps import STEPS
from services.pipeline_executor.steps.staging import Staging
from services.pipeline_executor.steps.step import Step, StepContext, StepResult
from services.pipeline_executor.templates import Pipeline, PipelineStep

_LOG = logs.get(__name__)
_REPORT_SECONDS = 0.5
_CLEAN_UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that ended well. PUBLISHED and SUPERSEDED stand in the run row already; the caller writes the others."""

    outcome: Outcome
    rows_published: int
    superseded_by: str | None
    steps: tuple[StepEvent, ...]


class Engine:
    """Runs pipelines; holds no state between runs and may run many at once."""

    def __init__(
        self,
        *,
        steps: Mapping[str, type[Step]] = STEPS,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._steps = steps
        self._jitter = jitter
        self._sleep = sleep

    async def run(self, pipeline: Pipeline, context: RunContext) -> RunResult:
        """Runs every step and cleans up; to cancel, cancel the task.

        Raises the ``libs.errors.Error`` of the first step that failed for good, its name under ``step`` in the
        metadata; anything a step should not have raised arrives as ``Internal(STEP_FAILED)``.
        """
        walk = _Walk(pipeline, context, self._steps, self._jitter, self._sleep)
        try:
            await walk.walk()
        finally:
            await _to_the_end(walk.clean_up())
        return walk.result()


class _Walk:
    """One attempt's walk over its steps."""

    def __init__(
        self,
        pipeline: Pipeline,
        context: RunContext,
        steps: Mapping[str, type[Step]],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._pipeline = pipeline
        self._context = context
        self._steps = steps
        self._jitter = jitter
        self._sleep = sleep
        self._staging = Staging(context.warehouse, context.tenant_id, context.pipeline_logging_id, context.attempt)
        self._outputs: dict[str, object] = {}
        self._reported: dict[str, float] = {}
        self._nothing: Outcome | None = None
        self._events: dict[str, StepEvent] = {}
        for position, step in enumerate(pipeline.steps):
            event = StepEvent(step_name=step.name, step_type=step.type, position=position)
            self._events[step.name] = event
            context.journal.step(event)

    def result(self) -> RunResult:
        steps = tuple(self._events.values())
        if self._nothing is not None:
            return RunResult(self._nothing, 0, None, steps)
        published = next(output for output in self._outputs.values() if isinstance(output, Published))
        return RunResult(published.outcome, published.rows, published.superseded_by, steps)

    async def _make_directory(self) -> None:
        try:
            await asyncio.to_thread(self._context.staging_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise errors.Unavailable("STAGING_FULL", "No directory for the files of a run could be made.") from exc

    async def walk(self) -> None:
        waiting = list(self._pipeline.steps)
        running: set[asyncio.Task[StepResult]] = set()
        try:
            await self._make_directory()
            while True:
                ready = [] if self._nothing else [step for step in waiting if self._completed(step.depends_on)]
                waiting = [step for step in waiting if step not in ready]
                running |= {asyncio.create_task(self._step(step), name=step.name) for step in ready}
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await self._take(done)
        finally:
            for task in running:
                task.cancel()
            try:
                await _to_the_end(asyncio.gather(*running, return_exceptions=True))
            finally:
                for step in waiting:
                    self._set(step, status=StepStatus.SKIPPED)

    async def _take(self, done: set[asyncio.Task[StepResult]]) -> None:
        results = await asyncio.gather(*done, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
            if result.unchanged or result.no_data:
                self._nothing = Outcome.UNCHANGED if result.unchanged else Outcome.NO_DATA

    def _completed(self, names: tuple[str, ...]) -> bool:
        return all(self._events[name].status is StepStatus.COMPLETED for name in names)

    async def _step(self, step: PipelineStep) -> StepResult:
        start = self._context.now()
        tries = 0
        while True:
            tries += 1
            self._set(step, status=StepStatus.RUNNING, tries=tries, start_time=start, error=None, rows=None, bytes=None)
            try:
                result = await self._try(step)
            except asyncio.CancelledError:
                self._end(step, StepStatus.CANCELLED)
                raise
            except errors.Error as error:
                if not error.retryable or tries >= step.retry.attempts:
                    error.metadata["step"] = step.name
                    self._end(step, StepStatus.FAILED, error=error)
                    raise
                await self._pause(step, tries, error)
                continue
            self._outputs[step.name] = result.output
            self._end(step, StepStatus.COMPLETED, rows=result.rows, bytes=result.bytes, details=dict(result.details))
            return result

    async def _try(self, step: PipelineStep) -> StepResult:
        """One try; only ``libs.errors`` and a cancellation come out."""
        context = StepContext(
            run=self._context,
            provider=self._pipeline.provider,
            domain=self._pipeline.domain,
            template=self._pipeline.template,
            revision=self._pipeline.revision,
            step_name=step.name,
            outputs=self._outputs,
            staging=self._staging,
            report=lambda rows, size: self._report(step, rows, size),
        )
        try:
            async with asyncio.timeout(step.timeout.total_seconds()):
                with tracing.span(f"step {step.type}", step=step.name, run_id=self._context.pipeline_logging_id):
                    return await self._steps[step.type](step.config).run(context)
        except errors.Error:
            raise
        except TimeoutError as exc:
            raise errors.Unavailable(
                "STEP_TIMED_OUT", f"Step {step.name} did not end within {step.timeout.total_seconds():g} s."
            ) from exc
        except Exception as exc:
            raise errors.Internal("STEP_FAILED", f"Step {step.name} failed unexpectedly.") from exc

    async def _pause(self, step: PipelineStep, tries: int, error: errors.Error) -> None:
        self._set(step, error=error)
        try:
            await self._sleep(pause(step.retry, tries, self._jitter(), error.retry_after).total_seconds())
        except asyncio.CancelledError:
            self._end(step, StepStatus.CANCELLED)
            raise

    def _report(self, step: PipelineStep, rows: int, size: int) -> None:
        now = asyncio.get_running_loop().time()
        current = self._events[step.name].status is StepStatus.RUNNING
        if current and now - self._reported.get(step.name, -_REPORT_SECONDS) >= _REPORT_SECONDS:
            self._reported[step.name] = now
            self._set(step, rows=rows, bytes=size)

    def _end(self, step: PipelineStep, status: StepStatus, **changes: Any) -> None:
        self._set(step, status=status, end_time=self._context.now(), **changes)

    def _set(self, step: PipelineStep, **changes: Any) -> None:
        event = dataclasses.replace(self._events[step.name], **changes)
        self._events[step.name] = event
        self._context.journal.step(event)

    async def clean_up(self) -> None:
        """Removes files and staging tables; what fails here expires or is swept at the next start."""
        try:
            async with asyncio.timeout(_CLEAN_UP_SECONDS):
                await asyncio.to_thread(shutil.rmtree, self._context.staging_dir, ignore_errors=True)
                await self._staging.drop()
        except TimeoutError:
            _LOG.warning("staging not cleaned up in time", run_id=self._context.pipeline_logging_id)


async def _to_the_end[T](work: Awaitable[T]) -> T:
    """Awaits the work whole even if this task is cancelled meanwhile; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            if task.cancelled():
                raise
            cancelled = exc
        except BaseException:
            break
    if cancelled is not None:
        raise cancelled
    return task.result()
