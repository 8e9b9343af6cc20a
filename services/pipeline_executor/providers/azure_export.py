"""What Cost Management exports look like: which blobs make up a delivery, which deliveries a run reads, and how a row
of any version becomes one of ours.

Pure: names, manifests and batches in, decisions and batches out. ``azure.py`` does the reading. Two rules carry it. A
delivery is one run of an export for one billing period, and holds that period whole; the newest run is the truth about
it. Column names differ by version, agreement and letter case, so that columns are found by alias without case; a column
nobody knows is kept in ``source_extra``.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from google.cloud.bigquery import SchemaField

from libs.errors import FailedPrecondition, Unavailable
from services.pipeline_executor.providers.cells import any_json, as_text, day_of, moment, tags_json
from services.pipeline_executor.providers.parquet import arrow_type, conform_batch

ACTUAL, AMORTIZED, FOCUS = "ACTUAL", "AMORTIZED", "FOCUS"
BOTH = "BOTH"
MANIFEST = "manifest.json"
EXTRA = "source_extra"
FOCUS_JSON = ("AllocatedMethodDetails", "AllocatedTags", "CommitmentProgramEligibilityDetails", "ContractApplied",
              "SkuPriceDetails", "Tags")  # fmt: skip
_TYPES = {"actualcost": ACTUAL, "usage": ACTUAL, "amortizedcost": AMORTIZED, "focuscost": FOCUS}
_STORED = Decimal("1e-17")
_DATA = re.compile(r"\.(?:csv|csv\.gz|parquet|snappy\.parquet)$", re.IGNORECASE)
_PERIOD = re.compile(
    r"(?P<root>(?:.*/)?)(?P<export>[^/]+)/(?P<start>\d{8})-(?P<end>\d{8})/(?P<run>(?:.*/)?)(?P<file>[^/]+)"
)


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob as a listing shows it."""

    path: str
    size: int
    modified: datetime
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One data file of a delivery; ``rows`` and ``size`` are what the manifest says, ``etag`` what was listed."""

    path: str
    size: int | None = None
    rows: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One run of one export for one period, both days inclusive."""

    export: str
    view: str
    start: date
    end: date
    run: str
    written: datetime
    parts: tuple[Part, ...]
    rows: int | None = None


@dataclass(slots=True)
class _Run:
    """The blobs of one run's folder."""

    blobs: list[Blob] = field(default_factory=list)
    manifest: Blob | None = None

    @property
    def modified(self) -> datetime:
        return max(blob.modified for blob in [*self.blobs, *([self.manifest] if self.manifest else [])])


type Folders = Mapping[tuple[str, str, date, date], Mapping[str, _Run]]


def folders(blobs: Iterable[Blob], export_name: str | None) -> Folders:
    """The blobs by (export's path, export's name, period) and run's folder; what lies elsewhere is not an export's."""
    found: dict[tuple[str, str, date, date], dict[str, _Run]] = {}
    for blob in blobs:
        match = _PERIOD.fullmatch(blob.path)
        if match is None or (export_name and match["export"].lower() != export_name.lower()):
            continue
        try:
            start, end = (datetime.strptime(match[name], "%Y%m%d").date() for name in ("start", "end"))
        except ValueError:
            continue
        is_manifest = match["file"].lower() == MANIFEST
        if not is_manifest and not _DATA.search(match["file"]):
            continue
        runs = found.setdefault((match["root"] + match["export"], match["export"], start, end), {})
        # Exports without partitioned files put each run's one file straight into the period's folder.
        run = runs.setdefault(match["run"] or ("" if is_manifest else match["file"]), _Run())
        if is_manifest:
            run.manifest = blob
        else:
            run.blobs.append(blob)
    return found


def overlapping(found: Folders, start: date, end: date) -> Folders:
    """Those whose period shares a day with the given ones (inclusive)."""
    return {key: runs for key, runs in found.items() if key[2] <= end and key[3] >= start}


def manifests(found: Folders) -> Sequence[str]:
    """Paths of the manifests that ``deliveries`` needs."""
    return [run.manifest.path for runs in found.values() for run in runs.values() if run.manifest]


def deliveries(found: Folders, texts: Mapping[str, bytes], container: str) -> Sequence[Delivery]:
    """The newest run of each export and period.

    Raises ``Unavailable(DELIVERY_IN_PROGRESS)`` if the newest one's manifest is yet to come, ``FailedPrecondition
    (DELIVERY_INCOMPLETE)`` if a file of its manifest is not there or not whole.
    """
    with_manifests = {key[0] for key, runs in found.items() if any(run.manifest for run in runs.values())}
    newest: list[Delivery] = []
    for (root, export, start, end), runs in found.items():
        candidates = []
        unfinished: list[_Run] = []
        for name, run in runs.items():
            if run.manifest is not None:
                candidates.append(_of_manifest(export, start, end, name, run, texts[run.manifest.path], container))
            elif root in with_manifests:
                unfinished.append(run)
            else:
                candidates.append(_of_files(export, start, end, name, run))
        last = max(candidates, key=lambda delivery: (delivery.written, delivery.run), default=None)
        if any(last is None or run.modified > last.written for run in unfinished):
            raise Unavailable(
                "DELIVERY_IN_PROGRESS",
                f"Export {export} is being delivered for {start} to {end}: its manifest is not there yet; try again.",
            )
        if last is not None:
            newest.append(_complete(last, runs))
    return newest


def _of_manifest(export: str, start: date, end: date, name: str, run: _Run, text: bytes, container: str) -> Delivery:
    assert run.manifest is not None
    try:
        body = json.loads(text.decode("utf-8-sig"))
        parts = tuple(
            Part(_inside(item["blobName"], container), item.get("byteCount"), item.get("dataRowCount"))
            for item in body["blobs"]
        )
        kind = str(body.get("exportConfig", {}).get("type", ""))
        submitted = body.get("runInfo", {}).get("submittedTime")
        written = run.manifest.modified if submitted is None else moment(submitted)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise FailedPrecondition(
            "DELIVERY_INVALID", f"The manifest of export {export} for {start} to {end} cannot be read."
        ) from exc
    rows = [part.rows for part in parts]
    return Delivery(
        export=export,
        view=_TYPES.get(kind.lower()) or _view_by_name(export),
        start=start,
        end=end,
        run=name,
        written=written,
        parts=parts,
        rows=body.get("dataRowCount") or (sum(n or 0 for n in rows) if rows and None not in rows else None),
    )


def _of_files(export: str, start: date, end: date, name: str, run: _Run) -> Delivery:
    parts = tuple(Part(blob.path, blob.size) for blob in sorted(run.blobs, key=lambda blob: blob.path))
    return Delivery(
        export=export, view=_view_by_name(export), start=start, end=end, run=name, written=run.modified, parts=parts
    )


def _inside(path: str, container: str) -> str:
    return path.removeprefix("/").removeprefix(f"{container}/")


def _view_by_name(export: str) -> str:
    name = export.lower()
    return FOCUS if "focus" in name else AMORTIZED if "amort" in name else ACTUAL


def _complete(delivery: Delivery, runs: Mapping[str, _Run]) -> Delivery:
    there = {blob.path: blob for run in runs.values() for blob in run.blobs}
    lost = [part.path for part in delivery.parts if part.path not in there]
    short = [
        part.path
        for part in delivery.parts
        if part.path in there and part.size is not None and there[part.path].size != part.size
    ]
    if lost or short:
        names = sorted({path.rpartition("/")[2] for path in [*lost, *short]})
        what = f"{len(lost)} of {len(delivery.parts)} files are missing" if lost else "a file is not of its size"
        raise FailedPrecondition(
            "DELIVERY_INCOMPLETE",
            f"The newest delivery of export {delivery.export} for {delivery.start} to {delivery.end} is incomplete: "
            f"{what} ({', '.join(names[:3])}). Run the export again.",
            files=",".join(names[:20]),
        )
    return replace(delivery, parts=tuple(replace(part, etag=there[part.path].etag) for part in delivery.parts))


# ------------------------------------------------------------------------------------------------- what a run reads


@dataclass(frozen=True, slots=True)
class Reading:
    """One delivery and the days that are taken from it."""

    delivery: Delivery
    days: frozenset[date]


def readings(found: Sequence[Delivery], views: Sequence[str], start: date, end: date) -> Sequence[Reading]:
    """Which day is read from which delivery: the newest that covers it, and only days that all exports there are cover.

    Raises ``FailedPrecondition``: SOURCE_NOT_FOUND if there is no export of these views, SOURCE_AMBIGUOUS if there are
    two of one view.
    """
    wanted = [delivery for delivery in found if delivery.view in views]
    if not wanted:
        others = sorted({delivery.export for delivery in found})
        raise FailedPrecondition(
            "SOURCE_NOT_FOUND",
            f"There is no export of {' or '.join(view.lower() for view in views)} cost for these days"
            + (f"; there are others: {', '.join(others[:5])}." if others else "."),
        )
    for view in views:
        names = sorted({delivery.export for delivery in wanted if delivery.view == view})
        if len(names) > 1:
            raise FailedPrecondition(
                "SOURCE_AMBIGUOUS",
                f"There are {len(names)} exports of {view.lower()} cost ({', '.join(names[:5])}): give "
                "source.directory or source.export_name of the one to read.",
                candidates=",".join(names[:20]),
            )
    taken: dict[str, dict[date, Delivery]] = {}
    for delivery in sorted(wanted, key=lambda delivery: (delivery.written, delivery.run)):
        first, last = max(start, delivery.start), min(end, delivery.end)
        for offset in range((last - first).days + 1):
            taken.setdefault(delivery.view, {})[first + timedelta(offset)] = delivery
    common = frozenset.intersection(*(frozenset(days) for days in taken.values()))
    return [
        Reading(delivery, days)
        for view in sorted(taken)
        for delivery in wanted
        if (days := frozenset(day for day in common if taken[view][day] is delivery))
    ]


# ------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one kind of export: ours, and by which names (lower case, best first) each is found."""

    schema: tuple[SchemaField, ...]
    aliases: Mapping[str, tuple[str, ...]]
    charge_day: str
    period_start: str
    period_end: str
    end_is_exclusive: bool
    cost: str
    currency: str
    required: tuple[str, ...]
    json: tuple[str, ...]
    # Column → the name of its sum; ``{view}`` in it is ACTUAL, AMORTIZED or FOCUS in lower case.
    sums: Mapping[str, str]

    @property
    def arrow(self) -> pa.Schema:
        """The schema of the staged rows."""
        return pa.schema([pa.field(column.name, arrow_type(column)) for column in self.schema])


@functools.cache
def cost_layout() -> Layout:
    """Actual and amortized exports, EA and MCA, of every version."""
    schema, aliases = _columns("azure_cost_export.schema.json")
    return Layout(
        schema,
        aliases,
        charge_day="charge_date",
        period_start="billing_period_start",
        period_end="billing_period_end",
        end_is_exclusive=False,
        cost="cost",
        currency="billing_currency",
        required=("charge_date", "cost", "billing_currency", "charge_type"),
        json=("tags", "additional_info"),
        sums={"cost": "{view}_cost"},
    )


@functools.cache
def focus_layout() -> Layout:
    """Microsoft's own FOCUS exports, 1.0 to 1.2."""
    schema, aliases = _columns("focus_export.schema.json")
    return Layout(
        schema,
        aliases,
        charge_day="ChargePeriodStart",
        period_start="BillingPeriodStart",
        period_end="BillingPeriodEnd",
        end_is_exclusive=True,
        cost="BilledCost",
        currency="BillingCurrency",
        required=("ChargePeriodStart", "BilledCost", "EffectiveCost", "BillingCurrency", "ChargeCategory"),
        json=FOCUS_JSON,
        sums={"BilledCost": "billed_cost", "EffectiveCost": "effective_cost"},
    )


def _columns(name: str) -> tuple[tuple[SchemaField, ...], Mapping[str, tuple[str, ...]]]:
    text = importlib.resources.files("services.pipeline_executor.providers").joinpath(name).read_text("utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    schema = tuple(SchemaField(row["name"], row["type"]) for row in rows)
    return schema, {row["name"]: tuple(row["from"]) for row in rows if "from" in row}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one file's columns become ours: ``names`` is its own name → ours; ``extra`` and ``missing`` are drift."""

    names: Mapping[str, str]
    extra: tuple[str, ...]
    missing: tuple[str, ...]


def plan(layout: Layout, columns: Sequence[str], file: str) -> Plan:
    """Raises ``FailedPrecondition(SOURCE_COLUMNS_MISSING)`` if a column is missing that no row can do without."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(column.strip().lstrip("\ufeff").lower(), column)
    names = {}
    for ours, aliases in layout.aliases.items():
        theirs = next((by_name[alias] for alias in aliases if alias in by_name), None)
        if theirs is not None:
            names[theirs] = ours
    missing = tuple(ours for ours in layout.aliases if ours not in names.values())
    if lost := [ours for ours in layout.required if ours in missing]:
        asked = "; ".join(" or ".join(layout.aliases[ours]) for ours in lost)
        raise FailedPrecondition(
            "SOURCE_COLUMNS_MISSING",
            f"File {file} has no column {asked} (in any letter case). Has one been renamed or left out of the export?",
            columns=",".join(lost),
        )
    return Plan(names, tuple(column for column in columns if column not in names), missing)


def unknown(columns: Iterable[str]) -> list[str]:
    """Of columns that have no place of their own, the unannounced: FOCUS lets providers add ``x_`` columns."""
    return sorted(name for name in columns if not name.lower().startswith("x_"))


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of a file are taken: those whose day, moved into its billing period, is one of ``days``.

    A row without a billing period of its own has the delivery's.
    """

    start: date
    end: date
    days: frozenset[date]

    def day(self, charged: date | None, start: date | None, end: date | None) -> date:
        """The day a charge counts for: inside its billing period and inside the delivery; without one, the first."""
        first = start or self.start
        return _within(_within(charged or first, first, end or self.end), self.start, self.end)


def _within(day: date, first: date, last: date) -> date:
    return min(max(day, first), last)


def rows(
    batch: pa.RecordBatch, layout: Layout, made: Plan, window: Window, constants: Mapping[str, str], file: str
) -> pa.RecordBatch:
    """The batch's rows of the window, in the layout's schema. ``SOURCE_VALUE_INVALID`` names file and column."""
    columns: dict[str, pa.Array] = {}
    for name in batch.schema.names:
        ours = made.names.get(name)
        text = as_text(batch.column(name))
        if ours is None:
            columns[name] = text
            continue
        kind = layout.arrow.field(ours).type
        if pa.types.is_date(kind):
            columns[ours] = _mapped(text, day_of, kind, file, name)
        elif pa.types.is_timestamp(kind):
            columns[ours] = _mapped(text, moment, kind, file, name)
        elif ours in layout.json:
            columns[ours] = _mapped(text, tags_json if ours.lower() == "tags" else any_json, kind, file, name)
        else:
            columns[ours] = text
    count = batch.num_rows
    charged = _as_dates(columns[layout.charge_day])
    start = _or(columns.get(layout.period_start), window.start, count)
    end = _or(columns.get(layout.period_end), window.end + timedelta(layout.end_is_exclusive), count)
    last = pc.subtract(_as_dates(end).cast(pa.int32()), pa.scalar(int(layout.end_is_exclusive), pa.int32()))
    day = _moved(_moved(charged, _as_dates(start), last.cast(pa.date32())), window.start, window.end)
    columns["usage_date"] = day
    columns[layout.period_start] = start
    columns[layout.period_end] = end
    for name, value in constants.items():
        if name in layout.arrow.names:
            columns[name] = pa.repeat(pa.scalar(value), count)
    made_batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    taken = pc.is_in(day, value_set=pa.array(sorted(window.days), pa.date32()))
    return conform_batch(made_batch.filter(taken), layout.arrow, EXTRA)


def _moved(day: pa.Array, first: pa.Array | date, last: pa.Array | date) -> pa.Array:
    """The day, or the nearest that is not outside of first and last; the first for one that is not there."""
    bounds = [pa.scalar(bound, pa.date32()) if isinstance(bound, date) else bound for bound in (first, last)]
    return pc.min_element_wise(pc.max_element_wise(day, bounds[0]), bounds[1])


def _or(column: pa.Array | None, value: date, count: int) -> pa.Array:
    if column is None:
        return pa.repeat(pa.scalar(value, pa.date32()), count)
    return pc.fill_null(column, pa.scalar(value, pa.date32()).cast(column.type))


def _as_dates(column: pa.Array) -> pa.Array:
    return column if pa.types.is_date32(column.type) else column.cast(pa.date32(), safe=False)


def _mapped(column: pa.Array, function: Callable[[str], Any], kind: pa.DataType, file: str, name: str) -> pa.Array:
    """The function of each value; it is called once per distinct one."""
    encoded = column.dictionary_encode()
    try:
        values = [None if value is None else function(value) for value in encoded.dictionary.to_pylist()]
    except ValueError:
        raise invalid(file, name) from None
    return pa.array(values, kind).take(encoded.indices)


def invalid(file: str, column: str) -> FailedPrecondition:
    """A value that is none of its column's; it is named by where it stands, not by what it is."""
    return FailedPrecondition(
        "SOURCE_VALUE_INVALID", f"File {file} has a value in column {column} that cannot be read."
    )


# ------------------------------------------------------------------------------------------------- totals


class Totals:
    """Sums of a source's own rows, value by value as exact decimals: what the published rows are held against."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, Decimal]] = {}

    def add(self, currency: str | None, measures: Mapping[str, Decimal]) -> None:
        """Adds one row's measures."""
        sums = self.sums.setdefault((currency or "").strip(), {"row_count": Decimal(0)})
        sums["row_count"] += 1
        for name, value in measures.items():
            sums[name] = sums.get(name, Decimal(0)) + value


def number(text: str | None) -> Decimal:
    """A number as written, to the seventeenth place as it is stored; nothing is zero. ``ValueError`` if it is none."""
    if text is None or not text.strip():
        return Decimal(0)
    try:
        found = Decimal(text.strip())
    except InvalidOperation as exc:
        raise ValueError from exc
    if not found.is_finite():
        raise ValueError
    return found.quantize(_STORED, ROUND_HALF_UP)
