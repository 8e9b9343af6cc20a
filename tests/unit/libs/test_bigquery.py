"""libs.bigquery without a server: parameters, labels, and which domain error each failure of the client becomes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import bigquery

from libs import errors
from libs.bigquery import Sql, TableRef, Warehouse, build_client, is_conflict, rows_param, to_domain_error


def failure(kind: type[api.GoogleAPICallError], text: str, reason: str = "") -> api.GoogleAPICallError:
    return kind(text, errors=[{"reason": reason, "message": text}])  # type: ignore[no-untyped-call]


CONFLICTS = [
    failure(api.BadRequest, "Could not serialize access to table p:d.t due to concurrent update", "invalidQuery"),
    failure(api.BadRequest, "Transaction is aborted due to concurrent update against table p:d.t", "invalidQuery"),
]


@pytest.mark.parametrize("exc", CONFLICTS, ids=str)
def test_a_conflict_is_known_by_its_text(exc: api.GoogleAPICallError) -> None:
    assert is_conflict(exc)
    error = to_domain_error(exc, "x")
    assert isinstance(error, errors.Aborted) and error.reason == "STORE_CONFLICT" and is_conflict(error)


@pytest.mark.parametrize(
    ("exc", "kind", "reason"),
    [
        (failure(api.NotFound, "Not found: Dataset p:tenants"), errors.FailedPrecondition, "STORE_OBJECT_MISSING"),
        (failure(api.Forbidden, "refused: no", "accessDenied"), errors.FailedPrecondition, "STORE_ACCESS_DENIED"),
        (failure(api.Forbidden, "refused: no", "rateLimitExceeded"), errors.Unavailable, "STORE_RATE_LIMITED"),
        (failure(api.Forbidden, "refused: no", "quotaExceeded"), errors.Unavailable, "STORE_RATE_LIMITED"),
        (
            failure(api.BadRequest, "Too many DML statements outstanding against table p:d.t, limit is 20."),
            errors.Unavailable,
            "STORE_RATE_LIMITED",
        ),
        (
            failure(api.InternalServerError, "too much", "bytesBilledLimitExceeded"),
            errors.FailedPrecondition,
            "STORE_BYTES_LIMIT",
        ),
        (failure(api.ServiceUnavailable, "backend"), errors.Unavailable, "STORE_UNAVAILABLE"),
        (failure(api.BadRequest, "assert:FENCED at [3:1]", "invalidQuery"), errors.Aborted, "FENCED"),
        (failure(api.BadRequest, "Syntax error", "invalidQuery"), errors.Internal, "STORE_REJECTED"),
        (requests.exceptions.ConnectionError("reset"), errors.Unavailable, "STORE_UNAVAILABLE"),
        (concurrent.futures.TimeoutError("late"), errors.Unavailable, "STORE_UNAVAILABLE"),
        (auth.RefreshError("refused: no"), errors.FailedPrecondition, "STORE_ACCESS_DENIED"),
        (KeyError("unknown key"), errors.Internal, "STORE_REJECTED"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_each_failure_has_one_domain_error(exc: Exception, kind: type[errors.Error], reason: str) -> None:
    error = to_domain_error(exc, "x")
    assert type(error) is kind and error.reason == reason
    assert str(exc) not in error.message, "the text of a dependency is not for callers"


def test_rows_become_json_that_sql_can_cast() -> None:
    zone = timezone(timedelta(hours=2))
    row = {
        "time": datetime(2025, 11, 17, 1, 30, tzinfo=zone),
        "day": date(2025, 11, 17),
        "amount": Decimal("1E-9"),
        "raw": b"\x00\xff",
        "none": None,
        "flag": True,
        "n": 2**53,
        "list": [{"day": date(2025, 1, 1)}],
    }
    [made] = json.loads(rows_param([row]))
    assert made == {
        "time": "2025-11-16T23:30:00.000000+00:00",
        "day": "2025-11-17",
        "amount": "0.000000001",
        "raw": "AP8=",
        "none": None,
        "flag": True,
        "n": 2**53,
        "list": '[{"day":"2025-01-01"}]',
    }
    with pytest.raises(TypeError, match="without a zone"):
        rows_param([{"time": datetime(2025, 11, 17)}])
    assert json.loads(rows_param([{"t": datetime(1, 1, 1, tzinfo=UTC)}]))[0]["t"].startswith("0001-")


def test_placeholders_take_exactly_the_tables_given() -> None:
    sql = Sql("x", "SELECT a.id FROM {source} AS a JOIN {source} AS b ON a.id = b.id")
    assert sql.with_tables(source=TableRef("t", "d", "my-project")).text.count("`my-project.d.t`") == 2
    with pytest.raises(ValueError, match="placeholders"):
        sql.with_tables(other=TableRef("t"))


class Overloaded:
    """A client whose store never answers in time; counts what it is asked."""

    project = "p"

    def __init__(self) -> None:
        self.asked = 0
        self.begun = threading.Event()

    def query_and_wait(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        self.begun.set()
        raise failure(api.ServiceUnavailable, "backend")

    query = get_job = query_and_wait

    def close(self) -> None:
        pass


@pytest.mark.parametrize("method", ["query", "execute", "script"])
async def test_a_statement_whose_asker_has_gone_is_not_tried_again(method: str) -> None:
    """Found by overload: abandoned statements, sent again and again, kept a slow store from ever answering anybody."""
    client = Overloaded()
    warehouse = Warehouse(client, max_workers=1)  # type: ignore[arg-type]
    asking = asyncio.create_task(getattr(warehouse, method)(Sql("test/x.sql", "SELECT 1"), dataset="d", timeout=20))
    assert await asyncio.to_thread(client.begun.wait, 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    # The one thread is free at once: what is asked next does not wait behind tries for nobody.
    async with asyncio.timeout(5):
        assert await warehouse.run(lambda: SimpleNamespace(ok=True)) == SimpleNamespace(ok=True)
    asked = client.asked
    await asyncio.sleep(0.5)
    assert client.asked == asked
    warehouse.close()


async def test_an_answer_that_cannot_be_read_is_asked_for_again_and_the_job_is_not_sent_again() -> None:
    warehouse = Warehouse(build_client("unread", endpoint="http://127.0.0.1:1"))
    job = mock.create_autospec(bigquery.QueryJob, instance=True, state="DONE", error_result=None)
    done = mock.Mock(num_dml_affected_rows=1)
    job.result.side_effect = [ValueError("Expecting value: line 1 column 1"), done]
    job.total_bytes_billed = 0
    try:
        with (
            mock.patch.object(warehouse.client, "query", return_value=job) as sent,
            mock.patch.object(warehouse.client, "get_job", return_value=job),
        ):
            assert await warehouse.execute(Sql("x.sql", "DELETE FROM t WHERE TRUE"), dataset="d", job_id="once") == 1
        assert [call.kwargs["job_id"] for call in sent.call_args_list] == ["once"]
    finally:
        warehouse.close()
