"""The local BigQuery as ``make up`` runs it: what was acknowledged survives kill -9, what was not may be done again.

And a statement that it has translated before still means what it says.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from libs import errors
from libs.bigquery import Sql, Warehouse, build_client
from libs.tables import TableSchema
from tests.conftest import running_emulator

KEPT = TableSchema.from_json("kept", {"description": "Kept.", "fields": [{"name": "id", "type": "STRING"}]})


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    insert = Sql("test/insert.sql", "INSERT INTO kept (id) VALUES (@id)")
    read = Sql("test/read.sql", "SELECT k.id FROM kept AS k ORDER BY k.id")
    with running_emulator(tmp_path) as (emulator, process):
        warehouse = Warehouse(build_client("survivor", endpoint=emulator.rest))
        await warehouse.create_dataset("acme", labels={"owner": "me"})
        await warehouse.ensure_tables("acme", [KEPT])
        for id in "ab":
            assert await warehouse.execute(insert, dataset="acme", params={"id": id}, job_id=f"keep-{id}") == 1
        numbers = "UNNEST(GENERATE_ARRAY(1, 100000))"
        never_ends = f"SELECT SUM(a * b) FROM {numbers} AS a, {numbers} AS b"
        warehouse.client.query(f"{never_ends}; SELECT 1", job_id="keep-c", retry=None, job_retry=None)
        process.kill()
        warehouse.close()
    with running_emulator(tmp_path) as (emulator, process):
        warehouse = Warehouse(build_client("survivor", endpoint=emulator.rest))
        assert await warehouse.execute(insert, dataset="acme", params={"id": "b"}, job_id="keep-b") == 1
        # Under the id of a job that was interrupted, the same may be done.
        assert await warehouse.execute(insert, dataset="acme", params={"id": "c"}, job_id="keep-c", timeout=10) == 1
        assert await warehouse.query(read, dataset="acme") == [{"id": "a"}, {"id": "b"}, {"id": "c"}]
        found = await warehouse.get_dataset("acme")
        assert found is not None and dict(found.labels) == {"owner": "me"}
        warehouse.close()
        process.terminate()
        assert process.wait(15) == 0


async def test_what_was_changed_before_a_kill_is_not_changed_again_by_its_job(tmp_path: Path) -> None:
    insert = Sql("test/insert.sql", "INSERT INTO kept (id) SELECT x FROM UNNEST(@ids) AS x")
    change = Sql("test/change.sql", "UPDATE kept SET id = CONCAT(id, '!') WHERE STARTS_WITH(id, 'a')")
    read = Sql("test/read.sql", "SELECT k.id FROM kept AS k ORDER BY k.id")
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": ["c", "d"]}), file)

    async def work(warehouse: Warehouse) -> list[int]:
        append = {"dataset": "acme", "table": "kept", "schema": KEPT, "job_id": "once-3", "truncate": False}
        return [
            await warehouse.execute(insert, dataset="acme", params={"ids": ["a", "b"]}, job_id="once-1"),
            await warehouse.execute(change, dataset="acme", job_id="once-2"),
            await warehouse.load_parquet(file, **append),  # type: ignore[arg-type]
        ]

    with running_emulator(tmp_path) as (emulator, process):
        warehouse = Warehouse(build_client("survivor", endpoint=emulator.rest))
        await warehouse.create_dataset("acme")
        await warehouse.ensure_tables("acme", [KEPT])
        assert await work(warehouse) == [2, 1, 2]
        process.kill()
        process.wait()
        warehouse.close()
    # As if the kill had come before the jobs were said to be done, which is a write of its own.
    with duckdb.connect(tmp_path / "bigquery" / "emulator.duckdb") as stored:
        stored.execute("DELETE FROM jobs WHERE starts_with(job_id, 'once-')")
    with running_emulator(tmp_path) as (emulator, process):
        warehouse = Warehouse(build_client("survivor", endpoint=emulator.rest))
        assert await work(warehouse) == [2, 1, 2]
        assert [row["id"] for row in await warehouse.query(read, dataset="acme")] == ["a!", "b", "c", "d"]
        warehouse.close()


async def test_one_statement_means_in_each_dataset_what_its_tables_are(warehouse: Warehouse) -> None:
    read = Sql("test/read.sql", "SELECT * FROM amounts AS a ORDER BY 1")
    third = Sql("test/third.sql", "SELECT a.amount / 3 AS part FROM amounts AS a")
    for dataset, kind in (("exact", "NUMERIC"), ("inexact", "FLOAT64")):
        await warehouse.create_dataset(dataset)
        fields = [{"name": "amount", "type": kind}]
        await warehouse.ensure_tables(
            dataset, [TableSchema.from_json("amounts", {"description": ".", "fields": fields})]
        )
        insert = Sql("test/insert.sql", "INSERT INTO amounts (amount) VALUES (1)")
        assert await warehouse.execute(insert, dataset=dataset) == 1
    for _ in range(2):
        assert await warehouse.query(third, dataset="exact") == [{"part": Decimal("0.333333333")}]
        assert await warehouse.query(third, dataset="inexact") == [{"part": 1 / 3}]
        assert [list(row) for row in await warehouse.query(read, dataset="exact")] == [["amount"]]
    warehouse.client.query_and_wait("ALTER TABLE exact.amounts ADD COLUMN note STRING")
    assert await warehouse.query(read, dataset="exact") == [{"amount": Decimal(1), "note": None}]
    warehouse.client.query_and_wait("DROP TABLE exact.amounts")
    with pytest.raises(errors.FailedPrecondition) as caught:
        await warehouse.query(read, dataset="exact")
    assert caught.value.reason == "STORE_OBJECT_MISSING"
    assert [list(row) for row in await warehouse.query(read, dataset="inexact")] == [["amount"]]


async def test_a_json_text_is_read_once_and_rounded_where_no_double_holds_it(warehouse: Warehouse) -> None:
    await warehouse.create_dataset("texts")
    texts = ["12345678901234567890", "1.50", "null", '{"a": 0.1}']
    read = Sql(
        "test/read.sql",
        "SELECT TO_JSON_STRING(PARSE_JSON(t, wide_number_mode => 'round')) AS text "
        "FROM UNNEST(@texts) AS t WITH OFFSET AS n ORDER BY n",
    )
    found = await warehouse.query(read, dataset="texts", params={"texts": texts})
    assert [float(row["text"]) for row in found[:2]] == [pytest.approx(12345678901234567890), 1.5]
    assert [row["text"] for row in found[2:]] == ["null", '{"a":0.1}']


async def test_loads_into_one_table_at_once_all_arrive(warehouse: Warehouse, tmp_path: Path) -> None:
    await warehouse.create_dataset("loads")
    await warehouse.ensure_tables("loads", [KEPT])
    files = [tmp_path / f"{number}.parquet" for number in range(6)]
    for number, file in enumerate(files):
        pq.write_table(pa.table({"id": [f"{number}-{row}" for row in range(20_000)]}), file)
    loads = (warehouse.load_parquet(f, dataset="loads", table="kept", schema=KEPT, truncate=False) for f in files)
    assert await asyncio.gather(*loads) == [20_000] * 6
    count = Sql("test/count.sql", "SELECT COUNT(DISTINCT k.id) AS n FROM kept AS k")
    assert await warehouse.query(count, dataset="loads") == [{"n": 120_000}]
