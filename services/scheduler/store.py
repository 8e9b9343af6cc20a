"""The scheduler's rows in BigQuery: dataclasses ↔ rows, SQL by file name. Nothing is decided here.

The invariant: a run and its queue row are written in one transaction, behind a comparison of versions, and whatever
creates something names its mutex (the schedule's version for an occurrence, a job id made of what it means elsewhere).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from libs import errors
from libs.bigquery import Sql, Typed, Value, Warehouse, rows_param
from libs.ledger import BigQueryTable
from libs.tenancy import CENTRAL_DATASET, TenantId
from services.scheduler.domain import (
    Backfill,
    Backlog,
    Catchup,
    Due,
    Firing,
    Item,
    Job,
    JobCall,
    Overlap,
    Pick,
    Run,
    Schedule,
    State,
    Status,
    Stop,
    Trigger,
)

_MAX_BYTES = 4_000_000
_CONFLICT_RETRIES = 6
# A job id that failed for good is spent: the next try takes the next of these.
_TRIES = ("", "-b", "-c", "-d")
_DAY = timedelta(days=1)

_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "tenant_id": TenantId,
    "overlap_policy": Overlap,
    "catchup_policy": Catchup,
    "state": State,
    "stop": Stop,
    "trigger": Trigger,
}


@functools.cache
def _sql(name: str) -> Sql:
    return Sql.load("services.scheduler", f"sql/{name}.sql")


def _from_row[R](kind: type[R], row: Mapping[str, Any]) -> R:
    """The dataclass of a row; columns it has no field for are left out, NULL becomes the field's default."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = row.get(field.name)
        if value is None:
            continue
        values[field.name] = _KINDS[field.name](value) if field.name in _KINDS else value
    return kind(**values)


def _to_json(row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


def _time(value: datetime | None) -> Value:
    return Typed("TIMESTAMP", value)


def _chunks[R](rows: Sequence[R]) -> Iterator[list[R]]:
    """Rows in chunks that make at most ``_MAX_BYTES`` of JSON each."""
    chunk: list[R] = []
    size = 0
    for row in rows:
        length = len(rows_param([_to_json(row)]))
        if chunk and size + length > _MAX_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    if chunk:
        yield chunk


class _Statements:
    """Runs this context's statements in the central dataset."""

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse

    async def query(self, name: str, **params: Value) -> list[dict[str, Any]]:
        return await self.warehouse.query(_sql(name), dataset=CENTRAL_DATASET, params=params)

    async def execute(self, name: str, *, job_id: str | None = None, **params: Value) -> int:
        return await self.warehouse.execute(
            _sql(name), dataset=CENTRAL_DATASET, params=params, job_id=job_id, conflict_retries=_CONFLICT_RETRIES
        )

    async def script(self, name: str, *, job_id: str | None = None, **params: Value) -> list[dict[str, Any]]:
        return await self.warehouse.script(
            _sql(name), dataset=CENTRAL_DATASET, params=params, job_id=job_id, conflict_retries=_CONFLICT_RETRIES
        )

    async def once(self, name: str, key: str, **params: Value) -> None:
        """Runs a statement whose job id is its mutex: for one ``key`` it takes effect once."""
        for suffix in _TRIES:
            try:
                await self.script(name, job_id=f"{key}{suffix}", **params)
                return
            except errors.Ambiguous:
                raise
            except (errors.Unavailable, errors.Aborted, errors.Internal):
                if suffix == _TRIES[-1]:
                    raise


class BigQuerySchedules:
    """``domain.Schedules`` on ``tenant_pipeline_configs``."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._do = _Statements(warehouse)
        self._table: BigQueryTable[Schedule] = BigQueryTable(
            warehouse,
            dataset=CENTRAL_DATASET,
            read=_sql("read_schedules"),
            replace=_sql("replace_schedules"),
            key=lambda schedule: schedule.config_id,
            from_row=lambda row: _from_row(Schedule, row),
            to_json=_to_json,
        )

    async def read(self, keys: Collection[str]) -> Mapping[str, Schedule]:
        return await self._table.read(keys)

    async def replace(self, rows: Collection[Schedule]) -> bool:
        return await self._table.replace(rows)

    async def insert(self, schedule: Schedule) -> None:
        row = {**_to_json(schedule), "version": 1}
        await self._do.once("insert_schedule", f"schedule-{schedule.config_id}", rows=rows_param([row]))

    async def list(self, tenant_id: TenantId, size: int, after: tuple[datetime, str] | None) -> Sequence[Schedule]:
        time, config_id = after or (None, None)
        rows = await self._do.query(
            "list_schedules", tenant_id=tenant_id, size=size, after_time=_time(time), after_id=config_id
        )
        return [_from_row(Schedule, row) for row in rows]

    async def due(self, now: datetime, limit: int, config_id: str | None = None) -> Sequence[Due]:
        rows = await self._do.query("read_due", now=now, size=limit, config_id=config_id)
        return [Due(_from_row(Schedule, row), row["waiting"], row["claimed"]) for row in rows]

    async def fire(self, firings: Sequence[Firing], change_id: str, now: datetime) -> Collection[str]:
        batch = {
            "schedules": [_to_json(firing.schedule) for firing in firings],
            "runs": [_to_json(run) for firing in firings for run in firing.runs],
            "items": [_to_json(item) for firing in firings for item in firing.items],
        }
        found = await self._do.script("fire_schedules", batch=_batch(batch), change_id=change_id)
        return {row["config_id"] for row in found}

    async def fired(self, change_id: str) -> Collection[str]:
        return {row["config_id"] for row in await self._do.query("read_fired", change_id=change_id)}

    async def retire(self, tenant_ids: Collection[str], now: datetime) -> None:
        await self._do.execute("retire_schedules", tenant_ids=list(tenant_ids), now=now)


def _batch(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{rows_param(rows)}" for name, rows in parts.items()) + "}"


class BigQueryQueue:
    """``domain.Queue`` on ``pipeline_execution_queue`` and ``scheduled_pipeline_runs``."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._do = _Statements(warehouse)

    async def add(self, runs: Sequence[Run], items: Sequence[Item], key: str, backfill: Backfill | None = None) -> None:
        batch = {
            "backfills": [_to_json(backfill)] if backfill else [],
            "runs": [_to_json(run) for run in runs],
            "items": [_to_json(item) for item in items],
        }
        await self._do.once("add_runs", f"add-{key}", batch=_batch(batch), change_id=key)

    async def items(self, pick: Pick, limit: int = 1_000) -> Sequence[Item]:
        rows = await self._do.query(
            "read_items",
            states=[state.value for state in pick.states],
            run_ids=list(pick.run_ids),
            config_ids=list(pick.config_ids),
            backfill_ids=list(pick.backfill_ids),
            tenant_ids=list(pick.tenant_ids),
            lease_id=pick.lease_id,
            ready_at=_time(pick.ready_at),
            expired_at=_time(pick.expired_at),
            size=limit,
        )
        return [_from_row(Item, row) for row in rows]

    async def backlog(self, now: datetime) -> Sequence[Backlog]:
        return [_from_row(Backlog, row) for row in await self._do.query("read_backlog", now=now)]

    async def claim(
        self, slots: Mapping[str, int], size: int, *, lease_id: str, now: datetime, until: datetime, asked: datetime
    ) -> Sequence[Item]:
        given = rows_param({"tenant_id": tenant_id, "slots": count} for tenant_id, count in slots.items())
        try:
            claimed = await self._do.execute(
                "claim_runs",
                job_id=f"claim-{lease_id}",
                slots=given,
                size=size,
                lease_id=lease_id,
                lease_until=until,
                now=now,
                asked=asked,
            )
        except errors.Ambiguous:
            claimed = size
        return await self.items(Pick(lease_id=lease_id), size) if claimed else []

    async def apply(self, items: Sequence[Item], change_id: str, now: datetime) -> Collection[str]:
        written: set[str] = set()
        for number, chunk in enumerate(_chunks(items)):
            found = await self._do.script(
                "apply_items",
                rows=rows_param(_to_json(item) for item in chunk),
                change_id=f"{change_id}-{number}",
                now=now,
                first_created=min(item.created_at for item in chunk),
                last_created=max(item.created_at for item in chunk),
            )
            written |= {row["run_id"] for row in found}
        return written

    async def applied(self, items: Sequence[Item], change_id: str) -> Collection[str]:
        written: set[str] = set()
        for number, chunk in enumerate(_chunks(items)):
            rows = await self._do.query(
                "read_applied",
                change_id=f"{change_id}-{number}",
                first_created=min(item.created_at for item in chunk),
                last_created=max(item.created_at for item in chunk),
            )
            written |= {row["run_id"] for row in rows}
        return written


class BigQueryRecords:
    """``domain.Records`` on all tables of this context."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._do = _Statements(warehouse)

    async def run(self, tenant_id: TenantId, run_id: str) -> Run | None:
        rows = await self._do.query("read_run", tenant_id=tenant_id, run_id=run_id)
        return _from_row(Run, rows[0]) if rows else None

    async def runs(
        self, tenant_id: TenantId, config_id: str, size: int, before: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        time, run_id = before or (None, None)
        rows = await self._do.query(
            "list_runs", tenant_id=tenant_id, config_id=config_id, size=size, before_time=_time(time), before_id=run_id
        )
        return [_from_row(Run, row) for row in rows]

    async def queue(self, state: State | None, size: int, after: int) -> Sequence[tuple[int, Item]]:
        rows = await self._do.query("list_queue", state=state.value if state else "", size=size, after=after)
        return [(row["place"], _from_row(Item, row)) for row in rows]

    async def dead_letters(self, size: int, before: tuple[datetime, str] | None) -> Sequence[Item]:
        time, run_id = before or (None, None)
        rows = await self._do.query("list_dead_letters", size=size, before_time=_time(time), before_id=run_id)
        return [_from_row(Item, row) for row in rows]

    async def backfills(
        self, tenant_id: TenantId, size: int, before: tuple[datetime, str] | None, backfill_id: str | None = None
    ) -> Sequence[Backfill]:
        time, last_id = before or (None, None)
        rows = await self._do.query(
            "list_backfills",
            tenant_id=tenant_id,
            backfill_id=backfill_id,
            size=size,
            before_time=_time(time),
            before_id=last_id,
        )
        return [_from_row(Backfill, row) for row in rows]

    async def cancel_backfill(self, tenant_id: TenantId, backfill_id: str, now: datetime) -> None:
        await self._do.execute("cancel_backfill", tenant_id=tenant_id, backfill_id=backfill_id, now=now)

    async def note_call(self, call_id: str, job: Job, at: datetime, outcome: str | None, counts: str | None) -> None:
        event = {
            "call_id": call_id,
            "job": job.value,
            "event": "BEGIN" if outcome is None else "END",
            "event_time": at,
            "outcome": outcome,
            "counts": counts,
        }
        await self._do.execute("append_job_calls", rows=rows_param([event]))

    async def calls(self, since: datetime) -> Sequence[JobCall]:
        rows = await self._do.query("read_job_calls", since=since)
        return [JobCall(row["job"], row["start_time"], row["end_time"], row["outcome"] or "") for row in rows]

    async def status(self, now: datetime) -> Status:
        rows = await self._do.query("read_status", now=now, day_ago=now - _DAY)
        one = {row["kind"]: row for row in rows if row["kind"] != "STATE"}
        return Status(
            due=one["DUE"]["number"],
            due_since=one["DUE"]["since"],
            by_state={row["name"]: row["number"] for row in rows if row["kind"] == "STATE"},
            ready_since=one["READY"]["since"],
            failed_last_day=one["FAILED"]["number"],
        )

    async def violations(self, late: datetime, settled: datetime, stale_lease: datetime) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for row in await self._do.query("read_invariants", late=late, settled=settled, stale_lease=stale_lease):
            found[row["name"]].append(row["id"])
        return found

    async def delete_before(self, before: datetime) -> int:
        [row] = await self._do.script("delete_old_records", before=before)
        return int(row["deleted"])
