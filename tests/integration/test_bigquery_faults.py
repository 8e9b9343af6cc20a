"""libs.bigquery when the network fails: every write happens once, however often its reply is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from libs import errors
from libs.bigquery import Sql, Warehouse, build_client, is_conflict, new_job_id
from libs.tables import TableSchema

MARKS = TableSchema.from_json(
    "marks",
    {"description": "Marks.", "fields": [{"name": "id", "type": "STRING"}, {"name": "n", "type": "INT64"}]},
)
INSERT = Sql("test/insert.sql", "INSERT INTO marks (id, n) VALUES (@id, 0)")
COUNT = Sql("test/count.sql", "SELECT COUNT(*) AS n FROM marks AS m WHERE m.id = @id")
CHANGE = Sql(
    "test/change.sql",
    """BEGIN TRANSACTION;
    UPDATE marks AS m SET n = m.n + 1 WHERE m.id = @id;
    COMMIT TRANSACTION;
    SELECT m.n AS n FROM marks AS m WHERE m.id = @id;""",
)


class Faulty(HTTPAdapter):
    """Loses requests before they are sent, replies after they were made, or answers 503 instead."""

    def __init__(self, seed: int, lost: float, dropped: float, refused: float) -> None:
        super().__init__(pool_maxsize=32)
        self.random = random.Random(seed)
        self.lost, self.dropped, self.refused = lost, dropped, refused

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        dice = self.random.random()
        if dice < self.dropped:
            raise requests.exceptions.ConnectionError("request lost")
        if dice < self.dropped + self.refused:
            response = requests.Response()
            response.status_code, response.request, response.url = 503, request, request.url or ""
            response._content = (
                b'{"error": {"code": 503, "message": "backend", "errors": [{"reason": "backendError"}]}}'
            )
            return response
        response = super().send(request, *args, **kwargs)
        if dice < self.dropped + self.refused + self.lost:
            raise requests.exceptions.ConnectionError("reply lost")
        return response


@pytest.fixture
def faulty(warehouse: Warehouse, bigquery_emulator: Any) -> Iterator[Warehouse]:
    async def prepare() -> None:
        if await warehouse.get_dataset("faults") is None:
            await warehouse.create_dataset("faults")
        await warehouse.ensure_tables("faults", [MARKS])

    asyncio.run(prepare())
    client = build_client(warehouse.project_id, endpoint=bigquery_emulator.rest)
    client._http.mount("http://", Faulty(seed=7, lost=0.15, dropped=0.1, refused=0.1))
    made = Warehouse(client)
    yield made
    made.close()


async def test_writes_whose_replies_are_lost_happen_once(faulty: Warehouse, warehouse: Warehouse) -> None:
    ids = [f"mark-{n}" for n in range(16)]
    counts = await asyncio.gather(*(faulty.execute(INSERT, dataset="faults", params={"id": id}) for id in ids))
    assert counts == [1] * 16
    for id in ids:
        assert await faulty.query(COUNT, dataset="faults", params={"id": id}) == [{"n": 1}]


async def test_an_outcome_nobody_can_learn_is_ambiguous_and_the_same_job_id_settles_it(
    faulty: Warehouse, warehouse: Warehouse
) -> None:
    adapter = faulty.client._http.get_adapter("http://")
    adapter.lost, adapter.dropped, adapter.refused = 1.0, 0.0, 0.0
    job_id = new_job_id()
    with pytest.raises(errors.Ambiguous) as caught:
        await faulty.execute(INSERT, dataset="faults", params={"id": "x"}, job_id=job_id, timeout=1.5)
    assert caught.value.metadata["job_id"] == job_id
    adapter.lost = 0.0
    assert await faulty.execute(INSERT, dataset="faults", params={"id": "x"}, job_id=job_id) == 1
    assert await warehouse.query(COUNT, dataset="faults", params={"id": "x"}) == [{"n": 1}]


async def test_conflicting_transactions_are_told_and_retried_when_asked(
    warehouse: Warehouse, faulty: Warehouse
) -> None:
    await warehouse.execute(INSERT, dataset="faults", params={"id": "hot"})
    calls = (warehouse.script(CHANGE, dataset="faults", params={"id": "hot"}) for _ in range(12))
    told = await asyncio.gather(*calls, return_exceptions=True)
    conflicts = [answer for answer in told if isinstance(answer, BaseException)]
    assert all(isinstance(error, errors.Aborted) and is_conflict(error) for error in conflicts)
    read = Sql("test/n.sql", "SELECT m.n FROM marks AS m WHERE m.id = 'hot'")
    [row] = await warehouse.query(read, dataset="faults")
    assert row["n"] == 12 - len(conflicts)
    retried = (warehouse.script(CHANGE, dataset="faults", params={"id": "hot"}, conflict_retries=30) for _ in range(6))
    await asyncio.gather(*retried)
    assert await warehouse.query(read, dataset="faults") == [{"n": row["n"] + 6}]
