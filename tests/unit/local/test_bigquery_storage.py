"""What the local BigQuery knows of its catalog, and who may change a table at the same time as whom."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pytest

from deploy.local.bigquery_storage import Catalog, Cursor, Transaction, Writers

HOT, COLD = ("local", "acme", "hot"), ("local", "acme", "cold")


class Conflict(Exception):
    pass


@pytest.fixture
def writers() -> Writers:
    return Writers(Conflict)


def write(
    writers: Writers, table: tuple[str, ...], within: Transaction | None = None, *, appends: bool = False
) -> None:
    with writers.writing(table, within, appends=appends):
        pass


@pytest.mark.parametrize(
    ("sql", "again"),
    [
        ('CREATE TABLE "p"."d"."t" (a BIGINT)', True),
        ('CREATE OR REPLACE TABLE "p"."d"."other" AS SELECT 1 AS a', True),
        ('DROP VIEW IF EXISTS "p"."d"."t"', True),
        ('ALTER TABLE "p"."d"."t" ADD COLUMN b BIGINT', True),
        ('DROP SCHEMA "p"."d" CASCADE', True),
        ("CREATE MACRO anything(a) AS a", True),
        ('CREATE TABLE "p"."elsewhere"."t" (a BIGINT)', False),
        ('CREATE TABLE "other"."d"."t" (a BIGINT)', False),
        ('INSERT INTO "p"."d"."t" VALUES (1)', False),
        ("SELECT 'CREATE TABLE' AS a", False),
    ],
)
def test_what_was_read_holds_until_ddl_in_its_dataset(sql: str, again: bool) -> None:
    catalog, read = Catalog(), 0

    def shape() -> int:
        nonlocal read
        read += 1
        return read

    assert [catalog.get("p", "d", "t", shape) for _ in range(3)] == [1, 1, 1]
    catalog.changed(sql)
    assert catalog.get("p", "d", "t", shape) == (2 if again else 1)


def test_of_two_transactions_on_one_table_the_second_is_aborted(writers: Writers) -> None:
    first, second = writers.begin(), writers.begin()
    write(writers, HOT, first)
    write(writers, HOT, first)
    write(writers, COLD, second)
    with pytest.raises(Conflict, match=r"local\.acme\.hot"):
        write(writers, HOT, second)
    writers.end(first, committed=True)
    with pytest.raises(Conflict):  # what it read is from before the first one
        write(writers, HOT, second)
    writers.end(second, committed=False)
    later = writers.begin()
    write(writers, HOT, later)
    write(writers, COLD, later)


def test_a_transaction_is_aborted_by_a_statement_that_came_since_it_began(writers: Writers) -> None:
    transaction = writers.begin()
    write(writers, HOT)
    with pytest.raises(Conflict):
        write(writers, HOT, transaction)


def test_what_was_rolled_back_is_in_nobodys_way(writers: Writers) -> None:
    first, second = writers.begin(), writers.begin()
    write(writers, HOT, first)
    writers.end(first, committed=False)
    write(writers, HOT, second)


def test_rows_may_be_added_beside_a_transaction(writers: Writers) -> None:
    transaction = writers.begin()
    write(writers, HOT, transaction)
    write(writers, HOT, appends=True)
    write(writers, HOT, writers.begin(), appends=True)
    write(writers, HOT, transaction)


def test_a_statement_waits_for_the_transaction_before_it(writers: Writers) -> None:
    transaction, done = writers.begin(), threading.Event()
    write(writers, HOT, transaction)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: (write(writers, HOT), done.set()))
        assert not done.wait(0.1)
        writers.end(transaction, committed=True)
        waiting.result(5)
    assert done.is_set()


def test_rows_are_added_by_several_at_once_and_a_change_waits_for_all_of_them(writers: Writers) -> None:
    changed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with writers.writing(HOT, None, appends=True):
            with writers.writing(HOT, None, appends=True):
                change = pool.submit(lambda: (write(writers, HOT), changed.set()))
                assert not changed.wait(0.1)
            assert not changed.wait(0.1), "one of the two is still adding"
        change.result(5)
    assert changed.is_set()


def test_statements_on_one_table_go_one_after_another_and_others_beside_them(writers: Writers) -> None:
    at_once: dict[tuple[str, ...], int] = {HOT: 0, COLD: 0}
    most: dict[str, int] = {"one table": 0, "both": 0}
    lock = threading.Lock()

    def statement(table: tuple[str, ...]) -> None:
        with writers.writing(table, None, appends=False):
            with lock:
                at_once[table] += 1
                most["one table"] = max(most["one table"], *at_once.values())
                most["both"] = max(most["both"], sum(at_once.values()))
            time.sleep(0.005)
            with lock:
                at_once[table] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(statement, [HOT, COLD] * 12))
    assert most == {"one table": 1, "both": 2}


def test_to_know_the_columns_of_what_is_to_be_stored_it_is_not_run(writers: Writers) -> None:
    with duckdb.connect() as connection:
        cursor = Cursor(connection.cursor(), Catalog(), writers)
        query = "SELECT $one AS a, a, error('it was run') AS b FROM (SELECT 1 AS a)"
        with cursor.storing(query):
            shape = cursor.sql(query, params={"one": 1})
            assert (shape.columns, shape.fetchall()) == (["a", "a_1", "b"], [])
            assert cursor.sql(query, params={"one": 1}) is shape
        with pytest.raises(duckdb.Error, match="it was run"):
            cursor.sql(query, params={"one": 1})
        cursor.close()
