"""A caller that goes away parts nobody from the second half of his work."""

from __future__ import annotations

import asyncio

import pytest

from libs.finishing import Finishing


async def test_work_goes_on_when_its_caller_is_cancelled_and_closing_waits_for_it() -> None:
    finishing, halves, go = Finishing(), list[str](), asyncio.Event()

    async def work() -> None:
        halves.append("change")
        await go.wait()
        halves.append("record")

    asking = asyncio.create_task(finishing.to_its_end(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    closing = asyncio.create_task(finishing.close())
    await asyncio.sleep(0)
    assert halves == ["change"] and not closing.done()
    go.set()
    await closing
    assert halves == ["change", "record"]


async def test_an_answer_and_an_error_reach_the_caller() -> None:
    finishing = Finishing()

    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("no")

    assert await finishing.to_its_end(answer()) == 7
    with pytest.raises(ValueError, match="no"):
        await finishing.to_its_end(fail())
    await finishing.close()
