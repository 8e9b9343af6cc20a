"""Work that must not stop between two writes because its client left or its deadline passed.

A change and its audit record are two writes. Whoever makes them runs them here: the caller may go away, the work goes
on to its end, and ``close`` waits for what was begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any


class Finishing:
    """What was begun and has not ended; one per process and use, for one event loop."""

    def __init__(self, around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext) -> None:
        """``around`` is entered where work begins, such as ``libs.caller.detached``, which drops the deadline."""
        self._around = around
        self._unfinished: set[asyncio.Task[Any]] = set()

    async def to_its_end[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Returns or raises what ``work`` does; a caller that is cancelled leaves it running."""
        with self._around():
            task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        # Nobody may be left to see how it ended.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Returns when all that was begun has ended."""
        while self._unfinished:
            await asyncio.wait(self._unfinished)
