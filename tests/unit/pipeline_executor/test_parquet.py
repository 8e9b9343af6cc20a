"""Arrow batches in one schema: nothing shifted, nothing lost, nothing held."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud.bigquery import SchemaField
from hypothesis import given
from hypothesis import strategies as st

from services.pipeline_executor.providers import parquet
from services.pipeline_executor.providers.parquet import ParquetFile, arrow_type, conform, conform_batch, leftovers

PAIR = pa.struct([("key", pa.string()), ("value", pa.string())])


def test_struct_members_are_matched_by_name_and_nulls_stay_where_they_are() -> None:
    kind = pa.struct([("b", pa.string()), ("new", pa.int64()), ("a", pa.string())])
    given_column = pa.array([{"a": "1", "b": "2"}, None, {"a": None, "b": None}])
    assert conform(given_column, kind).to_pylist() == [
        {"b": "2", "new": None, "a": "1"},
        None,
        {"b": None, "new": None, "a": None},
    ]


def test_lists_keep_their_lengths_also_in_a_slice() -> None:
    wide = pa.struct([("key", pa.string()), ("value", pa.string()), ("x", pa.int64())])
    column = pa.array(
        [[{"key": "a", "value": "b", "x": 1}], [], None, [{"key": "c"}, {"key": "d"}], []], pa.list_(wide)
    )
    for part in (column, column.slice(1, 3), column.slice(3)):
        expected = [
            None if items is None else [{"key": item["key"], "value": item["value"]} for item in items]
            for items in part.to_pylist()
        ]
        assert conform(part, pa.list_(PAIR)).to_pylist() == expected
        left = leftovers(part, pa.list_(PAIR))
        assert left is not None
        assert [None if items is None else [item["x"] for item in items] for items in left.to_pylist()] == [
            None if items is None else [item["x"] for item in items] for items in part.to_pylist()
        ]


rows = st.lists(
    st.one_of(
        st.none(),
        st.lists(
            st.one_of(
                st.none(),
                st.fixed_dictionaries({"key": st.none() | st.text(max_size=3), "x": st.none() | st.integers(0, 9)}),
            ),
            max_size=3,
        ),
    ),
    max_size=8,
)


@given(rows, st.integers(0, 4))
def test_any_lists_of_structs(values: list[list[dict[str, object] | None] | None], start: int) -> None:
    column = pa.array(values, pa.list_(pa.struct([("key", pa.string()), ("x", pa.int64())]))).slice(start)
    kind = pa.list_(pa.field("item", PAIR))
    expected = [
        None if row is None else [None if item is None else {"key": item["key"], "value": None} for item in row]
        for row in column.to_pylist()
    ]
    assert conform(column, kind).to_pylist() == expected


def test_what_nobody_planned_for_becomes_json() -> None:
    schema = pa.schema([("cost", pa.float64()), ("extra", pa.string())])
    batch = pa.RecordBatch.from_pylist(
        [
            {
                "cost": 0.1,
                "n": Decimal("0.000000001"),
                "t": datetime(2025, 11, 17, tzinfo=UTC),
                "f": 1e-300,
                "b": b"\x00",
            },
            {"cost": 0.2, "n": None, "t": None, "f": None, "b": None},
            {"cost": 0.3, "n": None, "t": None, "f": float("nan"), "b": None},
        ]
    )
    made = conform_batch(batch, schema, "extra")
    assert made.schema.equals(schema)
    assert made.column("cost").to_pylist() == [0.1, 0.2, 0.3]
    first, second, third = made.column("extra").to_pylist()
    assert json.loads(first) == {"n": "0.000000001", "t": "2025-11-17T00:00:00+00:00", "f": 1e-300, "b": "AA=="}
    assert second is None
    assert json.loads(third) == {"f": "nan"}


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (SchemaField("x", "NUMERIC"), pa.decimal128(38, 9)),
        (SchemaField("x", "TIMESTAMP"), pa.timestamp("us", tz="UTC")),
        (SchemaField("x", "STRING", mode="REPEATED"), pa.list_(pa.field("item", pa.string()))),
        (SchemaField("x", "RECORD", fields=[SchemaField("y", "FLOAT")]), pa.struct([("y", pa.float64())])),
    ],
)
def test_types(field: SchemaField, kind: pa.DataType) -> None:
    assert arrow_type(field).equals(kind)


def test_a_file_holds_all_rows_of_all_threads_in_bounded_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 10_000)
    fields = [
        SchemaField("n", "INTEGER"),
        SchemaField("labels", "RECORD", mode="REPEATED", fields=[SchemaField("k", "STRING")]),
    ]
    with ParquetFile(tmp_path / "x.parquet", fields) as file:

        def write(start: int) -> None:
            for n in range(start, start + 100):
                file.write(pa.RecordBatch.from_pylist([{"n": n, "labels": [{"k": "a" * 50}]}] * 5, schema=file.schema))

        threads = [threading.Thread(target=write, args=(100 * index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    read = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.rows == read.metadata.num_rows == 2000
    assert read.num_row_groups > 5
    assert sorted(set(read.read().column("n").to_pylist())) == list(range(400))
