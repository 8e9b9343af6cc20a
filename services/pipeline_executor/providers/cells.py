"""Cells of an export as text, and text as what it means: days and times, tags, JSON, in every form that clouds write.

Shared by the readers that go by Arrow. Each function is pure; what is no value of its kind is a ``ValueError``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_US_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})(?: .*)?", re.ASCII)


def as_text(column: pa.Array) -> pa.Array:
    """The column as text, as it would stand in a CSV file; an empty text is NULL."""
    if pa.types.is_nested(column.type):
        column = pa.array(
            [None if item is None else json.dumps(_pairs(item), default=str) for item in column.to_pylist()],
            pa.string(),
        )
    elif pa.types.is_timestamp(column.type):
        column = pc.strftime(column.cast(pa.timestamp("s", tz=column.type.tz), safe=False), "%Y-%m-%dT%H:%M:%SZ")
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text)


def _pairs(item: Any) -> Any:
    """A parquet map comes as a list of pairs."""
    if isinstance(item, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in item):
        return dict(item)
    return item


@functools.lru_cache(maxsize=4096)
def moment(text: str) -> datetime:
    """A time, or a day in either form; UTC where it names no zone. ``ValueError`` if it is none."""
    if match := _US_DATE.fullmatch(text.strip()):
        month, day, year = (int(part) for part in match.groups())
        return datetime(year, month, day, tzinfo=UTC)
    # Seven digits after the second, as .NET writes them, are more than Python takes.
    found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.strip()))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def day_of(text: str) -> date:
    """The UTC day: ``2025-11-17``, ``2025-11-17T00:00:00Z`` or ``11/17/2025``, month first. ``ValueError`` if none."""
    return moment(text).astimezone(UTC).date()


@functools.lru_cache(maxsize=16384)
def tags_json(text: str) -> str | None:
    """Tags as one JSON object: EA leaves the braces out, BigQuery has a list of keys and values, others write an empty
    text. What is none is kept whole."""
    inner = text.strip()
    if inner in ('""', "{}", "null"):
        return None
    for candidate in (inner, "{" + inner + "}"):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, list) and all(isinstance(item, dict) for item in found):
            found = _pairs_of(found)
        if isinstance(found, dict):
            return json.dumps({key: _scalar(value) for key, value in found.items()}, ensure_ascii=False)
    return json.dumps({"x_Unparsed": text}, ensure_ascii=False)


def _pairs_of(items: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The object of a list of keys and values; a key with a namespace has it before it. None if it is another list."""
    found: dict[str, Any] = {}
    for item in items:
        lower = {name.lower(): value for name, value in item.items()}
        if not isinstance(lower.get("key"), str):
            return None
        space = lower.get("namespace") or lower.get("x_namespace")
        found.setdefault(f"{space}/{lower['key']}" if space else lower["key"], lower.get("value"))
    return found


def _scalar(value: Any) -> Any:
    return "" if value is None else value if isinstance(value, str | int | float | bool) else json.dumps(value)


@functools.lru_cache(maxsize=16384)
def any_json(text: str) -> str | None:
    """JSON as it is; a text that is none becomes a JSON string."""
    if text.strip() in ('""', "null"):
        return None
    try:
        json.loads(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return text
