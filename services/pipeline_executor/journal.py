"""What one attempt reports while it works: steps for its watchers and the step log, quality results for their table."""

from __future__ import annotations

from collections.abc import Sequence

from services.pipeline_executor.domain import Check, Run, RunError, RunStore, Step
from services.pipeline_executor.run_context import CheckResult, StepEvent
from services.pipeline_executor.watch import Progress


class Journal:
    """The engine's ``Journal`` of one attempt."""

    def __init__(self, run: Run, progress: Progress, store: RunStore) -> None:
        self._run = run
        self._progress = progress
        self._store = store

    def step(self, event: StepEvent) -> None:
        """Takes a transition."""
        self._progress.step(
            Step(
                attempt=self._run.key.attempt,
                position=event.position,
                name=event.step_name,
                type=event.step_type,
                status=event.status,
                tries=event.tries,
                rows=event.rows,
                bytes=event.bytes,
                start_time=event.start_time,
                end_time=event.end_time,
                error=RunError.of(event.error) if event.error else None,
                details=event.details,
            )
        )

    async def quality(self, results: Sequence[CheckResult]) -> None:
        """Records quality results; durable when it returns."""
        await self._store.append_checks(self._run, [_check(self._run.key.attempt, result) for result in results])


def _check(attempt: int, result: CheckResult) -> Check:
    return Check(
        attempt=attempt,
        name=result.check_name,
        type=result.check_type,
        severity=result.severity.value,
        status=result.status.value,
        dimension=result.dimension or "",
        expected=result.expected,
        actual=result.actual,
        message=result.message,
        check_time=result.check_time,
    )
