"""Arrow batches → one parquet file in bounded memory, brought to one schema on the way.

Shared by the providers whose rows arrive as Arrow. Columns the source lacks become NULL; columns nobody planned for
are kept, as one JSON text per row, so that a source may grow without anything being lost.
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud.bigquery import SchemaField

ROW_GROUP_BYTES = 32 * 2**20
_ARROW: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "JSON": pa.string(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "NUMERIC": pa.decimal128(38, 9),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "DATETIME": pa.timestamp("us"),
    "DATE": pa.date32(),
    "BYTES": pa.binary(),
}


def arrow_type(field: SchemaField) -> pa.DataType:
    """The Arrow type of a column."""
    if field.field_type in ("RECORD", "STRUCT"):
        item: pa.DataType = pa.struct([pa.field(child.name, arrow_type(child)) for child in field.fields])
    else:
        item = _ARROW[field.field_type]
    return pa.list_(pa.field("item", item)) if field.mode == "REPEATED" else item


def conform(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in the given type: struct members in its order, missing ones NULL, others dropped, scalars cast."""
    if column.type.equals(kind):
        return column
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        present = {column.type.field(i).name: member for i, member in enumerate(column.flatten())}
        members = [
            conform(present[field.name], field.type) if field.name in present else pa.nulls(len(column), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(members, fields=list(kind), mask=column.is_null())
    if pa.types.is_list(kind) and pa.types.is_list(column.type):
        column = pa.concat_arrays([column])  # offsets from zero
        items = conform(column.values, kind.value_type)
        mask = column.is_null() if column.null_count else None
        return pa.ListArray.from_arrays(column.offsets, items, type=kind, mask=mask)
    return column.cast(kind)


def leftovers(column: pa.Array, kind: pa.DataType | None) -> pa.Array | None:
    """What ``conform`` would drop of the column, in its own shape; None if nothing."""
    if kind is None:
        return column
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        planned = {field.name: field.type for field in kind}
        kept: dict[str, pa.Array] = {}
        for i, member in enumerate(column.flatten()):
            name = column.type.field(i).name
            left = leftovers(member, planned.get(name))
            if left is not None:
                kept[name] = left
        return pa.StructArray.from_arrays(list(kept.values()), names=list(kept)) if kept else None
    if pa.types.is_list(kind) and pa.types.is_list(column.type):
        column = pa.concat_arrays([column])
        left = leftovers(column.values, kind.value_type)
        mask = column.is_null() if column.null_count else None
        return None if left is None else pa.ListArray.from_arrays(column.offsets, left, mask=mask)
    return None


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema, extra_column: str) -> pa.RecordBatch:
    """The batch in the given schema; what has no place in it goes into ``extra_column`` as a JSON object, or NULL."""
    arrays = []
    for field in schema:
        if field.name == extra_column:
            arrays.append(_extras(batch, schema, extra_column))
        elif field.name in batch.schema.names:
            arrays.append(conform(batch.column(field.name), field.type))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _extras(batch: pa.RecordBatch, schema: pa.Schema, extra_column: str) -> pa.Array:
    planned = {field.name: field.type for field in schema if field.name != extra_column}
    left = {name: leftovers(batch.column(name), planned.get(name)) for name in batch.schema.names}
    columns = {name: column.to_pylist() for name, column in left.items() if column is not None}
    if not columns:
        return pa.nulls(batch.num_rows, pa.string())
    rows: Iterator[dict[str, Any]] = (
        {name: column[i] for name, column in columns.items()} for i in range(batch.num_rows)
    )
    return pa.array([_json(_without_nulls(row)) for row in rows], pa.string())


def _without_nulls(value: Any) -> Any:
    """The value without NULL members and without what is then empty; None if nothing is left."""
    if isinstance(value, dict):
        kept = {name: inner for name, item in value.items() if (inner := _without_nulls(item)) is not None}
        return kept or None
    if isinstance(value, list):
        items = [_without_nulls(item) for item in value]
        return items if any(item is not None for item in items) else None
    return value


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(_plain(value), separators=(",", ":"), sort_keys=True)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case Decimal():
            return format(value, "f")
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case None | str() | bool() | int() | float():
            return value
    return str(value)


class ParquetFile:
    """A parquet file written batch by batch from any thread; holds at most one row group in memory."""

    def __init__(self, path: Path, schema: Sequence[SchemaField]) -> None:
        self.path = path
        self.schema = pa.schema([pa.field(field.name, arrow_type(field)) for field in schema])
        self.rows = 0
        self.bytes = 0
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd", compression_level=1)
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._lock = threading.Lock()

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds a batch of exactly this file's schema."""
        with self._lock:
            self._held.append(batch)
            self._held_bytes += batch.nbytes
            self.rows += batch.num_rows
            self.bytes += batch.nbytes
            if self._held_bytes >= ROW_GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held, self.schema))
            self._held, self._held_bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with self._lock:
                self._writer.close()

    def close(self) -> None:
        """Writes what is held, and the file's end."""
        with self._lock:
            self._flush()
            self._writer.close()
