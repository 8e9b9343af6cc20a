"""Ports for what a test starts, and one that nobody ever answers on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from deploy.local.layout import free_ports


def free_port() -> int:
    """A port nobody listens on, out of the range the kernel gives to whoever asks for any: it stays free."""
    return next(free_ports())


@contextlib.contextmanager
def dead_port() -> Iterator[int]:
    """A port that refuses connections and is given to nobody else meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])
