"""AWS's exports without AWS: which manifests and files a run reads, and how every form of a row becomes ours."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from libs import errors
from services.pipeline_executor.providers import aws_export as export
from services.pipeline_executor.providers import aws_rows as rows
from services.pipeline_executor.providers import check_source
from services.pipeline_executor.providers.object_store import Listed
from tests.support import focus_rows
from tests.support.aws import as_parquet, exported
from tests.support.aws_rows import ROWS, row

NOON = datetime(2025, 11, 20, 12, tzinfo=UTC)
NOVEMBER = (date(2025, 11, 1), date(2025, 11, 30))
LAYOUT = rows.report_layout()


def listed(path: str, *, after: int = 0) -> Listed:
    return Listed(path, 1, NOON + timedelta(minutes=after), f'"{path}"')


def found(*objects: Listed, name: str | None = None) -> list[tuple[str, str, int]]:
    every = export.manifests(objects, name, *NOVEMBER)
    return [(item.root, item.manifest.path.rpartition("/")[2], item.start.month) for item in every]


def test_manifests_of_both_layouts_are_found_and_the_newest_of_a_period_counts() -> None:
    objects = [
        listed("p/cur/20251101-20251201/a1/cur-Manifest.json"),
        listed("p/cur/20251101-20251201/cur-Manifest.json"),
        listed("p/cur/20251101-20251201/a1/cur-1.csv.gz"),
        listed("cur2/metadata/BILLING_PERIOD=2025-11/e1/cur2-Manifest.json"),
        listed("cur2/metadata/BILLING_PERIOD=2025-11/e0/cur2-Manifest.json", after=1),
        listed("cur2/metadata/BILLING_PERIOD=2025-10/cur2-Manifest.json"),
        listed("cur2/metadata/BILLING_PERIOD=2025-13/cur2-Manifest.json"),
        listed("cur2/metadata/BILLING_PERIOD=2025-12/cur2-Manifest.json"),
    ]
    assert found(*objects) == [("cur2", "cur2-Manifest.json", 11), ("p/cur", "cur-Manifest.json", 11)]
    assert found(*objects, name="cur") == [("p/cur", "cur-Manifest.json", 11)]
    newest = {item.export: item.manifest.path for item in export.manifests(objects, None, *NOVEMBER)}
    assert newest == {
        "cur": "p/cur/20251101-20251201/cur-Manifest.json",
        "cur2": "cur2/metadata/BILLING_PERIOD=2025-11/e0/cur2-Manifest.json",
    }
    [item] = export.manifests(objects, "cur2", *NOVEMBER)
    assert (item.start, item.end) == NOVEMBER


def delivered(body: Any, *objects: Listed, now: datetime = NOON) -> export.Delivery:
    manifest = listed("c/metadata/BILLING_PERIOD=2025-11/c-Manifest.json")
    [item] = export.manifests([manifest], None, *NOVEMBER)
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return export.delivery(item, text, "b", {entry.path: entry for entry in objects}, now)


def test_a_delivery_is_the_files_of_its_manifest() -> None:
    objects = [listed("c/data/1.parquet"), listed("c/data/2.parquet"), listed("c/data/old.parquet")]
    made = delivered({"dataFiles": ["s3://b/c/data/2.parquet", "s3://b/c/data/1.parquet"]}, *objects)
    assert [part.path for part in made.parts] == ["c/data/2.parquet", "c/data/1.parquet"]
    assert not made.is_focus
    assert delivered({"reportKeys": ["/c/data/1.parquet"], "assemblyId": "a"}, *objects).run == "a"
    assert delivered({"dataFiles": [], "columns": [{"name": "BilledCost"}]}).is_focus


@pytest.mark.parametrize(
    ("body", "reason", "retryable"),
    [
        (b"", "DELIVERY_INVALID", False),
        (b"[]", "DELIVERY_INVALID", False),
        ({"files": []}, "DELIVERY_INVALID", False),
        ({"dataFiles": 1}, "DELIVERY_INVALID", False),
        ({"reportKeys": ["c/1.csv.zip"]}, "DELIVERY_INVALID", False),
        ({"dataFiles": ["c/1.parquet", "c/gone.parquet"]}, "DELIVERY_INCOMPLETE", True),
        ({"dataFiles": ["c/1.parquet", "c/late.parquet"]}, "DELIVERY_IN_PROGRESS", True),
    ],
)
def test_a_delivery_that_is_not_whole_is_said(body: Any, reason: str, retryable: bool) -> None:
    with pytest.raises(errors.Error) as caught:
        delivered(body, listed("c/1.parquet"), listed("c/late.parquet", after=1), now=NOON + timedelta(minutes=2))
    assert (caught.value.reason, caught.value.retryable) == (reason, retryable)


def test_a_file_touched_long_after_its_manifest_is_no_delivery_in_the_making() -> None:
    late = listed("c/late.parquet", after=1)
    assert delivered({"dataFiles": ["c/late.parquet"]}, late, now=NOON + timedelta(hours=2)).parts == (late,)


def test_columns_are_found_under_the_names_of_every_version() -> None:
    required = ["lineItem/UsageStartDate", "lineItem/UnblendedCost", "line_item_currency_code", "lineItem/LineItemType"]
    columns = [
        *required, "savingsPlan/SavingsPlanARN", "product/instanceType", "product/transferType",
        "resourceTags/user:App", "resourceTags/user:app", "resource_tags_user_old",
        "costCategory/Charge type", "bill/BrandNew", "resource_tags",
    ]  # fmt: skip
    made = rows.plan(LAYOUT, columns, "f")
    assert made.own["line_item_unblended_cost"] == 1
    assert made.own["savings_plan_savings_plan_a_r_n"] == 4
    assert made.own["product_instance_type"] == 5
    assert made.members == {
        "product": {"transfer_type": 6},
        "resource_tags": {"user:App": 7, "user:app": 8, "user_old": 9},
        "cost_category": {"Charge type": 10},
    }
    assert made.extra == {"bill/BrandNew": 11, "resource_tags": 12}
    with pytest.raises(errors.FailedPrecondition) as caught:
        rows.plan(LAYOUT, ["line_item_kosten", *required[2:]], "f.csv")
    assert caught.value.metadata["columns"] == "line_item_usage_start_date,line_item_unblended_cost"


def decoded(
    path: Path, layout: rows.Layout = LAYOUT, *, first: int = 1, last: int = 30
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    window = rows.Window(*NOVEMBER, date(2025, 11, first), date(2025, 11, last))
    made = rows.plan(layout, rows.header(path), path.name)
    totals = rows.Totals()
    totals.add(path, made, layout, window)
    engine = rows.connect(path.parent)
    try:
        count = rows.convert(engine, path, made, layout, window, path.parent / "out.parquet")
    finally:
        engine.close()
    table = pq.read_table(path.parent / "out.parquet")
    assert table.num_rows == count
    assert [field.name for field in table.schema] == [column.name for column in layout.schema]
    return table.to_pylist(), totals.sums


@pytest.mark.parametrize("form", ["parquet", "csv", "csv.gz"])
def test_every_form_of_a_file_becomes_the_same_rows(tmp_path: Path, form: str) -> None:
    given = [
        row(line_item_unblended_cost=0.1, carbon="1.5"),
        row(start=datetime(2025, 10, 31, 23), line_item_unblended_cost=1e-7, line_item_currency_code="EUR"),
        row(start=datetime(2025, 11, 18), line_item_unblended_cost=-0.3, resource_tags={}),
    ]
    content = as_parquet(given) if form == "parquet" else exported(given)
    path = tmp_path / f"f.{form}"
    path.write_bytes(gzip.compress(content) if form == "csv.gz" else content)
    found, totals = decoded(path)
    assert sorted(totals) == ["EUR", "USD"]
    assert totals["USD"] == {"row_count": 2, "unblended_cost": Decimal("-0.2")}
    assert totals["EUR"]["unblended_cost"] == Decimal("1e-7")
    by_day = {item["usage_date"]: item for item in found}
    assert sorted(by_day) == [date(2025, 11, 1), date(2025, 11, 17), date(2025, 11, 18)]
    plain = by_day[date(2025, 11, 17)]
    assert Decimal(plain["line_item_unblended_cost"]) == Decimal("0.1")
    assert plain["line_item_usage_start_date"] == datetime(2025, 11, 17, 5, tzinfo=UTC)
    assert json.loads(plain["resource_tags"])["user_note"] == 'a "quote", and more'
    assert json.loads(plain["product"])["region"] == "us-east-1"
    assert json.loads(plain["source_extra"]) == {"carbon": "1.5"}
    assert plain["billing_period"] == date(2025, 11, 1)
    assert plain["cost_category"] is None and plain["bill_invoice_id"] is None
    assert by_day[date(2025, 11, 18)]["resource_tags"] is None
    assert by_day[date(2025, 11, 18)]["source_extra"] is None
    # The days of the run, by both readers.
    found, totals = decoded(path, first=1, last=1)
    assert len(found) == 1 and list(totals) == ["EUR"]


def plain(value: Any) -> Any:
    """Text that is JSON as what it says; an object in an object too."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    return {name: plain(inner) for name, inner in json.loads(value).items()}


@pytest.mark.parametrize(
    ("layout", "given"), [(LAYOUT, ROWS), (rows.focus_layout(), focus_rows.AWS)], ids=["report", "focus"]
)
def test_every_kind_of_charge_is_the_same_from_text_and_from_parquet(
    tmp_path: Path, layout: rows.Layout, given: list[dict[str, Any]]
) -> None:
    found = []
    for name, content in (("f.parquet", as_parquet(given)), ("f.csv.gz", gzip.compress(exported(given)))):
        (tmp_path / name).write_bytes(content)
        made, totals = decoded(tmp_path / name, layout)
        assert len(made) == len(given)
        # Only the spaces within JSON are the source's own.
        found.append(([{column: plain(value) for column, value in item.items()} for item in made], totals))
    assert found[0] == found[1]


def test_cost_is_rounded_once_to_the_place_it_is_stored_in(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    given = [row(line_item_unblended_cost=text) for text in ("0.0135628096939257949", "-0.000000000000000005", "")]
    path.write_bytes(exported(given))
    found, totals = decoded(path)
    costs = [item["line_item_unblended_cost"] for item in found]
    assert [text and Decimal(text) for text in costs] == [Decimal("0.01356280969392579"), Decimal("-1e-17"), None]
    assert totals["USD"]["unblended_cost"] == Decimal("0.01356280969392578")


def test_a_row_without_a_date_counts_for_the_first_day_of_its_period_for_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(exported([row(line_item_usage_start_date=""), row()]))
    [found], totals = decoded(path, first=1, last=1)
    assert (found["usage_date"], found["line_item_usage_start_date"]) == (date(2025, 11, 1), None)
    assert totals["USD"] == {"row_count": 1, "unblended_cost": Decimal("0.096")}


def test_a_gzip_file_without_its_end_is_noticed_by_the_sum(tmp_path: Path) -> None:
    path = tmp_path / "f.csv.gz"
    path.write_bytes(gzip.compress(exported([row()] * 2000))[:-20])
    with pytest.raises(OSError, match="Truncated"):
        decoded(path)


@pytest.mark.parametrize("change", [{"line_item_unblended_cost": "1,5"}, {"line_item_usage_end_date": "soon"}])
def test_what_is_no_value_is_no_row(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(exported([row(**change)]))
    with pytest.raises((pa.ArrowInvalid, duckdb.ConversionException)):
        decoded(path)


def test_a_source_names_a_place_and_nothing_else() -> None:
    source = {"bucket": "costs-1", "prefix": "exports", "region": "eu-west-1", "export_name": "cur2"}
    assert check_source("aws", ["cost_and_usage_report"], source) == source
    for bad in ({}, {"bucket": "Not_A_Bucket"}, {"bucket": "costs", "key": "x"}, {"bucket": "costs", "region": "moon"}):
        with pytest.raises(errors.InvalidArgument) as caught:
            check_source("aws", ["cost_and_usage_report"], bad)
        assert caught.value.reason == "SOURCE_INVALID"
