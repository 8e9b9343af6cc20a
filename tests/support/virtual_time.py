"""An event loop on which waiting takes no time, for tests that do no I/O: its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Jump(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    jumped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.jumped += timeout
            timeout = 0
        return super().select(timeout)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Sleeps and timeouts end at once, in their order."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self.set_exception_handler(_report)

    def time(self) -> float:
        """Seconds, waited and jumped."""
        return super().time() + self._jump.jumped


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Says what asyncio would, but for processes that were killed on purpose."""
    if isinstance(context.get("exception"), Exception | None):
        loop.default_exception_handler(context)


def run[T](work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work`` on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
