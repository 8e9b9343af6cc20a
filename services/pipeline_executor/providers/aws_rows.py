"""Decodes one file of an AWS export by DuckDB into ours, and sums it by Arrow: two readers that share no code.

DuckDB streams a file from disk to disk with a bound on its memory; all columns come out as text under our names, so
that parquet and CSV, reports of both versions and every set of columns have one form. What we have no column for is
kept, by name, in one JSON text.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from duckdb import CaseExpression, ColumnExpression, ConstantExpression, Expression, FunctionExpression
from google.cloud.bigquery import SchemaField

from libs.errors import FailedPrecondition
from services.pipeline_executor.providers import bounds

EXTRA = "source_extra"
STORED_DIGITS = 17
_MEMORY = "384MB"
# Small enough that two threads hold theirs of 130 columns within the bound: what spills costs five times as much.
_ROW_GROUP = 16_384
_BATCH_ROWS = 64 * 1024
_BLOCK = 8 * 2**20
# Kinds of columns whose text is never empty, which is not looked for then.
_NUMBERS = ("DOUBLE", "FLOAT", "DECIMAL", "BIGINT", "INTEGER")


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one kind of export: ours, and which of them decide what a row is."""

    schema: tuple[SchemaField, ...]
    start: str
    currency: str
    # Column of money → the name of its sum.
    sums: Mapping[str, str]
    required: tuple[str, ...]
    json: tuple[str, ...]
    # Prefix of a column's name (as ``same`` writes it) → the JSON column that holds the rest of it.
    members: Mapping[str, str]


@functools.cache
def report_layout() -> Layout:
    """Cost and usage reports, legacy and 2.0."""
    return Layout(
        _schema("aws_cost_export.schema.json"),
        start="line_item_usage_start_date",
        currency="line_item_currency_code",
        sums={"line_item_unblended_cost": "unblended_cost"},
        required=(
            "line_item_usage_start_date", "line_item_unblended_cost", "line_item_currency_code",
            "line_item_line_item_type",
        ),
        json=("product", "resource_tags", "cost_category", "discount"),
        members={
            "product": "product", "resource_tags": "resource_tags", "cost_category": "cost_category",
            "discount": "discount",
        },
    )  # fmt: skip


@functools.cache
def focus_layout() -> Layout:
    """AWS's own FOCUS exports, 1.0 and 1.2."""
    return Layout(
        _schema("focus_export.schema.json"),
        start="ChargePeriodStart",
        currency="BillingCurrency",
        sums={"BilledCost": "billed_cost", "EffectiveCost": "effective_cost"},
        required=("ChargePeriodStart", "BilledCost", "EffectiveCost", "BillingCurrency", "ChargeCategory"),
        json=(
            "AllocatedMethodDetails", "AllocatedTags", "CommitmentProgramEligibilityDetails", "ContractApplied",
            "SkuPriceDetails", "Tags",
        ),
        members={},
    )  # fmt: skip


def _schema(name: str) -> tuple[SchemaField, ...]:
    text = importlib.resources.files("services.pipeline_executor.providers").joinpath(name).read_text("utf-8")
    return tuple(SchemaField(row["name"], row["type"]) for row in json.loads(text))


@dataclass(frozen=True, slots=True)
class Window:
    """The billing period of a delivery and the days that are taken of it, all inclusive."""

    start: date
    end: date
    first: date
    last: date


@dataclass
class Drift:
    """Columns that a run's files lack, and columns that are not known here."""

    missing: set[str] = field(default_factory=set)
    extra: set[str] = field(default_factory=set)


# ------------------------------------------------------------------------------------------------- columns


def same(name: str) -> str:
    """A column's name without what differs by version: ``lineItem/UnblendedCost`` is ``line_item_unblended_cost``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True, slots=True)
class Plan:
    """How one file's columns become ours: ``own`` is ours → place; ``members`` our JSON column → {key: place}."""

    own: Mapping[str, int]
    members: Mapping[str, Mapping[str, int]]
    extra: Mapping[str, int]


def plan(layout: Layout, columns: Sequence[str], file: str) -> Plan:
    """Raises ``FailedPrecondition(SOURCE_COLUMNS_MISSING)`` if a column is missing that no row can do without."""
    ours = {same(column.name): column.name for column in layout.schema if column.name != EXTRA}
    own: dict[str, int] = {}
    members: dict[str, dict[str, int]] = {}
    extra: dict[str, int] = {}
    for place, column in enumerate(columns):
        name = ours.get(same(column))
        into, key = _member(layout, column)
        if name is not None and name not in own:
            own[name] = place
        elif into is not None:
            members.setdefault(into, {}).setdefault(_unused(key, members[into]), place)
        else:
            extra[_unused(column, extra)] = place
    for name in members.keys() & own.keys():
        place = own.pop(name)
        extra[_unused(columns[place], extra)] = place
    if lost := [name for name in layout.required if name not in own]:
        raise FailedPrecondition(
            "SOURCE_COLUMNS_MISSING",
            f"File {file} has no column {' and none '.join(lost)}, by this name or the legacy one. Has it been renamed "
            "or left out of the export?",
            columns=",".join(lost),
        )
    return Plan(own, members, extra)


def _member(layout: Layout, column: str) -> tuple[str | None, str]:
    """The JSON column and key of ``product/instanceType``, ``resourceTags/user:app`` or ``resource_tags_user_app``."""
    head, slash, rest = column.partition("/")
    for prefix, into in layout.members.items():
        if slash and same(head) == same(prefix):
            return into, snake(rest) if into == "product" else rest
        if not slash and column.lower().startswith(f"{prefix}_"):
            return into, column[len(prefix) + 1 :]
    return None, column


def snake(name: str) -> str:
    """``instanceType`` as ``instance_type``, which is how CUR 2.0 names the attributes of products."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _unused(key: str, taken: Mapping[str, int]) -> str:
    number = 2
    found = key
    while found in taken:
        found, number = f"{key}_{number}", number + 1
    return found


def header(path: Path) -> list[str]:
    """The names of a file's columns, in order."""
    if path.name.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            bounds.check_columns(file.metadata.num_columns)
            return list(file.schema_arrow.names)
    return bounds.header(path)


# ------------------------------------------------------------------------------------------------- rows


def connect(directory: Path) -> duckdb.DuckDBPyConnection:
    """An engine of this run's own: no network, no extension beyond what is built in, bounded memory."""
    config: dict[str, Any] = {
        "threads": "2",
        "memory_limit": _MEMORY,
        "preserve_insertion_order": "false",
        "temp_directory": str(directory / "spill"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    made = duckdb.connect(":memory:", config=config)
    made.execute("SET TimeZone = 'UTC'")
    return made


def convert(
    engine: duckdb.DuckDBPyConnection, path: Path, made: Plan, layout: Layout, window: Window, target: Path
) -> int:
    """Writes the file's rows of the window as parquet in the layout's schema; how many."""
    relation, names = _relation(engine, path)
    kinds = [str(kind) for kind in relation.types]
    shown: list[Expression] = []
    for column in layout.schema:
        shown.append(_column(column, made, layout, window, names, kinds).alias(column.name))
    day = ColumnExpression("usage_date")
    rows = relation.select(*shown).filter((day >= _day(window.first)) & (day <= _day(window.last)))
    # Loaded once and thrown away: zstd would halve the bytes and take a tenth more CPU for the whole file.
    rows.write_parquet(str(target), compression="snappy", row_group_size=_ROW_GROUP)
    return int(pq.read_metadata(target).num_rows)


def _relation(engine: duckdb.DuckDBPyConnection, path: Path) -> tuple[duckdb.DuckDBPyRelation, list[str]]:
    names = header(path)
    if path.name.endswith(".parquet"):
        return engine.read_parquet(str(path)), names
    # By place: names differ by letter case alone, and DuckDB takes those for one.
    places = [f"c{place}" for place in range(len(names))]
    relation = engine.read_csv(
        str(path),
        header=False,
        skiprows=1,
        delimiter=",",
        quotechar='"',
        escapechar='"',
        auto_detect=False,
        columns=dict.fromkeys(places, "VARCHAR"),
        parallel=False,
        compression="gzip" if path.name.endswith(".gz") else "none",
    )
    return relation, places


def _column(
    column: SchemaField, made: Plan, layout: Layout, window: Window, names: Sequence[str], kinds: Sequence[str]
) -> Expression:
    if column.name == "billing_period":
        return _day(window.start)
    if column.name == "usage_date":
        start = _moment(made.own[layout.start], names, kinds).cast("DATE")
        return FunctionExpression("least", FunctionExpression("greatest", start, _day(window.start)), _day(window.end))
    place = made.own.get(column.name)
    if column.name in (*layout.json, EXTRA):
        keys = made.extra if column.name == EXTRA else made.members.get(column.name, {})
        if place is not None and not keys:
            return _json(place, names, kinds)
        return _object({key: _text(at, names, kinds) for key, at in keys.items()})
    if place is None:
        return ConstantExpression(None).cast("TIMESTAMPTZ" if column.field_type == "TIMESTAMP" else "VARCHAR")
    if column.field_type == "TIMESTAMP":
        return _moment(place, names, kinds).cast("TIMESTAMPTZ")
    if column.name in layout.sums:
        # By way of text, which has a double's shortest digits, and rounded once.
        return _text(place, names, kinds).cast(f"DECIMAL(38, {STORED_DIGITS})").cast("VARCHAR")
    return _text(place, names, kinds)


def _day(day: date) -> Expression:
    return ConstantExpression(day)


def _filled(text: Expression) -> Expression:
    return CaseExpression(FunctionExpression("trim", text) != ConstantExpression(""), text)


def _text(place: int, names: Sequence[str], kinds: Sequence[str]) -> Expression:
    column = ColumnExpression(names[place])
    kind = kinds[place]
    if kind.startswith(("MAP", "STRUCT")) or kind.endswith("[]"):
        return FunctionExpression("to_json", column).cast("VARCHAR")
    text = column if kind == "VARCHAR" else column.cast("VARCHAR")
    return text if kind.startswith(_NUMBERS) else _filled(text)


def _moment(place: int, names: Sequence[str], kinds: Sequence[str]) -> Expression:
    if kinds[place] == "VARCHAR":
        return _text(place, names, kinds).cast("TIMESTAMP")
    return ColumnExpression(names[place]).cast("TIMESTAMP")


def _json(place: int, names: Sequence[str], kinds: Sequence[str]) -> Expression:
    """A map as a JSON object; a text that is no JSON becomes a JSON string; nothing in it is NULL."""
    text = _text(place, names, kinds)
    if kinds[place] == "VARCHAR":
        whole = FunctionExpression("json_valid", text)
        text = CaseExpression(whole, text).otherwise(FunctionExpression("to_json", text).cast("VARCHAR"))
    bare = FunctionExpression("replace", text, ConstantExpression(" "), ConstantExpression(""))
    return CaseExpression((bare != ConstantExpression("{}")) & (bare != ConstantExpression("null")), text)


def _object(values: Mapping[str, Expression]) -> Expression:
    """A JSON object of those that are not NULL; NULL if all are."""
    if not values:
        return ConstantExpression(None).cast("VARCHAR")
    # What is NULL makes its whole pair NULL (by ||), and concat_ws leaves that out.
    pairs = [
        FunctionExpression(
            "||",
            ConstantExpression(json.dumps(key, ensure_ascii=False) + ":"),
            FunctionExpression("to_json", value).cast("VARCHAR"),
        )
        for key, value in values.items()
    ]
    inner = FunctionExpression("concat_ws", ConstantExpression(","), *pairs)
    return CaseExpression(
        inner != ConstantExpression(""),
        FunctionExpression("concat", ConstantExpression("{"), inner, ConstantExpression("}")),
    )


# ------------------------------------------------------------------------------------------------- totals


class Totals:
    """Rows and exact sums of a source's own values by currency: what the published rows are held against."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, Decimal]] = {}

    def add(self, path: Path, made: Plan, layout: Layout, window: Window) -> int:
        """Adds the file's rows of the window; how many rows the whole file has."""
        count = 0
        for batch in _batches(path, [made.own[name] for name in (layout.start, layout.currency, *layout.sums)]):
            count += batch.num_rows
            day = _clamped(batch.column(0), window)
            taken = batch.filter(
                pc.and_(
                    pc.greater_equal(day, pa.scalar(window.first, pa.date32())),
                    pc.less_equal(day, pa.scalar(window.last, pa.date32())),
                )
            )
            self._sum(taken.column(1), {name: taken.column(2 + n) for n, name in enumerate(layout.sums.values())})
        return count

    def _sum(self, currency: pa.Array, costs: Mapping[str, pa.Array]) -> None:
        zero = pa.scalar(Decimal(0), pa.decimal256(76, 38))
        values = {measure: pc.fill_null(_exact(cost), zero) for measure, cost in costs.items()}
        names = pc.fill_null(pc.utf8_trim_whitespace(currency.cast(pa.string())), "")
        for name in pc.unique(names).to_pylist():
            taken = pc.equal(names, name)
            sums = self.sums.setdefault(name, dict.fromkeys(("row_count", *costs), Decimal(0)))
            sums["row_count"] += pc.sum(taken).as_py()
            for measure, column in values.items():
                sums[measure] += pc.sum(column.filter(taken)).as_py()


def _clamped(column: pa.Array, window: Window) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        day = column.cast(pa.date32(), safe=False)
    else:
        day = pc.utf8_slice_codeunits(column.cast(pa.string()), 0, 10).cast(pa.date32())
    return pc.min_element_wise(
        pc.max_element_wise(day, pa.scalar(window.start, pa.date32())), pa.scalar(window.end, pa.date32())
    )


def _exact(column: pa.Array) -> pa.Array:
    """Numbers as written, each to the seventeenth place as it is stored."""
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    filled = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    whole = filled.cast(pa.decimal256(76, 38))
    return pc.round(whole, STORED_DIGITS, round_mode="half_towards_infinity")


def _batches(path: Path, places: Sequence[int]) -> Any:
    if path.name.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            names = [file.schema_arrow.names[place] for place in places]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
                yield batch.select(names)
        return
    width = len(header(path))
    columns = [f"c{place}" for place in range(width)]
    with pa.input_stream(str(path), compression="gzip" if path.name.endswith(".gz") else None) as stream:
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK, column_names=columns, skip_rows=1, use_threads=False),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=[columns[place] for place in places],
                column_types={columns[place]: pa.string() for place in places},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        with reader:
            unpacked = 0
            for batch in reader:
                unpacked += batch.nbytes
                bounds.check_unpacked(path, unpacked)
                yield batch
