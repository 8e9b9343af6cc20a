"""A secret in memory: the one type it travels in, from the edge to the cipher and from the cipher to the executor.

No printing, comparing, pickling or copying shows what it holds. Everybody in this service uses it; nobody passes a
secret as text or in a dictionary any further than the call that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self


class Secret:
    """The fields of a secret, in one buffer that can be wiped and that no printing, pickling or comparing shows.

    Use it as a context manager: the buffer is zeroed at the end. Python may have copied parts of it by then; that is
    why it is opened late and wiped early.
    """

    __slots__ = ("_buffer",)

    def __init__(self, content: bytes | bytearray) -> None:
        self._buffer = bytearray(content)

    @classmethod
    def taking(cls, buffer: bytearray) -> Secret:
        """One that takes over ``buffer``, so that no second copy is left."""
        secret = cls(b"")
        secret._buffer = buffer
        return secret

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Secret:
        """The canonical JSON of ``fields``."""
        return cls(json.dumps(dict(fields), sort_keys=True, separators=(",", ":")).encode())

    def reveal(self) -> bytearray:
        """The content itself; the caller keeps no copy longer than its call."""
        if not self._buffer:
            raise ValueError("the secret was wiped")
        return self._buffer

    def fields(self) -> dict[str, str]:
        """The content as the fields it was made of."""
        return dict(json.loads(self.reveal()))

    def wipe(self) -> None:
        """Zeroes and drops the content."""
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _protocol: object) -> tuple[object, ...]:
        raise TypeError("a secret does not travel by pickling or copying")
