"""libs.bigquery against the emulator: parameters, job ids, datasets, tables, loads."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery

from libs import errors
from libs.bigquery import Sql, TableRef, Typed, Warehouse, new_job_id, rows_param
from libs.tables import TableSchema

FIELDS = [
    {"name": "id", "type": "STRING", "mode": "REQUIRED"},
    {"name": "version", "type": "INTEGER"},
    {"name": "day", "type": "DATE"},
    {"name": "seen", "type": "TIMESTAMP"},
    {"name": "amount", "type": "NUMERIC"},
    {"name": "note", "type": "STRING"},
]
THINGS = TableSchema.from_json("things", {"description": "Things.", "cluster_by": ["id"], "fields": FIELDS})
INSERT = Sql(
    "test/insert.sql",
    """INSERT INTO things (id, version, day, seen, amount, note)
    SELECT r.id, r.version, r.day, r.seen, r.amount, r.note
    FROM (SELECT JSON_VALUE(j, '$.id') AS id, CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
                 CAST(JSON_VALUE(j, '$.day') AS DATE) AS day, CAST(JSON_VALUE(j, '$.seen') AS TIMESTAMP) AS seen,
                 CAST(JSON_VALUE(j, '$.amount') AS NUMERIC) AS amount, JSON_VALUE(j, '$.note') AS note
          FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j) AS r""",
)
READ = Sql(
    "test/read.sql",
    "SELECT t.id, t.version, t.day, t.seen, t.amount, t.note FROM things AS t WHERE t.id IN UNNEST(@ids) ORDER BY t.id",
)
COUNT = Sql("test/count.sql", "SELECT COUNT(*) AS n FROM things AS t WHERE t.id = @id")
SEEN = datetime(2025, 11, 17, 23, 59, 59, 500000, tzinfo=UTC)


def thing(id: str, **values: object) -> dict[str, object]:
    return {"id": id, "version": 1, "day": date(2025, 11, 17), "seen": SEEN, "amount": Decimal("0.10"), **values}


@pytest.fixture(scope="module")
def store(warehouse: Warehouse) -> Warehouse:
    async def prepare() -> None:
        await warehouse.create_dataset("acme")
        assert await warehouse.ensure_tables("acme", [THINGS]) == ["things"]

    asyncio.run(prepare())
    return warehouse


async def test_rows_travel_as_one_json_parameter(store: Warehouse) -> None:
    note = 'a "quoted"\nline with ünïcode, {"json": [1, null]} and \\ backslash'
    rows = rows_param([thing("json-1", note=note), thing("json-2", note=None, amount=None)])
    assert await store.execute(INSERT, dataset="acme", params={"rows": rows}) == 2
    first, second = await store.query(READ, dataset="acme", params={"ids": ["json-1", "json-2"]})
    assert first == {"id": "json-1", "version": 1, "day": date(2025, 11, 17), "seen": SEEN,
                     "amount": Decimal("0.1"), "note": note}  # fmt: skip
    assert second["note"] is None and second["amount"] is None


async def test_parameters_keep_their_types(store: Warehouse) -> None:
    sql = Sql(
        "test/types.sql",
        "SELECT @s AS s, @i AS i, @b AS b, @f AS f, @n AS n, @d AS d, @t AS t, @y AS y, @none AS none, "
        "@no_day AS no_day, ARRAY_LENGTH(@empty) AS empty, ARRAY_LENGTH(@days) AS days",
    )
    values = {"s": "x", "i": 2**40, "b": True, "f": 0.5, "n": Decimal("12.345"), "d": date(2024, 2, 29), "t": SEEN,
              "y": b"\x00\xff", "none": None}  # fmt: skip
    params = {**values, "no_day": Typed("DATE", None), "empty": [], "days": Typed("DATE", [date(2024, 2, 29)])}
    [row] = await store.query(sql, dataset="acme", params=params)
    assert row == {**values, "no_day": None, "empty": 0, "days": 1}


async def test_the_same_job_id_is_done_once(store: Warehouse) -> None:
    job_id, params = new_job_id(), {"rows": rows_param([thing("once")])}
    counts = [await store.execute(INSERT, dataset="acme", params=params, job_id=job_id) for _ in range(3)]
    assert counts == [1, 1, 1]
    together = new_job_id()
    calls = (store.execute(INSERT, dataset="acme", params=params, job_id=together) for _ in range(8))
    assert await asyncio.gather(*calls) == [1] * 8
    assert await store.query(COUNT, dataset="acme", params={"id": "once"}) == [{"n": 2}]


async def test_compare_and_swap_affects_only_matching_versions(store: Warehouse) -> None:
    await store.execute(INSERT, dataset="acme", params={"rows": rows_param([thing("a"), thing("b")])})
    swap = Sql(
        "test/swap.sql",
        """UPDATE things AS t SET version = t.version + 1, note = u.note
        FROM (SELECT JSON_VALUE(j, '$.id') AS id, CAST(JSON_VALUE(j, '$.version') AS INT64) AS version,
                     JSON_VALUE(j, '$.note') AS note FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS j) AS u
        WHERE t.id = u.id AND t.version = u.version""",
    )
    rows = rows_param([{"id": "a", "version": 1, "note": "x"}, {"id": "b", "version": 7, "note": "x"}])
    assert await store.execute(swap, dataset="acme", params={"rows": rows}) == 1


async def test_a_script_returns_its_last_select_and_a_failed_assertion_its_word(store: Warehouse) -> None:
    script = Sql(
        "test/script.sql",
        """BEGIN TRANSACTION;
        UPDATE things AS t SET note = 'seen' WHERE t.id = @id;
        ASSERT @@row_count = 1 AS 'assert:FENCED';
        COMMIT TRANSACTION;
        SELECT t.note AS note FROM things AS t WHERE t.id = @id;""",
    )
    await store.execute(INSERT, dataset="acme", params={"rows": rows_param([thing("script")])})
    assert await store.script(script, dataset="acme", params={"id": "script"}) == [{"note": "seen"}]
    with pytest.raises(errors.Aborted) as caught:
        await store.script(script, dataset="acme", params={"id": "nobody"})
    assert caught.value.reason == "FENCED"


async def test_failures_become_domain_errors(store: Warehouse) -> None:
    with pytest.raises(errors.FailedPrecondition, match="make setup-bigquery") as caught:
        await store.query(READ, dataset="nowhere", params={"ids": []})
    assert caught.value.reason == "STORE_OBJECT_MISSING"
    with pytest.raises(errors.FailedPrecondition, match="make setup-bigquery"):
        await store.execute(INSERT, dataset="nowhere", params={"rows": "[]"})
    with pytest.raises(errors.Internal) as rejected:
        await store.query(Sql("test/bad.sql", "SELECT nothing FROM things"), dataset="acme")
    assert rejected.value.reason == "STORE_REJECTED" and "things" not in rejected.value.message


async def test_fifty_creations_of_a_dataset_have_one_winner(store: Warehouse) -> None:
    async def create(owner: int) -> str | None:
        try:
            return (await store.create_dataset("mutex", labels={"owner": str(owner)})).labels["owner"]
        except errors.AlreadyExists:
            return None

    winners = [owner for owner in await asyncio.gather(*(create(n) for n in range(50))) if owner is not None]
    found = await store.get_dataset("mutex")
    assert found is not None and [found.labels["owner"]] == winners
    assert await store.get_dataset("absent") is None


async def test_labels_are_swapped_by_etag(store: Warehouse) -> None:
    made = await store.create_dataset("labelled", labels={"onboarding": "me", "keep": "1"})

    async def take(owner: int) -> bool:
        try:
            await store.label_dataset("labelled", {"onboarding": str(owner)}, etag=made.etag)
            return True
        except errors.Aborted:
            return False

    assert sum(await asyncio.gather(*(take(n) for n in range(10)))) == 1
    now = await store.get_dataset("labelled")
    assert now is not None and now.labels["keep"] == "1"
    cleared = await store.label_dataset("labelled", {"onboarding": None}, etag=now.etag)
    assert dict(cleared.labels) == {"keep": "1"}
    await store.delete_dataset("labelled")
    await store.delete_dataset("labelled")


async def test_ensure_tables_adds_what_is_missing_and_nothing_else(store: Warehouse) -> None:
    await store.create_dataset("growing")
    assert await store.ensure_tables("growing", [THINGS]) == ["things"]
    assert await store.ensure_tables("growing", [THINGS]) == []
    wider = TableSchema.from_json(
        "things", {"description": "Things.", "fields": [*FIELDS, {"name": "colour", "type": "STRING"}]}
    )
    other = TableSchema.from_json(
        "other", {"description": "o", "partition_by": "day", "fields": [{"name": "day", "type": "DATE"}]}
    )
    assert await store.ensure_tables("growing", [wider, other]) == ["other"]
    columns = [f.name for f in store.client.get_table(f"{store.project_id}.growing.things").schema]
    assert columns == [f.name for f in wider.fields]
    assert await store.list_tables("growing") == ["other", "things"]
    await store.drop_table("growing", "other")
    await store.drop_table("growing", "other")
    await store.delete_dataset("growing")


async def test_parquet_with_lists_loads_once_per_job_id(store: Warehouse, tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "tags": [[{"key": "k", "value": "v"}], []], "at": [SEEN, None]})
    pq.write_table(table, tmp_path / "rows.parquet")
    schema = [
        bigquery.SchemaField("id", "STRING"),
        bigquery.SchemaField(
            "tags",
            "RECORD",
            mode="REPEATED",
            fields=[bigquery.SchemaField("key", "STRING"), bigquery.SchemaField("value", "STRING")],
        ),
        bigquery.SchemaField("at", "TIMESTAMP"),
    ]
    job_id = new_job_id()
    for _ in range(2):
        loaded = await store.load_parquet(
            tmp_path / "rows.parquet", dataset="acme", table="staged", schema=schema, job_id=job_id, truncate=False
        )
        assert loaded == 2
    sql = Sql("test/staged.sql", "SELECT s.id, t.value FROM {staged} AS s CROSS JOIN UNNEST(s.tags) AS t")
    rows = await store.query(sql.with_tables(staged=TableRef("staged", "acme", store.project_id)), dataset="acme")
    assert rows == [{"id": "a", "value": "v"}]


def test_table_names_are_identifiers() -> None:
    assert TableRef.parse("my-project.d.t").quoted() == "`my-project.d.t`"
    assert TableRef.parse("d.t").quoted() == "`d.t`"
    assert TableRef("t").quoted() == "`t`"
    for bad in ("", "a.b.c.d", "t`; DROP", "d.t$1", "-p.d.t", "p..t", "d.t\n"):
        with pytest.raises(ValueError, match="not a table"):
            TableRef.parse(bad)
