"""libs.ledger on the emulator: the conformance suite, several processes' worth of writers, chunks."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from libs.bigquery import Sql, Warehouse, rows_param
from libs.ledger import BigQueryTable, Ledger, Table
from libs.tables import TableSchema
from tests.contract.store_suites import Counter, TableSuite, take
from tests.support.fakes import Clock

COUNTERS = {
    "description": "Counters.",
    "cluster_by": ["key"],
    "fields": [
        {"name": "key", "type": "STRING", "mode": "REQUIRED"},
        {"name": "version", "type": "INT64"},
        {"name": "max_taken", "type": "INT64"},
        {"name": "taken", "type": "STRING"},
        {"name": "seen", "type": "TIMESTAMP"},
    ],
}
BATCH = """FROM (SELECT JSON_VALUE(j, '$.key') AS key, CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
      CAST(JSON_VALUE(j, '$.limit') AS INT64) AS max_taken, JSON_VALUE(j, '$.taken') AS taken,
      CAST(JSON_VALUE(j, '$.seen') AS TIMESTAMP) AS seen FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j) AS u"""
READ = Sql(
    "test/read_counters.sql",
    "SELECT c.key, c.version, c.max_taken, c.taken, c.seen FROM {counters} AS c WHERE c.key IN UNNEST(@keys)",
)
REPLACE = Sql(
    "test/replace_counters.sql",
    "UPDATE {counters} AS c SET version = c.version + 1, max_taken = u.max_taken, taken = u.taken, seen = u.seen "
    + BATCH
    + " WHERE c.key = u.key AND c.version = u.version",
)
INSERT = Sql(
    "test/insert_counters.sql",
    "INSERT INTO {counters} (key, version, max_taken, taken, seen) "
    "SELECT u.key, u.version, u.max_taken, u.taken, u.seen " + BATCH,
)
_names = itertools.count()


def to_json(row: Counter) -> Mapping[str, Any]:
    return {"key": row.key, "version": row.version, "limit": row.limit, "taken": list(row.taken), "seen": row.seen}


def from_row(row: Mapping[str, Any]) -> Counter:
    return Counter(row["key"], row["version"], row["max_taken"], tuple(json.loads(row["taken"])), row["seen"])


async def make(warehouse: Warehouse, rows: list[Counter], **options: Any) -> BigQueryTable[Counter]:
    from libs.bigquery import TableRef

    name = f"counters_{next(_names)}"
    if await warehouse.get_dataset("ledger") is None:
        await warehouse.create_dataset("ledger")
    await warehouse.ensure_tables("ledger", [TableSchema.from_json(name, COUNTERS)])
    read, replace, insert = (sql.with_tables(counters=TableRef(name)) for sql in (READ, REPLACE, INSERT))
    params = {"rows": rows_param(to_json(row) for row in rows)}
    assert await warehouse.execute(insert, dataset="ledger", params=params) == len(rows)
    return BigQueryTable(
        warehouse,
        dataset="ledger",
        read=read,
        replace=replace,
        key=lambda row: row.key,
        from_row=from_row,
        to_json=to_json,
        **options,
    )


class TestBigQueryTable(TableSuite):
    @pytest.fixture(autouse=True)
    def _warehouse(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse

    async def make(self, rows: list[Counter]) -> Table[Counter]:
        return await make(self.warehouse, rows)


async def test_a_thousand_asks_take_a_handful_of_statements(warehouse: Warehouse) -> None:
    table = await make(warehouse, [Counter(f"t{n}", limit=8) for n in range(100)])
    ledgers = [Ledger(table, take, now=Clock()) for _ in range(2)]
    before = warehouse.statements.copy()
    asks = (ledgers[n % 2].ask(f"t{n % 100}", f"run-{n}") for n in range(1000))
    answers = await asyncio.gather(*asks, return_exceptions=True)
    assert sum(isinstance(answer, int) for answer in answers) == 800
    assert (warehouse.statements - before).total() <= 20
    rows = await table.read([f"t{n}" for n in range(100)])
    assert all(len(set(row.taken)) == 8 for row in rows.values())


async def test_large_batches_are_sent_in_chunks(warehouse: Warehouse) -> None:
    rows = [Counter(f"t{n}", limit=1) for n in range(10)]
    table = await make(warehouse, rows, max_bytes=300)
    before = warehouse.statements["test/replace_counters.sql"]
    seen = datetime(2025, 11, 17, tzinfo=UTC)
    assert await table.replace([Counter(row.key, 1, 2, ("x" * 40,), seen) for row in rows])
    assert warehouse.statements["test/replace_counters.sql"] - before == 5
    assert {row.version for row in (await table.read([row.key for row in rows])).values()} == {2}
