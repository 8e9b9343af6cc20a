"""Page tokens: bound to their list, tenant and filter, and nothing else than where to go on."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import InvalidArgument
from libs.pages import Page, Pages

PAGES = Pages(b"secret")
SCOPE = "acme/runs"


@pytest.mark.parametrize(("asked", "given_size"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_sizes_are_coerced(asked: int, given_size: int) -> None:
    assert PAGES.open(asked, "", scope=SCOPE) == Page(given_size, ())


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        PAGES.open(-1, "", scope=SCOPE)
    assert caught.value.reason == "PAGE_SIZE_INVALID"
    assert caught.value.field_violations[0].field == "page_size"


@given(
    st.lists(st.text(max_size=40), max_size=4), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
)
def test_a_token_leads_to_where_it_was_made(cursor: list[str], filter: dict[str, str]) -> None:
    token = PAGES.token(cursor, scope=SCOPE, filter=filter)
    assert PAGES.open(10, token, scope=SCOPE, filter=filter).cursor == tuple(cursor)


def test_replicas_with_one_secret_read_each_others_tokens() -> None:
    assert Pages(b"secret").open(1, PAGES.token(["a"], scope=SCOPE), scope=SCOPE).cursor == ("a",)


@pytest.mark.parametrize(
    ("scope", "filter", "secret"),
    [
        ("other_co/runs", {"state": "FAILED"}, b"secret"),
        ("acme/steps", {"state": "FAILED"}, b"secret"),
        (SCOPE, {"state": "COMPLETED"}, b"secret"),
        (SCOPE, {}, b"secret"),
        (SCOPE, {"state": "FAILED"}, b"another"),
    ],
)
def test_a_token_is_good_only_where_it_was_made(scope: str, filter: dict[str, str], secret: bytes) -> None:
    token = PAGES.token(["a"], scope=SCOPE, filter={"state": "FAILED"})
    with pytest.raises(InvalidArgument) as caught:
        Pages(secret).open(1, token, scope=scope, filter=filter)
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_other_text_is_a_token(text: str) -> None:
    if text:
        with pytest.raises(InvalidArgument):
            PAGES.open(1, text, scope=SCOPE)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_flipped_bit_goes_unnoticed(position: int, mask: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(PAGES.token(["2025-11-17", "r1"], scope=SCOPE) + "=="))
    raw[position % len(raw)] ^= mask
    with pytest.raises(InvalidArgument):
        PAGES.open(1, base64.urlsafe_b64encode(bytes(raw)).decode(), scope=SCOPE)


def test_cut_gives_a_token_only_if_there_is_more() -> None:
    page = PAGES.open(2, "", scope=SCOPE)
    rows, token = PAGES.cut([1, 2, 3], page, lambda row: [str(row)], scope=SCOPE)
    assert rows == [1, 2]
    assert PAGES.open(2, token, scope=SCOPE).cursor == ("2",)
    assert PAGES.cut([1, 2], page, lambda row: [str(row)], scope=SCOPE) == ([1, 2], "")
    assert PAGES.cut([], page, lambda row: [str(row)], scope=SCOPE) == ([], "")
