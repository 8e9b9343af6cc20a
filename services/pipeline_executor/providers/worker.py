"""Runs blocking work of an extractor in a thread, so that a cancelled run leaves no thread behind."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


async def in_thread[T](function: Callable[..., T], *args: Any, interrupt: Callable[[], None] | None = None) -> T:
    """Runs the function in a thread of its own, with an event before its arguments that says when to stop; waits for
    its end. Reads are long: in the shared threads they would keep everybody else's work waiting.

    ``interrupt`` is called beside, for work that cannot look at the event.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(1, thread_name_prefix="extract")
    work = functools.partial(contextvars.copy_context().run, function, stop, *args)
    task: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(pool, work)
    pool.shutdown(wait=False)
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
