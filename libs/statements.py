"""What is sent to BigQuery: the text of a ``.sql`` file, the names put into it, and its typed parameters.

Everything a store needs to call ``libs.bigquery`` (which names it again). The invariant: no identifier is ever pasted
into SQL except through ``TableRef``, which checks it.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from google.cloud import bigquery

type Scalar = str | int | bool | float | Decimal | date | datetime | bytes
type Value = Scalar | Typed | Sequence[Scalar] | None

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1023}", re.ASCII)
_PROJECT = re.compile(r"(?:[a-z0-9.-]{1,60}:)?[a-z][a-z0-9-]{0,61}[a-z0-9]", re.ASCII)
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_COMMENT = re.compile(r"--[^\n]*")
_PARAMETER = re.compile(r"(?<!@)@([a-z_][a-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Typed:
    """A parameter whose type its value does not show: ``Typed("DATE", None)``, ``Typed("TIMESTAMP", [])``."""

    type: str
    value: Any


@dataclass(frozen=True, slots=True)
class TableRef:
    """A table by name, each part checked to be an identifier; without a dataset it is bound by the statement's."""

    table: str
    dataset: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        names = [self.table] if self.dataset is None else [self.table, self.dataset]
        if not all(_IDENTIFIER.fullmatch(name) for name in names):
            raise ValueError(f"not a table: {self!r}")
        if self.project is not None and (self.dataset is None or not _PROJECT.fullmatch(self.project)):
            raise ValueError(f"not a table: {self!r}")

    @classmethod
    def parse(cls, text: str) -> TableRef:
        """Reads ``table``, ``dataset.table`` or ``project.dataset.table``; ``ValueError`` for anything else."""
        parts = text.split(".")
        if len(parts) > 3:
            raise ValueError(f"not a table: {text!r}")
        return cls(*reversed(parts))

    def quoted(self) -> str:
        """The name as SQL writes it, in backticks."""
        parts = [part for part in (self.project, self.dataset, self.table) if part is not None]
        return "`" + ".".join(parts) + "`"


@dataclass(frozen=True, slots=True)
class Sql:
    """The text of one ``.sql`` file, a statement or a script, and the name it is counted and labelled by."""

    name: str
    text: str

    @classmethod
    def load(cls, package: str, name: str) -> Sql:
        """Reads ``name`` (``sql/read_quotas.sql``) beside the modules of ``package`` (``services.tenant``)."""
        text = importlib.resources.files(package).joinpath(name).read_text("utf-8")
        return cls(f"{package}/{name}", text)

    def takes(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Those of the values that the statement names: what many statements may use is offered to each."""
        named = set(_PARAMETER.findall(_COMMENT.sub("", self.text)))
        return {name: value for name, value in params.items() if name in named}

    @property
    def placeholders(self) -> frozenset[str]:
        """The names that ``with_tables`` asks for."""
        return frozenset(PLACEHOLDER.findall(self.text))

    def with_tables(self, **tables: TableRef) -> Sql:
        """Puts quoted table names for ``{name}``; ``ValueError`` if names and placeholders differ."""
        if self.placeholders != set(tables):
            raise ValueError(f"{self.name} has placeholders {sorted(self.placeholders)}")
        return Sql(self.name, PLACEHOLDER.sub(lambda match: tables[match[1]].quoted(), self.text))


def rows_param(rows: Iterable[Mapping[str, Any]]) -> str:
    """The JSON text of a batch for the ``@rows`` parameter; read in SQL with ``JSON_VALUE`` and a CAST.

    Times become ISO 8601 in UTC, decimals text, bytes base64, and nested lists and objects JSON text of their own
    (``JSON_VALUE`` reads scalars only). None stays null.
    """
    return json.dumps([{key: _json_value(value) for key, value in row.items()} for row in rows], separators=(",", ":"))


def _json_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return str(value)
        case datetime():
            return _utc(value).isoformat(timespec="microseconds")
        case date():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case Mapping() | list() | tuple():
            return json.dumps(value, default=_json_value, separators=(",", ":"), sort_keys=True)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise TypeError("a time without a zone")
    return value.astimezone(UTC)


def parameter(name: str, value: Value) -> bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter:
    """The client's form of one parameter, its type told by the value."""
    if isinstance(value, Typed):
        if isinstance(value.value, list | tuple):
            return bigquery.ArrayQueryParameter(name, value.type, list(value.value))
        return bigquery.ScalarQueryParameter(name, value.type, value.value)
    if isinstance(value, list | tuple | set | frozenset):
        items = [_scalar(item) for item in value]
        return bigquery.ArrayQueryParameter(name, items[0][0] if items else "STRING", [item for _, item in items])
    kind, scalar = _scalar(value)
    return bigquery.ScalarQueryParameter(name, kind, scalar)


def _scalar(value: Any) -> tuple[str, Any]:
    match value:
        case None:
            return "STRING", None
        case str():
            return "STRING", str(value)
        case bool():
            return "BOOL", value
        case int():
            return "INT64", value
        case float():
            return "FLOAT64", value
        case Decimal():
            return "NUMERIC", value
        case datetime():
            return "TIMESTAMP", _utc(value)
        case date():
            return "DATE", value
        case bytes():
            return "BYTES", value
    raise TypeError(f"no query parameter type for {type(value).__name__}")
