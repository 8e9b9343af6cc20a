"""What only the real BigQuery can show; opt-in, because it costs a few cents and needs an account.

``CONVERGENCE_SMOKE_PROJECT=my-project .venv/bin/python -m pytest tests/integration/test_real_bigquery.py``, with
application default credentials that may create a dataset (``roles/bigquery.user``). It works in one that expires.
The emulator has one writer, no queue of statements, no bytes and no partitions to leave out, so each test here is about
one of those; the local tests rely on what these prove.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from google.cloud import bigquery

from libs import errors
from libs.bigquery import Sql, Warehouse, build_client, is_conflict, new_job_id

PROJECT = os.environ.get("CONVERGENCE_SMOKE_PROJECT", "")
pytestmark = pytest.mark.skipif(
    not PROJECT, reason="CONVERGENCE_SMOKE_PROJECT names no project: real BigQuery is asked only where that is wanted"
)

TAKE = Sql("smoke/take.sql", "UPDATE slots AS s SET used = s.used + 1 WHERE s.id = @id AND s.used < 3")
TOUCH = Sql("smoke/touch.sql", "UPDATE slots AS s SET used = s.used WHERE s.id = @id")
READ = Sql("smoke/read.sql", "SELECT s.used FROM slots AS s WHERE s.id = @id")
ADD = Sql("smoke/add.sql", "INSERT INTO slots (id, used) VALUES (@id, 0)")
CHANGE = Sql(
    "smoke/change.sql",
    """BEGIN TRANSACTION;
    UPDATE slots AS s SET used = s.used + 1 WHERE s.id = @id;
    COMMIT TRANSACTION;
    SELECT 1 AS done;""",
)
SUM = Sql("smoke/sum.sql", "SELECT SUM(d.n) AS n FROM days AS d WHERE d.day = DATE '2025-11-17'")


@pytest.fixture(scope="module")
def dataset() -> Iterator[tuple[Warehouse, str]]:
    """A dataset that expires by itself, with a hot table and one of thirty days."""
    warehouse = Warehouse(build_client(PROJECT), max_workers=48)
    name = f"convergence_smoke_{uuid.uuid4().hex[:12]}"
    made = bigquery.Dataset(f"{PROJECT}.{name}")
    made.default_table_expiration_ms = int(timedelta(hours=2).total_seconds() * 1000)
    warehouse.client.create_dataset(made)
    try:
        warehouse.client.query_and_wait(f"CREATE TABLE {name}.slots (id STRING, used INT64)")
        warehouse.client.query_and_wait(
            f"CREATE TABLE {name}.days PARTITION BY day AS SELECT day, n FROM "
            "UNNEST(GENERATE_DATE_ARRAY('2025-11-01', '2025-11-30')) AS day, UNNEST(GENERATE_ARRAY(1, 20000)) AS n"
        )
        yield warehouse, name
    finally:
        warehouse.client.delete_dataset(name, delete_contents=True, not_found_ok=True)
        warehouse.close()


async def _add(warehouse: Warehouse, name: str) -> str:
    slot = uuid.uuid4().hex
    await warehouse.execute(ADD, dataset=name, params={"id": slot})
    return slot


async def test_of_many_compare_and_swaps_exactly_those_take_place_that_may(dataset: tuple[Warehouse, str]) -> None:
    """The loser of a conflict is run again on what the winner has written: its predicate holds or not."""
    warehouse, name = dataset
    slot = await _add(warehouse, name)

    async def take() -> int:
        return await warehouse.execute(TAKE, dataset=name, params={"id": slot}, conflict_retries=8, timeout=300)

    taken = await asyncio.gather(*(take() for _ in range(40)))
    assert sum(taken) == 3
    assert await warehouse.query(READ, dataset=name, params={"id": slot}) == [{"used": 3}]


async def test_more_statements_than_a_table_queues_are_refused_as_retryable(dataset: tuple[Warehouse, str]) -> None:
    """Two run and twenty wait; what is beyond is told by an error that we know."""
    warehouse, name = dataset
    slot = await _add(warehouse, name)
    calls = (warehouse.execute(TOUCH, dataset=name, params={"id": slot}, timeout=300) for _ in range(45))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    kinds = Counter(end.reason if isinstance(end, errors.Error) else type(end).__name__ for end in ended)
    assert set(kinds) <= {"int", "STORE_RATE_LIMITED", "STORE_CONFLICT"}, kinds


async def test_a_transaction_that_loses_is_known_by_its_text(dataset: tuple[Warehouse, str]) -> None:
    warehouse, name = dataset
    slot = await _add(warehouse, name)
    calls = (warehouse.script(CHANGE, dataset=name, params={"id": slot}, timeout=300) for _ in range(6))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    lost = [end for end in ended if isinstance(end, BaseException)]
    assert all(is_conflict(end) for end in lost), lost
    assert await warehouse.query(READ, dataset=name, params={"id": slot}) == [{"used": 6 - len(lost)}]


async def test_one_job_id_is_done_once(dataset: tuple[Warehouse, str]) -> None:
    warehouse, name = dataset
    slot, job_id = uuid.uuid4().hex, new_job_id()
    added = await asyncio.gather(
        *(warehouse.execute(ADD, dataset=name, params={"id": slot}, job_id=job_id) for _ in range(4))
    )
    assert added == [1] * 4
    assert len(await warehouse.query(READ, dataset=name, params={"id": slot})) == 1


def test_a_filter_on_the_partition_reads_that_partition_alone(dataset: tuple[Warehouse, str]) -> None:
    warehouse, name = dataset

    def estimated(where: str) -> int:
        config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
        return int(warehouse.client.query(f"SELECT SUM(n) FROM {name}.days {where}", config).total_bytes_processed)

    assert 0 < estimated("WHERE day = DATE '2025-11-17'") * 29 < estimated("")


async def test_a_statement_that_would_cost_more_than_its_limit_is_refused(dataset: tuple[Warehouse, str]) -> None:
    warehouse, name = dataset
    poor = Warehouse(build_client(PROJECT), maximum_bytes_billed=1)
    with pytest.raises(errors.FailedPrecondition) as refused:
        await poor.query(SUM, dataset=name)
    assert refused.value.reason == "STORE_BYTES_LIMIT"
    assert await warehouse.query(SUM, dataset=name) == [{"n": 200_010_000}]
    poor.close()
