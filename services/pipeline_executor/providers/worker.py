"""Runs blocking work of an extractor in a thread, so that a cancelled run leaves no thread behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


async def in_thread[T](function: Callable[..., T], *args: Any, interrupt: Callable[[], None] | None = None) -> T:
    """Runs the function in a thread, with an event before its arguments that says when to stop; waits for its end.

    ``interrupt`` is called beside, for work that cannot look at the event.
    """
    stop = threading.Event()
    task: asyncio.Future[T] = asyncio.ensure_future(asyncio.to_thread(function, stop, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        if interrupt is not None:
            interrupt()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
