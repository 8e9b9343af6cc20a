"""Tables only ever gain: what one release reads and writes, the next one leaves as it is, so both run side by side.

``tests/support/data/released_tables.json`` is what deployments have; a release adds its new tables and columns there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import ROOT

RELEASED: Mapping[str, Any] = json.loads((ROOT / "tests/support/data/released_tables.json").read_text())
TABLES = ROOT / "libs" / "tables"
STATEMENTS = [path for folder in ("libs", "services") for path in sorted((ROOT / folder).rglob("*.sql"))]


def described(path: Path) -> dict[str, Any]:
    text = json.loads(path.read_text())
    return {"partition_by": text.get("partition_by"), "columns": dict(_columns(text["fields"], ""))}


def _columns(fields: list[dict[str, Any]], above: str) -> Iterator[tuple[str, str]]:
    for field in fields:
        yield above + field["name"], f"{field['type']} {field.get('mode', 'NULLABLE')}"
        yield from _columns(field.get("fields", []), f"{above}{field['name']}.")


NOW = {
    path.relative_to(TABLES).as_posix().removesuffix(".schema.json"): described(path)
    for path in sorted(TABLES.rglob("*.schema.json"))
}


@pytest.mark.parametrize("table", RELEASED)
def test_no_column_of_a_released_table_is_lost_or_changed(table: str) -> None:
    """Older code goes on to read and write them; BigQuery itself allows a REQUIRED one to become NULLABLE, no more."""
    assert table in NOW, "a table that deployments have is not described any more"
    assert NOW[table]["partition_by"] == RELEASED[table]["partition_by"]
    for column, was in RELEASED[table]["columns"].items():
        now = NOW[table]["columns"].get(column)
        assert now in (was, was.replace(" REQUIRED", " NULLABLE")), f"{table}.{column} was {was} and is {now}"


@pytest.mark.parametrize("table", [table for table in NOW if table in RELEASED])
def test_a_new_column_of_a_released_table_may_stay_empty(table: str) -> None:
    """Older code inserts rows without it."""
    new = {name: kind for name, kind in NOW[table]["columns"].items() if name not in RELEASED[table]["columns"]}
    assert [name for name, kind in new.items() if kind.endswith("REQUIRED")] == []


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.name)
def test_a_statement_that_inserts_names_its_columns(path: Path) -> None:
    """By place, an older release would write into the columns of a newer one."""
    text = re.sub(r"--[^\n]*", "", path.read_text())
    for inserted in re.finditer(r"\bINSERT\s+(?:INTO\s+)?(\{?[\w.`]+\}?)\s*(\(?)", text, re.IGNORECASE):
        assert inserted[2] == "(", f"{path.name}: INSERT INTO {inserted[1]} names no columns"
