"""A gateway that answers as a test says, and somebody signed in there as tenant acme's admin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Gateway, Terminal, serving


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serving() as gateway:
        yield gateway


@pytest.fixture
def nobody(tmp_path: Path) -> Terminal:
    """Not signed in."""
    return Terminal(tmp_path / "config")


@pytest.fixture
def acme(gateway: Gateway, nobody: Terminal) -> Terminal:
    """Signed in as tenant acme's admin."""
    nobody.sign_in(gateway.address)
    return nobody


@pytest.fixture
def admin(gateway: Gateway, nobody: Terminal) -> Terminal:
    """Signed in as the platform's admin."""
    nobody.sign_in(gateway.address, tenant_id="", role="PLATFORM_ADMIN")
    return nobody
