"""Azure's exports without Azure: which deliveries a run reads, and how texts of every form become ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from libs import errors
from services.pipeline_executor.providers import azure_export as export
from services.pipeline_executor.providers import cells, check_source
from services.pipeline_executor.providers.azure_export import ACTUAL, AMORTIZED, Blob, Delivery

NOON = datetime(2025, 11, 20, 12, tzinfo=UTC)
NOVEMBER = (date(2025, 11, 1), date(2025, 11, 30))


def blob(path: str, *, after: int = 0, size: int = 1) -> Blob:
    return Blob(path, size, NOON + timedelta(minutes=after))


def manifest(*names: str, submitted: str | None = None) -> bytes:
    blobs = [{"blobName": f"/c/{name}", "byteCount": 1} for name in names]
    run = {} if submitted is None else {"submittedTime": submitted}
    return json.dumps({"blobs": blobs, "exportConfig": {"type": "ActualCost"}, "runInfo": run}).encode()


def found(blobs: list[Blob], texts: Mapping[str, bytes]) -> list[Delivery]:
    return list(export.deliveries(export.folders(blobs, None), texts, "c"))


def test_a_run_is_as_new_as_its_manifest_says() -> None:
    base = "d/e/20251101-20251130"
    blobs = [blob(f"{base}/{run}/{name}") for run in ("a", "b") for name in ("x.csv", "manifest.json")]
    texts = {
        f"{base}/a/manifest.json": manifest(f"{base}/a/x.csv", submitted="2025-11-20T05:00:00.1234567Z"),
        f"{base}/b/manifest.json": manifest(f"{base}/b/x.csv", submitted="2025-11-19T05:00:00Z"),
    }
    [delivery] = found(blobs, texts)
    assert (delivery.run, delivery.view, delivery.parts[0].path) == ("a/", ACTUAL, f"{base}/a/x.csv")


def test_a_run_without_its_manifest_is_waited_for_if_it_is_the_newest() -> None:
    base = "e/20251101-20251130"
    blobs = [blob(f"{base}/a/x.csv"), blob(f"{base}/a/manifest.json"), blob(f"{base}/b/x.csv", after=-5)]
    texts = {f"{base}/a/manifest.json": manifest(f"{base}/a/x.csv")}
    assert [delivery.run for delivery in found(blobs, texts)] == ["a/"]
    with pytest.raises(errors.Unavailable, match="being delivered"):
        found([*blobs, blob(f"{base}/c/x.csv", after=5)], texts)


def test_older_exports_have_no_manifests_and_files_in_the_periods_folder() -> None:
    base = "costs/Amortized-daily/20251101-20251130"
    blobs = [blob(f"{base}/e_1.csv"), blob(f"{base}/e_2.csv", after=1), blob(f"{base}/notes.txt", after=9)]
    [delivery] = found(blobs, {})
    assert (delivery.view, [part.path for part in delivery.parts]) == (AMORTIZED, [f"{base}/e_2.csv"])


@pytest.mark.parametrize("text", [b"", b"[]", b'{"blobs": [{}]}', b'{"blobs": 1}', b"\xff\xfe{"])
def test_a_manifest_that_is_none_is_said(text: bytes) -> None:
    base = "e/20251101-20251130/a"
    with pytest.raises(errors.FailedPrecondition) as caught:
        found([blob(f"{base}/x.csv"), blob(f"{base}/manifest.json")], {f"{base}/manifest.json": text})
    assert caught.value.reason == "DELIVERY_INVALID"


def delivery(view: str, first: int, last: int, *, written: int = 0) -> Delivery:
    return Delivery(
        export=view.lower(), view=view, start=date(2025, 11, first), end=date(2025, 11, last), run=f"{first}",
        written=NOON + timedelta(hours=written), parts=(),
    )  # fmt: skip


def test_each_day_is_read_from_the_newest_delivery_and_only_where_all_exports_cover_it() -> None:
    deliveries = [delivery(ACTUAL, 1, 30), delivery(ACTUAL, 10, 12, written=1), delivery(AMORTIZED, 1, 11)]
    read = export.readings(deliveries, (ACTUAL, AMORTIZED), *NOVEMBER)
    days = {(reading.delivery.view, reading.delivery.run): sorted(day.day for day in reading.days) for reading in read}
    assert days == {
        (ACTUAL, "1"): list(range(1, 10)),
        (ACTUAL, "10"): [10, 11],
        (AMORTIZED, "1"): list(range(1, 12)),
    }


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2025-11-17", 17), ("11/17/2025", 17), ("9/2/2025", 2), ("2025-11-17T00:00Z", 17),
        ("2025-11-17T23:59:59.1234567Z", 17), ("11/17/2025 12:00:00 AM", 17), ("2025-11-18T01:00:00+02:00", 17),
    ],
)  # fmt: skip
def test_days_of_both_forms(text: str, day: int) -> None:
    assert cells.day_of(text).day == day


@pytest.mark.parametrize("text", ["17/11/2025", "17.11.2025", "", "now", "2025-13-01"])
def test_what_is_no_day(text: str) -> None:
    with pytest.raises(ValueError):
        cells.day_of(text)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ('"a": "1","b": "x, y"', {"a": "1", "b": "x, y"}),
        ('{"a": null, "n": 1, "deep": {"x": 1}}', {"a": "", "n": 1, "deep": '{"x": 1}'}),
        ("no tags", {"x_Unparsed": "no tags"}),
        ('[{"key": "a", "value": "1"}, {"Key": "b", "x_namespace": "org/1"}]', {"a": "1", "org/1/b": ""}),
        ('""', None),
        ("{}", None),
    ],
)
def test_tags(text: str, tags: object) -> None:
    made = cells.tags_json(text)
    assert (None if made is None else json.loads(made)) == tags


def test_numbers_are_exact_and_nothing_is_zero() -> None:
    assert export.number("1.5E-05") == Decimal("0.000015")
    assert export.number(" ") == export.number(None) == 0
    for text in ("1,5", "NaN", "Infinity", "x"):
        with pytest.raises(ValueError):
            export.number(text)


def test_a_charge_outside_of_its_period_is_moved_into_it() -> None:
    window = export.Window(*NOVEMBER, frozenset([date(2025, 11, 1)]))
    assert window.day(date(2025, 10, 2), None, None) == window.day(None, None, None) == date(2025, 11, 1)
    assert window.day(date(2026, 1, 2), date(2025, 11, 1), date(2025, 11, 30)) == date(2025, 11, 30)
    columns = {
        "Date": ["10/02/2025", "11/01/2025", "11/02/2025"],
        "COST": ["1", "2", "4"],
        "Currency": ["USD"] * 3,
        "chargetype": ["Usage"] * 3,
        "New": ["", "x", "y"],
    }
    batch = pa.RecordBatch.from_pydict(columns)
    layout = export.cost_layout()
    made = export.plan(layout, batch.schema.names, "f.csv")
    taken = export.rows(batch, layout, made, window, {"cost_view": ACTUAL, "cost_views": ACTUAL}, "f.csv")
    assert taken.column("cost").to_pylist() == ["1", "2"]
    assert taken.column("source_extra").to_pylist() == [None, '{"New":"x"}']
    assert taken.column("charge_date").to_pylist() == [date(2025, 10, 2), date(2025, 11, 1)]
    assert set(taken.column("billing_period_end").to_pylist()) == {date(2025, 11, 30)}


def test_a_source_names_a_place_and_nothing_else() -> None:
    good = {"storage_account": "acme01", "container": "costs", "directory": "a/b"}
    assert check_source("azure", ["cost_export"], good) == good
    for bad in (
        {},
        {**good, "storage_account": "evil.example"},
        {**good, "endpoint_url": "file:///x"},
        {**good, "x": 1},
    ):
        with pytest.raises(errors.InvalidArgument) as caught:
            check_source("azure", ["cost_export"], bad)
        assert caught.value.reason == "SOURCE_INVALID"
