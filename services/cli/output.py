"""What a command shows: the API's JSON or a table on stdout, everything else on stderr.

JSON is what the gateway answers over REST, name for name and value for value, in ASCII. Tables are for people: coloured
and fitted to a terminal, plain and unfolded elsewhere. Text that came from outside never moves the cursor.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_WIDE = 100_000
# How narrow a column of text may become.
_FOLDED = 24
_STYLES = {
    "green": ("COMPLETED", "VALID", "ACTIVE", "PASS", "OK", "PUBLISHED", "SERVING", "CREATED"),
    "red": ("FAILED", "INVALID", "DEAD_LETTER", "FAIL", "REVOKED", "DENIED", "OFFBOARDING", "DELETED", "NOT_SERVING"),
    "yellow": ("CANCELLED", "CANCELLING", "SKIPPED", "DEFERRED", "SUSPENDED", "WARN", "EXPIRED", "PENDING", "PAUSED"),
    "cyan": ("RUNNING", "CLAIMED", "QUEUED", "UPDATED"),
}
_STYLE_OF = {word: style for style, words in _STYLES.items() for word in words}


class Output(StrEnum):
    """How a command answers."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its head, and what it shows of an item; ``fold`` for text that may be broken."""

    head: str
    value: Callable[[Any], Any]
    right: bool = False
    style: str = ""
    fold: bool = False


class Printer:
    """Prints for one command."""

    def __init__(self, output: Output) -> None:
        self.as_json = output is Output.JSON

    @cached_property
    def out(self) -> Console:
        """Standard output."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """Standard error: progress, messages, errors."""
        return _console(stderr=True)

    @property
    def unicode(self) -> bool:
        """True if bars may be drawn with block characters."""
        return (self.out.encoding or "").lower().startswith("utf")

    def say(self, text: str, style: str = "") -> None:
        """A message beside the answer."""
        self.err.print(_text(text, style), soft_wrap=True)

    def line(self, text: str, style: str = "") -> None:
        """A line of the answer."""
        self.out.print(_text(text, style), soft_wrap=True)

    def json(self, body: Any) -> None:
        """A message, or what was made of several, as JSON."""
        sys.stdout.write(json.dumps(plain(body), indent=2) + "\n")
        sys.stdout.flush()

    def json_line(self, body: Any) -> None:
        """The same in one line, for streams."""
        sys.stdout.write(json.dumps(plain(body)) + "\n")
        sys.stdout.flush()

    def details(self, rows: Iterable[tuple[str, Any]]) -> None:
        """One thing: a line for each field that says something."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            if value not in ("", None):
                grid.add_row(name, _cell(value))
        self._print_table(grid)

    def table(self, items: Sequence[Any], columns: Sequence[Column], *, empty: str) -> None:
        """Many things: one row each. ``empty`` is said where there is none.

        Columns that say nothing are left out, and from the right those for which a terminal is too narrow.
        """
        from rich.table import Table

        if not items:
            self.say(empty)
            return
        cells = [[_cell(column.value(item), column.style) for item in items] for column in columns]
        said = [(column, values) for column, values in zip(columns, cells, strict=True) if any(map(str, values))]
        fitting = _fitting(said, self.out.width)
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for column, _ in fitting:
            justify: Literal["left", "right"] = "right" if column.right else "left"
            shown.add_column(column.head, justify=justify, overflow="fold", no_wrap=not column.fold)
        for row in zip(*(values for _, values in fitting), strict=True):
            shown.add_row(*row)
        self._print_table(shown)
        if left_out := len(said) - len(fitting):
            self.say(f"{left_out} more columns do not fit: widen the terminal, or use --output json.", "dim")

    def _print_table(self, table: Any) -> None:
        if self.out.is_terminal:
            self.out.print(table)
            return
        # Elsewhere nothing is folded, and no line ends in blanks.
        with self.out.capture() as captured:
            self.out.print(table)
        for line in captured.get().splitlines():
            self.out.print(line.rstrip(), soft_wrap=True, markup=False, highlight=False)


def plain(body: Any) -> Any:
    """The JSON form of messages wherever they stand in ``body``: as the gateway prints them."""
    from google.protobuf import json_format
    from google.protobuf.message import Message

    if isinstance(body, Message):
        return json_format.MessageToDict(
            body, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    if isinstance(body, dict):
        return {key: plain(value) for key, value in body.items()}
    if isinstance(body, list | tuple):
        return [plain(value) for value in body]
    return body


def clean(text: str) -> str:
    """Text from outside without what would steer a terminal."""
    return _CONTROL.sub("�", text)


def word(message: Any, field: str) -> str:
    """The word of an enum field; empty for its zero value."""
    number = getattr(message, field)
    name: str = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[number].name
    return name if number else ""


def moment(message: Any, field: str) -> str:
    """A time field as ``2025-11-17 06:00:00`` (UTC); empty if it is absent."""
    if not message.HasField(field):
        return ""
    return f"{getattr(message, field).ToDatetime():%Y-%m-%d %H:%M:%S}"


def at(timestamp: Any) -> str:
    """A time that is there."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M:%S}"


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def took(item: Any) -> str:
    """How long a run or step took; empty while it runs."""
    if not (item.HasField("start_time") and item.HasField("end_time")):
        return ""
    return f"{(item.end_time.ToDatetime() - item.start_time.ToDatetime()).total_seconds():.1f} s"


def window(item: Any) -> str:
    """The dates of a run: one, or first and last."""
    first, last = item.start_date, item.end_date
    return first if first == last else f"{first}..{last}"


def pipeline(item: Any) -> str:
    """``provider/domain/template``."""
    return f"{item.provider}/{item.domain}/{item.template}"


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text("\n".join(clean(line) for line in text.split("\n")), style=style)


def _fitting(columns: list[tuple[Column, list[Any]]], width: int) -> list[tuple[Column, list[Any]]]:
    """As many columns, from the left, as stand side by side in ``width``; at least the first."""
    from rich.cells import cell_len

    taken = -2
    for place, (column, values) in enumerate(columns):
        natural = max(cell_len(str(text)) for text in (column.head, *values))
        taken += 2 + (min(natural, _FOLDED) if column.fold else natural)
        if taken > width and place:
            return columns[:place]
    return columns


def _cell(value: Any, style: str = "") -> Any:
    if not isinstance(value, str | int):
        return value
    text = f"{value:,}" if isinstance(value, int) else value
    return _text(text, style or _STYLE_OF.get(text, ""))
