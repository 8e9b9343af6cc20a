"""The local BigQuery as ``make up`` runs it: what was acknowledged survives kill -9, what was not may be done again."""

from __future__ import annotations

from pathlib import Path

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
