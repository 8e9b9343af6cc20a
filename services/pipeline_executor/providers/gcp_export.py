"""What a Cloud Billing export table looks like, and which of its rows belong to a run: pure, no I/O.

``gcp_billing_export.schema.json`` lists every column of the standard and the detailed export that is known. A real
table has some of them, in the types of its age, and perhaps more: ``plan`` says how to read that table as this schema.
``focus_plan`` does the same for Google's FOCUS export, whose columns are staged as text, as those of other providers.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time

import pyarrow as pa
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from libs.bigquery import TableRef, Typed, Value
from libs.errors import FailedPrecondition
from services.pipeline_executor.providers.cells import any_json, as_text, tags_json
from services.pipeline_executor.providers.parquet import arrow_type, conform_batch

EXTRA_COLUMN = "source_extra"
EXPORT_NAME = re.compile(r"gcp_billing_export_(?:resource_)?v1_\w+", re.ASCII)
FOCUS_EXPORT_NAME = re.compile(r"gcp_billing_export_focus_\w+", re.ASCII)
_SCHEMA_FILE = "gcp_billing_export.schema.json"
_FOCUS_SCHEMA_FILE = "focus_export.schema.json"
_REQUIRED = ("usage_start_time", "cost", "currency")
_FOCUS_REQUIRED = ("ChargePeriodStart", "BilledCost", "EffectiveCost", "BillingCurrency", "ChargeCategory")
_FOCUS_JSON = (
    "AllocatedMethodDetails", "AllocatedTags", "CommitmentProgramEligibilityDetails", "ContractApplied",
    "SkuPriceDetails", "Tags",
)  # fmt: skip
_INGESTION_TIME = "_PARTITIONTIME"
_DAY = timedelta(days=1)
# The row's own time or the time it was written: never before the day of its usage.
_TIMELY_COLUMNS = frozenset(
    {"usage_start_time", "usage_end_time", "export_time", "partition_date", "partition_time"}
    | {"ChargePeriodStart", "ChargePeriodEnd", "x_ExportTime"}
)
_OLD_NAMES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
# What a known column may be in a table, and what it is staged as: numbers in their own type, as money is cast to
# NUMERIC in SQL on both sides; BIGNUMERIC as text, which Arrow and parquet hold more safely.
_STAGED_AS = {
    "STRING": {"STRING": "STRING", "INTEGER": "STRING"},
    "FLOAT": {"FLOAT": "FLOAT", "INTEGER": "FLOAT", "NUMERIC": "NUMERIC", "BIGNUMERIC": "STRING"},
    "NUMERIC": {"NUMERIC": "NUMERIC", "FLOAT": "FLOAT", "INTEGER": "NUMERIC", "BIGNUMERIC": "STRING"},
    "TIMESTAMP": {"TIMESTAMP": "TIMESTAMP", "DATETIME": "TIMESTAMP"},
    "BOOLEAN": {"BOOLEAN": "BOOLEAN"},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read one table: the staging schema, what it lacks and what it has beyond the known columns.

    ``time_column`` is the one that says to which day a row belongs.
    """

    schema: tuple[SchemaField, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    has_credits: bool
    usage_time_type: str
    time_column: str = "usage_start_time"
    # When a row was written; None in a table that does not say.
    written_column: str | None = None

    def staged(self, batch: pa.RecordBatch, *, keep_unknown: bool = True) -> pa.RecordBatch:
        """Rows as the table has them, in the staging schema; what has no place in it goes into ``source_extra``, or is
        left out where unknown columns are not to be kept."""
        schema = pa.schema([pa.field(field.name, arrow_type(field)) for field in self.schema])
        if self.time_column == "ChargePeriodStart":
            if not keep_unknown:
                batch = batch.select([name for name in batch.schema.names if name not in self.extra])
            return conform_batch(_focus_batch(batch, schema), schema, EXTRA_COLUMN)
        return conform_batch(batch, schema, EXTRA_COLUMN if keep_unknown else "")


@dataclass(frozen=True, slots=True)
class Partitioning:
    """The column by which the table is partitioned and its type."""

    column: str
    type: str
    unit: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows belong to a run: usage from ``start`` to before ``end``, in partitions from ``floor`` on.

    Rows whose partition column is NULL are included: those of a column-partitioned table lie in a partition of their
    own, and those of an ingestion-partitioned one have just been streamed.
    """

    start: datetime
    end: datetime
    usage_time_type: str
    partitioning: Partitioning | None
    floor: date
    time_column: str = "usage_start_time"

    def restriction(self) -> str:
        """The filter of a Storage Read session: literals from dates, and one checked identifier."""
        bounds = (
            f"{self.time_column} >= {_literal(self.usage_time_type, self.start)}"
            f" AND {self.time_column} < {_literal(self.usage_time_type, self.end)}"
        )
        if self.partitioning is None:
            return bounds
        column = TableRef(self.partitioning.column).quoted()
        floor = _literal(self.partitioning.type, _midnight(self.floor))
        return f"{bounds} AND ({column} >= {floor} OR {column} IS NULL)"

    def params(self) -> dict[str, Value]:
        """The same bounds as query parameters @start, @end and @floor."""
        kind = self.usage_time_type if self.partitioning is None else self.partitioning.type
        floor = self.start if self.partitioning is None else _midnight(self.floor)
        return {
            "start": _typed(self.usage_time_type, self.start),
            "end": _typed(self.usage_time_type, self.end),
            "floor": _typed(kind, floor),
        }

    def partition_column(self) -> TableRef:
        """The column that @floor bounds, quoted like a table; the usage time itself where there are no partitions."""
        return TableRef(self.time_column if self.partitioning is None else self.partitioning.column)


@functools.cache
def known_schema() -> tuple[SchemaField, ...]:
    """Every column of the export that is known."""
    text = importlib.resources.files(__package__).joinpath(_SCHEMA_FILE).read_text("utf-8")
    return tuple(SchemaField.from_api_repr(field) for field in json.loads(text))


def plan(schema: Sequence[SchemaField]) -> Plan:
    """How to read a table of this schema; ``FailedPrecondition(SOURCE_NOT_A_BILLING_EXPORT)`` if it is none."""
    present = {field.name: field for field in schema}
    if lacking := [name for name in _REQUIRED if name not in present]:
        raise _unusable(f"it has no column {', '.join(lacking)}")
    known = {field.name for field in known_schema()}
    missing: list[str] = []
    extra = [name for name in present if name not in known]
    fields = [_merge(field, present.get(field.name), field.name, missing, extra) for field in known_schema()]
    fields.append(SchemaField(EXTRA_COLUMN, "STRING"))
    return Plan(
        schema=tuple(fields),
        missing=tuple(missing),
        extra=tuple(extra),
        has_credits="credits" in present,
        usage_time_type=_type(present["usage_start_time"]),
        written_column="export_time" if "export_time" in present else None,
    )


def focus_plan(schema: Sequence[SchemaField]) -> Plan:
    """How to read a FOCUS export of this schema; ``FailedPrecondition(SOURCE_NOT_A_FOCUS_EXPORT)`` if it is none."""
    present = {field.name: field for field in schema}
    if lacking := [name for name in _FOCUS_REQUIRED if name not in present]:
        raise FailedPrecondition(
            "SOURCE_NOT_A_FOCUS_EXPORT",
            f"The source table is not Google's FOCUS export: it has no column {', '.join(lacking)}. Give the table "
            "gcp_billing_export_focus_… as source.table_id.",
        )
    text = importlib.resources.files(__package__).joinpath(_FOCUS_SCHEMA_FILE).read_text("utf-8")
    fields = tuple(SchemaField(row["name"], row["type"]) for row in json.loads(text))
    known = {field.name for field in fields}
    return Plan(
        schema=fields,
        missing=tuple(sorted(known - {*present, "usage_date", EXTRA_COLUMN})),
        extra=tuple(name for name in present if name not in known and not name.startswith("x_")),
        has_credits=False,
        usage_time_type=_type(present["ChargePeriodStart"]),
        time_column="ChargePeriodStart",
        written_column="x_ExportTime" if "x_ExportTime" in present else None,
    )


def _focus_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """All columns as text, but for times; those of JSON as one text per value. The day is the charge's first."""
    columns: dict[str, pa.Array] = {}
    for name in batch.schema.names:
        column = batch.column(name)
        if name in schema.names and pa.types.is_timestamp(schema.field(name).type):
            columns[name] = column.cast(schema.field(name).type, safe=False)
        elif name in _FOCUS_JSON:
            encoded = as_text(column).dictionary_encode()
            convert = tags_json if name == "Tags" else any_json
            values = [None if value is None else convert(value) for value in encoded.dictionary.to_pylist()]
            columns[name] = pa.array(values, pa.string()).take(encoded.indices)
        else:
            columns[name] = as_text(column)
    columns["usage_date"] = columns["ChargePeriodStart"].cast(pa.date32(), safe=False)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _merge(
    known: SchemaField, found: SchemaField | None, path: str, missing: list[str], extra: list[str]
) -> SchemaField:
    if found is None:
        missing.append(path)
        return known
    repeated = known.mode == "REPEATED"
    if repeated != (found.mode == "REPEATED") or (known.field_type == "RECORD") != (_type(found) == "RECORD"):
        raise _unusable(f"column {path} is {found.mode} {found.field_type}, expected {known.mode} {known.field_type}")
    if known.field_type != "RECORD":
        staged = _STAGED_AS[known.field_type].get(_type(found))
        if staged is None:
            raise _unusable(f"column {path} is {found.field_type}, expected {known.field_type}")
        return SchemaField(known.name, staged)
    members = {member.name: member for member in found.fields}
    extra.extend(f"{path}.{name}" for name in members if name not in {member.name for member in known.fields})
    merged = [
        _merge(member, members.get(member.name), f"{path}.{member.name}", missing, extra) for member in known.fields
    ]
    return SchemaField(known.name, "RECORD", mode=known.mode, fields=merged)


def partitioning(table: bigquery.Table) -> Partitioning | None:
    """How the table is partitioned by time; None where it is not, or by a number."""
    layout = table.time_partitioning
    if layout is None:
        return None
    if layout.field is None:
        return Partitioning(_INGESTION_TIME, "TIMESTAMP", layout.type_)
    kinds = {field.name: _type(field) for field in table.schema}
    return Partitioning(layout.field, kinds[layout.field], layout.type_)


def rows(read: Plan, layout: Partitioning | None, start_date: date, end_date: date) -> Rows:
    """The rows of the usage days from ``start_date`` to ``end_date``, both included."""
    return Rows(
        start=_midnight(start_date),
        end=_midnight(end_date + _DAY),
        usage_time_type=read.usage_time_type,
        partitioning=layout,
        floor=_floor(layout, start_date),
        time_column=read.time_column,
    )


def _floor(layout: Partitioning | None, start_date: date) -> date:
    """The earliest partition that can hold usage of that day.

    The export appends: a row is written after its usage, so no partition by time of writing is older than the day;
    one day more is for clocks. A column we do not know may be the first of an (invoice) month, which is a Pacific one
    and so may be the month before: then from that.
    """
    floor = start_date - _DAY
    if layout is None:
        return floor
    if layout.column == _INGESTION_TIME:
        if layout.unit in ("MONTH", "YEAR"):
            floor = floor.replace(day=1)
        return floor.replace(month=1) if layout.unit == "YEAR" else floor
    if layout.column not in _TIMELY_COLUMNS:
        floor = (start_date.replace(day=1) - _DAY).replace(day=1) - _DAY
    return floor


def _type(field: SchemaField) -> str:
    return _OLD_NAMES.get(field.field_type, field.field_type)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, clock_time(), UTC)


def _literal(kind: str, value: datetime) -> str:
    match kind:
        case "TIMESTAMP":
            return f"TIMESTAMP '{value:%Y-%m-%d %H:%M:%S}+00'"
        case "DATETIME":
            return f"DATETIME '{value:%Y-%m-%d %H:%M:%S}'"
        case "DATE":
            return f"DATE '{value:%Y-%m-%d}'"
    raise ValueError(f"no literal of type {kind}")


def _typed(kind: str, value: datetime) -> Typed:
    match kind:
        case "TIMESTAMP":
            return Typed(kind, value)
        case "DATETIME":
            return Typed(kind, value.replace(tzinfo=None))
        case "DATE":
            return Typed(kind, value.date())
    raise ValueError(f"no parameter of type {kind}")


def _unusable(why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "SOURCE_NOT_A_BILLING_EXPORT",
        f"The source table is not a Cloud Billing export (standard or detailed): {why}.",
    )
