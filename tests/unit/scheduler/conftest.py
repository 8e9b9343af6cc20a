"""What all of the scheduler's unit tests share: a world in memory, and logs that do not outlive a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from libs import caller
from libs.tenancy import Caller, Role
from tests.support.scheduler_world import World


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def world() -> Iterator[World]:
    """The scheduler's use cases on fakes, called by an ADMIN of acme."""
    with caller.bind(Caller(Role.ADMIN, "acme", "key_1", user_id="ann"), request_id="req-1"):
        yield World()
