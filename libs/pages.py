"""Page tokens of list methods (AIP-158): opaque, signed, bound to the list, its tenant and its filter.

A token is where to go on, never a permission: the caller is authorised again on every page. Every list method opens its
page here, reads ``page.size + 1`` rows after ``page.cursor`` and cuts them with ``cut``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from libs.errors import FieldViolation, InvalidArgument

_MAC_BYTES = 16
_MAX_TOKEN = 2_048


@dataclass(frozen=True, slots=True)
class Page:
    """How many rows to return, and the sort key of the last row already seen (empty on the first page)."""

    size: int
    cursor: tuple[str, ...] = ()


class Pages:
    """Opens and signs page tokens with one secret, which all replicas of a service share. Thread-safe."""

    def __init__(self, secret: bytes, *, default_size: int = 50, max_size: int = 1000) -> None:
        self._key = hmac.digest(secret, b"page tokens", hashlib.sha256)
        self._default_size = default_size
        self._max_size = max_size

    def open(self, page_size: int, page_token: str, *, scope: str, filter: Mapping[str, str] | None = None) -> Page:
        """Returns the page a request asks for; a size of 0 means the default, one above the maximum means the maximum.

        ``scope`` names the list and its tenant (``acme/runs``). Raises ``InvalidArgument``: PAGE_SIZE_INVALID for a
        negative size, PAGE_TOKEN_INVALID for a token that this list, with this filter, did not give out.
        """
        if page_size < 0:
            raise _invalid("PAGE_SIZE_INVALID", "page_size", "must not be negative")
        size = min(page_size or self._default_size, self._max_size)
        if not page_token:
            return Page(size)
        try:
            raw = base64.urlsafe_b64decode(page_token[:_MAX_TOKEN] + "=" * (-len(page_token) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body, scope, filter)):
            raise _invalid("PAGE_TOKEN_INVALID", "page_token", "is not a token of this list with this filter")
        return Page(size, tuple(json.loads(body)))

    def token(self, cursor: Sequence[str], *, scope: str, filter: Mapping[str, str] | None = None) -> str:
        """Returns the token of the page after the row whose sort key is ``cursor``."""
        body = json.dumps(list(cursor), separators=(",", ":"), ensure_ascii=False).encode()
        return base64.urlsafe_b64encode(self._mac(body, scope, filter) + body).rstrip(b"=").decode()

    def cut[R](
        self,
        rows: Sequence[R],
        page: Page,
        cursor_of: Callable[[R], Sequence[str]],
        *,
        scope: str,
        filter: Mapping[str, str] | None = None,
    ) -> tuple[list[R], str]:
        """Returns the page's rows out of up to ``page.size + 1``, and the next page's token (empty on the last)."""
        shown = list(rows[: page.size])
        if len(rows) <= page.size:
            return shown, ""
        return shown, self.token(cursor_of(shown[-1]), scope=scope, filter=filter)

    def _mac(self, body: bytes, scope: str, filter: Mapping[str, str] | None) -> bytes:
        bound = json.dumps([scope, sorted((filter or {}).items())], separators=(",", ":")).encode()
        return hmac.digest(self._key, hashlib.sha256(bound).digest() + body, hashlib.sha256)[:_MAC_BYTES]


def _invalid(reason: str, field: str, text: str) -> InvalidArgument:
    return InvalidArgument(reason, f"{field} {text}.", field_violations=[FieldViolation(field, text)])
