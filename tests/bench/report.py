"""What a measurement prints and leaves behind: a table for people, JSON for machines.

A result is a flat mapping of a figure's name (with its unit) to its value; a section is a list of results of one shape.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Results = Sequence[Mapping[str, Any]]


def show(title: str, results: Results, console: Console | None = None) -> None:
    """Prints results as a table; a figure that one of them lacks is left empty."""
    columns = list(dict.fromkeys(name for result in results for name in result))
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column.replace("_", " "), justify="right" if number else "left")
    for result in results:
        table.add_row(*(_text(result.get(column)) for column in columns))
    (console or Console(width=160)).print(table)


def save(path: Path, sections: Mapping[str, Results]) -> None:
    """Writes all sections with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    made = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **machine}
    path.write_text(json.dumps({"measured": made, "sections": sections}, indent=1, default=str) + "\n")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
