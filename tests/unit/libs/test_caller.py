"""What a call knows of its caller, and what work that outlives it keeps."""

from __future__ import annotations

import asyncio

import pytest

from libs import caller
from libs.errors import Internal
from libs.tenancy import Caller, Role

WHO = Caller(Role.RUNNER, "acme", "k1")


def test_outside_of_a_call_nobody_calls() -> None:
    with pytest.raises(Internal):
        caller.current()
    assert (caller.request_id(), caller.idempotency_key(), caller.remaining()) == ("", None, None)


def test_bind_is_undone_at_the_end_of_the_block() -> None:
    with caller.bind(WHO, request_id="r", idempotency_key="i", timeout=5):
        assert caller.current() is WHO
        assert (caller.request_id(), caller.idempotency_key()) == ("r", "i")
        left = caller.remaining()
        assert left is not None and 4 < left <= 5
    assert caller.request_id() == ""


def test_remaining_never_falls_below_zero() -> None:
    with caller.bind(WHO, timeout=-1):
        assert caller.remaining() == 0


async def test_a_detached_task_keeps_the_caller_and_loses_the_deadline() -> None:
    async def work() -> tuple[Caller, str, float | None]:
        return caller.current(), caller.request_id(), caller.remaining()

    with caller.bind(WHO, request_id="r", timeout=5):
        with caller.detached():
            task = asyncio.create_task(work())
        assert caller.remaining() is not None
    assert await task == (WHO, "r", None)


def test_detached_outside_of_a_call_is_harmless() -> None:
    with caller.detached():
        assert caller.remaining() is None
