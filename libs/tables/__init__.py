"""Table schemas as text: one ``<table>.schema.json`` per table, in a folder per group.

``central`` are the eight tables of dataset ``tenants``, ``helper`` stand beside them, ``x_meta`` and one folder per
provider are created in every tenant's own dataset, and the shared ``focus`` and ``compliance`` with every provider.
A ``.sql`` file in a group is a view; the tables and views it reads stand in it as ``{table}``. These files are the only
truth about columns: a column added here reaches every existing table with the next ``Warehouse.ensure_tables``.
Columns are only ever added.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.cloud.bigquery import SchemaField

_SUFFIX = ".schema.json"
_VIEW_SUFFIX = ".sql"
SHARED = ("focus", "compliance")


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table: its columns and how it is laid out. ``partition_by`` is a DATE or TIMESTAMP column, by day."""

    name: str
    description: str
    partition_by: str | None
    cluster_by: tuple[str, ...]
    fields: tuple[SchemaField, ...]

    @classmethod
    def from_json(cls, name: str, body: Mapping[str, Any]) -> TableSchema:
        """Reads the text of a ``.schema.json`` file; ``ValueError`` if a layout column is not among the fields."""
        fields = tuple(SchemaField.from_api_repr(dict(field)) for field in body["fields"])
        schema = cls(
            name=name,
            description=body["description"],
            partition_by=body.get("partition_by"),
            cluster_by=tuple(body.get("cluster_by", ())),
            fields=fields,
        )
        columns = {field.name for field in fields}
        missing = {*schema.cluster_by, *([schema.partition_by] if schema.partition_by else [])} - columns
        if missing or len(columns) != len(fields):
            raise ValueError(f"{name}{_SUFFIX}: columns missing or named twice: {sorted(missing) or sorted(columns)}")
        return schema


@dataclass(frozen=True, slots=True)
class View:
    """One view: a SELECT whose ``{placeholders}`` are tables of the dataset it is made in."""

    name: str
    text: str


@functools.cache
def group(name: str) -> tuple[TableSchema, ...]:
    """All tables of a group, by name; empty for a provider that has none yet."""
    folder = importlib.resources.files(__name__).joinpath(name)
    if not folder.is_dir():
        return ()
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)), key=lambda entry: entry.name)
    return tuple(
        TableSchema.from_json(entry.name.removesuffix(_SUFFIX), json.loads(entry.read_text("utf-8"))) for entry in files
    )


def of_provider(provider: str) -> tuple[TableSchema, ...]:
    """What a provider's pipelines publish into: its own tables and the shared ones; empty if it has none of its own."""
    own = group(provider)
    return (*own, *(schema for name in SHARED for schema in group(name))) if own else ()


@functools.cache
def views(provider: str) -> tuple[View, ...]:
    """The views that come with a provider: the shared ones, then its own, each after those it reads."""
    found = []
    for name in (*SHARED, provider):
        folder = importlib.resources.files(__name__).joinpath(name)
        files = sorted((e for e in folder.iterdir() if e.name.endswith(_VIEW_SUFFIX)), key=lambda entry: entry.name)
        found += [View(entry.name.removesuffix(_VIEW_SUFFIX), entry.read_text("utf-8")) for entry in files]
    return tuple(found)


def table(group_name: str, name: str) -> TableSchema:
    """One table of a group; ``KeyError`` if there is none of that name."""
    for schema in group(group_name):
        if schema.name == name:
            return schema
    raise KeyError(f"{group_name}/{name}")
