"""What questions about published data have in common: how a date is read, and how one is refused."""

from __future__ import annotations

import re
from datetime import date

from libs.errors import FieldViolation, InvalidArgument

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


def parse_date(name: str, text: str) -> date:
    """The date in a field; ``InvalidArgument(DATE_INVALID)``."""
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise bad("DATE_INVALID", name, "must be a date, YYYY-MM-DD")


def check_group_by(given: tuple[str, ...], known: tuple[str, ...], prefix: str = "") -> tuple[str, ...]:
    """The dimensions, each once and of those known (or ``prefix`` and a key); ``InvalidArgument(GROUP_BY_INVALID)``."""
    shown = ", ".join([*known, f"{prefix}<key>"] if prefix else known)
    for name in given:
        key = name.removeprefix(prefix) if prefix and name.startswith(prefix) else ""
        if name not in known and not (key and key.isprintable()):
            raise bad("GROUP_BY_INVALID", "group_by", f"must be of: {shown}")
    if len(set(given)) != len(given):
        raise bad("GROUP_BY_INVALID", "group_by", "names a dimension twice")
    return given


def bad(reason: str, name: str, text: str) -> InvalidArgument:
    """A refusal of one field."""
    return InvalidArgument(reason, f"{name} {text}.", field_violations=[FieldViolation(name, f"{text}.")])
