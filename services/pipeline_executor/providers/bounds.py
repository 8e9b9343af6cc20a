"""How much of a customer's file is believed: its first line, the number of its columns, what it unpacks to.

Called by the readers of delivered files before and while they read. Files come from the customer's account, so one may
be anything: each bound is far above what a cloud delivers, and what passes it is refused by name before it can use up
the memory or the disk of an executor that others share.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from libs.errors import FailedPrecondition

MAX_HEADER_CHARACTERS = 2**20
MAX_COLUMNS = 10_000
# Text packs to a tenth or a thirtieth; gzip's own limit is about a thousandth.
MAX_RATIO = 300
_ALWAYS_ALLOWED = 2**30


class Unbelievable(Exception):
    """A file that is none of a cost export; the text says why."""

    def of(self, name: str) -> FailedPrecondition:
        """The error that the customer reads, with the file's own name."""
        return FailedPrecondition("SOURCE_FILE_INVALID", f"File {name} is no file of a cost export: {self}.")


def header(path: Path) -> list[str]:
    """The names in the first line of a delimited file, ``.gz`` or plain, stripped.

    Raises ``Unbelievable`` for what is no header of UTF-8 text, and what ``gzip`` raises for what is damaged.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            line = file.readline(MAX_HEADER_CHARACTERS + 1)
        except UnicodeDecodeError:
            raise Unbelievable("it is not UTF-8 text") from None
    if len(line) > MAX_HEADER_CHARACTERS:
        raise Unbelievable(f"its first line is longer than {MAX_HEADER_CHARACTERS:,} characters")
    if "\0" in line:
        raise Unbelievable("its first line holds the character NUL")
    try:
        names = next(csv.reader([line], strict=True), [])
    except csv.Error:
        raise Unbelievable("its first line is not delimited by commas") from None
    check_columns(len(names))
    return [name.strip() for name in names]


def check_columns(count: int) -> None:
    """Raises ``Unbelievable`` if a file has more columns than any export has."""
    if count > MAX_COLUMNS:
        raise Unbelievable(f"it has {count:,} columns, and at most {MAX_COLUMNS:,} are read")


def check_unpacked(path: Path, size: int) -> None:
    """Raises ``Unbelievable`` if the first ``size`` bytes of what a file unpacks to are too many for it."""
    if size > max(_ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size):
        raise Unbelievable(f"it unpacks to more than {MAX_RATIO} times its size")
