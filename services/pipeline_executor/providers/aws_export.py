"""What AWS's cost exports look like in a bucket: which objects make up a delivery, and whether it is whole.

Pure: listings and manifests in, decisions out; ``aws.py`` does the reading. Two layouts, one rule: a delivery is a
manifest and the files it names, and holds one billing period whole; the manifest is written last, and the newest one is
the truth about its period.

    <prefix>/<report>/20251101-20251201/[<assembly>/]<report>-Manifest.json            cost and usage reports (legacy)
    <prefix>/<export>/metadata/BILLING_PERIOD=2025-11/[<execution>/]<export>-Manifest.json   Data Exports (2.0, FOCUS)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from libs.errors import FailedPrecondition, Unavailable
from services.pipeline_executor.providers.object_store import Listed

_MANIFEST = re.compile(
    r"(?P<root>(?:.*/)?(?P<name>[^/]+))/(?:metadata/BILLING_PERIOD=(?P<month>\d{4}-\d{2})|(?P<days>\d{8}-\d{8}))/"
    r"(?:[^/]+/)?[^/]+-Manifest\.json"
)
_DATA = re.compile(r"\.(?:csv|csv\.gz|parquet)$", re.IGNORECASE)
# A file younger than its manifest by this at most is one of the next delivery, which is being written.
_WRITING = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Found:
    """The manifest of one period of one export; both days are inclusive."""

    root: str
    export: str
    start: date
    end: date
    manifest: Listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One period of one export with its files, all of which are there."""

    root: str
    export: str
    start: date
    end: date
    manifest: Listed
    parts: tuple[Listed, ...]
    columns: tuple[str, ...]
    run: str

    @property
    def is_focus(self) -> bool:
        """Whether its rows are FOCUS's, by its columns; where the manifest has none, by its name."""
        names = {name.lower() for name in self.columns}
        return "billedcost" in names if names else "focus" in self.export.lower()


def manifests(objects: Iterable[Listed], export_name: str | None, first: date, last: date) -> Sequence[Found]:
    """The newest manifest of each export and period that shares a day with the given ones (inclusive)."""
    newest: dict[tuple[str, date], Found] = {}
    for item in objects:
        match = _MANIFEST.fullmatch(item.path)
        if match is None or (export_name and match["name"] != export_name):
            continue
        try:
            start, end = _period(match["month"], match["days"])
        except ValueError:
            continue
        if start > last or end < first:
            continue
        found = Found(match["root"], match["name"], start, end, item)
        key = (found.root, start)
        if key not in newest or _age(found) > _age(newest[key]):
            newest[key] = found
    return [newest[key] for key in sorted(newest)]


def _period(month: str | None, days: str | None) -> tuple[date, date]:
    if month is not None:
        start = datetime.strptime(month, "%Y-%m").date()
        return start, (start + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    start, after = (datetime.strptime(text, "%Y%m%d").date() for text in str(days).split("-"))
    return start, after - timedelta(days=1)


def _age(found: Found) -> tuple[datetime, int]:
    # Legacy reports write the same manifest into the period's folder and into the delivery's own.
    return found.manifest.modified, -found.manifest.path.count("/")


def delivery(found: Found, text: bytes, bucket: str, objects: Mapping[str, Listed], now: datetime) -> Delivery:
    """The delivery of a manifest.

    Raises ``FailedPrecondition(DELIVERY_INVALID)`` if the manifest cannot be read; ``Unavailable``: DELIVERY_INCOMPLETE
    if a file of it is not there, DELIVERY_IN_PROGRESS if the next one is being written over it.
    """
    try:
        body = json.loads(text.decode("utf-8-sig"))
        files = body["dataFiles"] if "dataFiles" in body else body["reportKeys"]
        paths = [_key(str(name), bucket) for name in files]
        columns = tuple(_column(item) for item in body.get("columns") or ())
        run = str(body.get("executionId") or body.get("assemblyId") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise FailedPrecondition(
            "DELIVERY_INVALID",
            f"The manifest of export {found.export} for {found.start} to {found.end} cannot be read.",
        ) from exc
    if odd := [path for path in paths if not _DATA.search(path)]:
        raise FailedPrecondition(
            "DELIVERY_INVALID",
            f"Export {found.export} delivers {_name(odd[0])}: let it deliver parquet, or CSV compressed by GZIP.",
        )
    if lost := [path for path in paths if path not in objects]:
        raise Unavailable(
            "DELIVERY_INCOMPLETE",
            f"The newest delivery of export {found.export} for {found.start} to {found.end} is incomplete: "
            f"{len(lost)} of {len(paths)} files are missing ({', '.join(sorted(map(_name, lost))[:3])}). "
            "Try again after its next refresh.",
            files=",".join(sorted(map(_name, lost))[:20]),
        )
    parts = tuple(objects[path] for path in paths)
    written = found.manifest.modified
    if any(part.modified > written and now - part.modified < _WRITING for part in parts):
        raise Unavailable(
            "DELIVERY_IN_PROGRESS",
            f"Export {found.export} is being delivered anew for {found.start} to {found.end}: try again.",
            retry_after=timedelta(minutes=1),
        )
    return Delivery(
        root=found.root, export=found.export, start=found.start, end=found.end, manifest=found.manifest, parts=parts,
        columns=columns, run=run,
    )  # fmt: skip


def _key(name: str, bucket: str) -> str:
    return name.removeprefix(f"s3://{bucket}/").lstrip("/")


def _column(item: Any) -> str:
    return str(item["name"]) if isinstance(item, dict) else str(item)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Reading:
    """One delivery and the days that are taken from it (inclusive)."""

    delivery: Delivery
    first: date
    last: date


def readings(deliveries: Sequence[Delivery], *, focus: bool, first: date, last: date) -> Sequence[Reading]:
    """What a run reads of one export.

    Raises ``FailedPrecondition``: SOURCE_NOT_FOUND if there is none of the kind, SOURCE_AMBIGUOUS if there are two.
    """
    kind = "FOCUS export" if focus else "cost and usage report"
    wanted = [delivery for delivery in deliveries if delivery.is_focus == focus]
    roots = sorted({delivery.root for delivery in wanted})
    if not wanted:
        others = sorted({delivery.export for delivery in deliveries})
        raise FailedPrecondition(
            "SOURCE_NOT_FOUND",
            f"There is no {kind} for these days" + (f"; there are others: {', '.join(others[:5])}." if others else "."),
        )
    if len(roots) > 1:
        raise FailedPrecondition(
            "SOURCE_AMBIGUOUS",
            f"There are {len(roots)} of the kind {kind} ({', '.join(roots[:5])}): give source.prefix or "
            "source.export_name of the one to read.",
            candidates=",".join(roots[:20]),
        )
    return [Reading(delivery, max(first, delivery.start), min(last, delivery.end)) for delivery in wanted]
