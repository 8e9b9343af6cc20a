"""The rows of runs, their step logs and quality results on BigQuery: one dataset per tenant, a few statements per run.

Every method takes the tenant first, or a key or row that holds it. The row of an attempt is made under a job id that
follows from the attempt, so that it exists once, and so that ``withdraw`` can take the place of a statement nobody
heard of again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from libs import errors
from libs.bigquery import Sql, Typed, Value, Warehouse, rows_param
from libs.tenancy import TenantId, tenant_not_found
from services.pipeline_executor.domain import (
    Check,
    Ending,
    Key,
    Outcome,
    Run,
    RunError,
    RunFilter,
    RunStatus,
    Spec,
    Step,
    StepStatus,
    Trigger,
)

_PACKAGE = "services.pipeline_executor"
# The same for making and for withdrawing a row: both walk the same chain of job ids.
_INSERT_RETRIES = 5
_RETRIES = 5
_WRITE_SECONDS = 20.0
_READ_SECONDS = 20.0


class BigQueryRunStore:
    """A ``RunStore``; ``data`` runs the publications, whose length must not hold up the bookkeeping."""

    def __init__(self, warehouse: Warehouse, data: Warehouse) -> None:
        self._warehouse = warehouse
        self._data = data
        self._insert = Sql.load(_PACKAGE, "sql/insert_run.sql")
        self._withdraw = Sql.load(_PACKAGE, "sql/withdraw_run.sql")
        self._attempts = Sql.load(_PACKAGE, "sql/read_attempts.sql")
        self._list_runs = Sql.load(_PACKAGE, "sql/list_runs.sql")
        self._end = Sql.load(_PACKAGE, "sql/end_runs.sql")
        self._cancel = Sql.load(_PACKAGE, "sql/cancel_run.sql")
        self._append_steps = Sql.load(_PACKAGE, "sql/append_step_logs.sql")
        self._append_checks = Sql.load(_PACKAGE, "sql/append_dq_results.sql")
        self._steps = Sql.load(_PACKAGE, "sql/list_step_logs.sql")
        self._checks = Sql.load(_PACKAGE, "sql/list_dq_results.sql")

    # ---------------------------------------------------------------- runs

    async def insert(self, run: Run) -> bool:
        """Makes the attempt's row; False if its place was taken by another row or withdrawn."""
        made = await self._write(
            self._insert, run.key.tenant_id, _insert_params(run), job_id=_insert_id(run.key), retries=_INSERT_RETRIES
        )
        return made == 1

    async def withdraw(self, key: Key) -> bool:
        """Makes sure that an attempt without a row never gets one; False if it has one after all."""
        try:
            made = await self._write(self._withdraw, key.tenant_id, {}, job_id=_insert_id(key), retries=_INSERT_RETRIES)
        except errors.Aborted:
            return True  # Every id the row could be made under has been used up in vain.
        return made == 0

    async def attempts(self, tenant_id: TenantId, run_ids: Collection[str]) -> list[Run]:
        """All attempts of the runs, oldest first."""
        rows = await self._read(self._attempts, tenant_id, {"run_ids": sorted(run_ids)})
        return [_run(tenant_id, row) for row in rows]

    async def list_runs(
        self, tenant_id: TenantId, wanted: RunFilter, size: int, after: tuple[datetime, str] | None
    ) -> list[Run]:
        """Newest attempts of runs, the newest run first, behind the one that began at ``after``."""
        params: dict[str, Value] = {
            "status": wanted.status,
            "provider": wanted.provider,
            "domain": wanted.domain,
            "template": wanted.template,
            "after_time": Typed("TIMESTAMP", after[0] if after else None),
            "after_id": after[1] if after else None,
            "size": size,
        }
        return [_run(tenant_id, row) for row in await self._read(self._list_runs, tenant_id, params)]

    async def end(self, tenant_id: TenantId, endings: Sequence[Ending]) -> int:
        """Ends those attempts that are RUNNING or CANCELLING; how many that were."""
        rows = rows_param(_ending_json(ending) for ending in endings)
        return await self._write(self._end, tenant_id, {"rows": rows})

    async def cancel(self, key: Key, now: datetime) -> bool:
        """RUNNING → CANCELLING; False if it was not RUNNING."""
        params: dict[str, Value] = {"pipeline_logging_id": key.run_id, "attempt": key.attempt, "now": now}
        return await self._write(self._cancel, key.tenant_id, params) == 1

    async def publish(self, key: Key, sql: Sql, params: Mapping[str, Value], limit_seconds: float) -> None:
        """Runs a publishing script; ``Aborted(RUN_FENCED)`` if the attempt is not RUNNING."""
        await self._data.script(
            sql,
            dataset=key.tenant_id,
            params=params,
            # Never the same twice: one that failed would answer for all later ones. The fence makes it exactly once.
            job_id=f"publish-{key.run_id}-{key.attempt}-{uuid.uuid4().hex[:12]}",
            labels={"tenant_id": key.tenant_id, "run_id": key.run_id},
            timeout=limit_seconds,
        )

    # ---------------------------------------------------------------- logs

    async def append_steps(self, run: Run, steps: Sequence[Step]) -> None:
        """Logs the steps of an attempt that has ended; once however often it is called."""
        rows = rows_param(_step_json(run, step) for step in steps)
        job_id = f"steps-{run.key.run_id}-{run.key.attempt}"
        await self._write(self._append_steps, run.key.tenant_id, {"rows": rows}, job_id=job_id)

    async def append_checks(self, run: Run, checks: Sequence[Check]) -> None:
        """Logs quality results; the same results are logged once however often it is called."""
        if not checks:
            return
        found = [[check.name, check.dimension, check.status, check.expected, check.actual] for check in checks]
        digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
        rows = rows_param(_check_json(run, check) for check in checks)
        job_id = f"checks-{run.key.run_id}-{run.key.attempt}-{digest}"
        await self._write(self._append_checks, run.key.tenant_id, {"rows": rows}, job_id=job_id)

    async def steps(self, run_id: str, attempts: Sequence[Run], size: int, after: tuple[int, int] | None) -> list[Step]:
        """Logged steps of the given attempts of one run, by attempt and position, behind ``after``."""
        if not attempts:
            return []
        params = _log_params(run_id, attempts, size)
        params["after_attempt"] = Typed("INT64", after[0] if after else None)
        params["after_position"] = Typed("INT64", after[1] if after else None)
        rows = await self._read(self._steps, attempts[0].key.tenant_id, params)
        return [_step(row) for row in rows]

    async def checks(
        self, run_id: str, attempts: Sequence[Run], size: int, after: tuple[int, str, str] | None
    ) -> list[Check]:
        """Quality results of the given attempts of one run, by attempt, name and dimension, behind ``after``."""
        if not attempts:
            return []
        params = _log_params(run_id, attempts, size)
        params["after_attempt"] = Typed("INT64", after[0] if after else None)
        params["after_check"] = after[1] if after else None
        params["after_dimension"] = after[2] if after else None
        rows = await self._read(self._checks, attempts[0].key.tenant_id, params)
        return [_check(row) for row in rows]

    # ---------------------------------------------------------------- statements

    async def _read(self, sql: Sql, tenant_id: TenantId, params: Mapping[str, Value]) -> list[dict[str, Any]]:
        with _missing_is_not_found():
            return await self._warehouse.query(sql, dataset=tenant_id, params=params, timeout=_READ_SECONDS)

    async def _write(
        self,
        sql: Sql,
        tenant_id: TenantId,
        params: Mapping[str, Value],
        *,
        job_id: str | None = None,
        retries: int = _RETRIES,
    ) -> int:
        with _missing_is_not_found():
            return await self._warehouse.execute(
                sql,
                dataset=tenant_id,
                params=params,
                job_id=job_id,
                timeout=_WRITE_SECONDS,
                conflict_retries=retries,
            )


@contextmanager
def _missing_is_not_found() -> Iterator[None]:
    """Every tenant has its dataset and run tables from the start, so one without them is none."""
    try:
        yield
    except errors.FailedPrecondition as exc:
        if exc.reason == "STORE_OBJECT_MISSING":
            raise tenant_not_found() from exc
        raise


def _insert_id(key: Key) -> str:
    return f"run-{key.tenant_id}-{key.run_id}-{key.attempt}"


def _insert_params(run: Run) -> dict[str, Value]:
    return {
        "pipeline_logging_id": run.key.run_id,
        "attempt": run.key.attempt,
        "tenant_id": run.key.tenant_id,
        "user_id": run.user_id,
        "status": run.status,
        "provider": run.spec.provider,
        "domain": run.spec.domain,
        "template": run.spec.template,
        "start_date": run.spec.start_date,
        "end_date": run.spec.end_date,
        "parameters": json.dumps(dict(run.spec.parameters), sort_keys=True),
        "trigger": run.trigger,
        "owner": run.owner,
        "fingerprint": run.fingerprint,
        "config_id": run.config_id or None,
        "request_id": run.request_id or None,
        "reservation_day": Typed("DATE", run.reservation_day),
        "start_time": run.start_time,
    }


def _log_params(run_id: str, attempts: Sequence[Run], size: int) -> dict[str, Value]:
    return {
        "pipeline_logging_id": run_id,
        "attempts": [run.key.attempt for run in attempts],
        "since": min(run.start_time for run in attempts),
        "size": size,
    }


def _ending_json(ending: Ending) -> Mapping[str, Any]:
    return {
        "pipeline_logging_id": ending.key.run_id,
        "attempt": ending.key.attempt,
        "status": ending.status,
        "if_cancelling": ending.if_cancelling,
        "outcome": ending.outcome,
        "end_time": ending.end_time,
        **_error_json(ending.error),
    }


def _error_json(error: RunError | None) -> Mapping[str, Any]:
    return {
        "error_reason": error.reason if error else None,
        "error_message": error.message if error else None,
        "retryable": error.retryable if error else None,
    }


def _step_json(run: Run, step: Step) -> Mapping[str, Any]:
    return {
        "pipeline_logging_id": run.key.run_id,
        "attempt": run.key.attempt,
        "tenant_id": run.key.tenant_id,
        "user_id": run.user_id,
        "step": step.name,
        "step_type": step.type,
        "position": step.position,
        "status": step.status,
        "tries": step.tries,
        "rows": step.rows,
        "bytes": step.bytes,
        "start_time": step.start_time or run.start_time,
        "end_time": step.end_time,
        "details": dict(step.details),
        **_error_json(step.error),
    }


def _check_json(run: Run, check: Check) -> Mapping[str, Any]:
    return {
        "pipeline_logging_id": run.key.run_id,
        "attempt": run.key.attempt,
        "tenant_id": run.key.tenant_id,
        "user_id": run.user_id,
        "check_name": check.name,
        "check_type": check.type,
        "severity": check.severity,
        "status": check.status,
        "dimension": check.dimension or None,
        "expected": check.expected,
        "actual": check.actual,
        "message": check.message,
        "checked_at": check.check_time,
    }


def _run(tenant_id: TenantId, row: Mapping[str, Any]) -> Run:
    return Run(
        key=Key(tenant_id, row["pipeline_logging_id"], row["attempt"]),
        spec=Spec(
            row["provider"],
            row["domain"],
            row["template"],
            row["start_date"],
            row["end_date"],
            json.loads(row["parameters"] or "{}"),
        ),
        status=RunStatus(row["status"]),
        trigger=Trigger(row["trigger"]),
        owner=row["owner"] or "",
        fingerprint=row["fingerprint"] or "",
        start_time=row["start_time"].astimezone(UTC),
        user_id=row["user_id"],
        config_id=row["config_id"] or "",
        request_id=row["request_id"] or "",
        reservation_day=row["reservation_day"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        end_time=_time(row["end_time"]),
        rows_published=row["rows_published"] or 0,
        superseded_by=row["superseded_by"] or "",
        error=_error(row),
    )


def _error(row: Mapping[str, Any]) -> RunError | None:
    if not row["error_reason"]:
        return None
    return RunError(row["error_reason"], row["error_message"] or "", bool(row["retryable"]))


def _step(row: Mapping[str, Any]) -> Step:
    return Step(
        attempt=row["attempt"],
        position=row["position"],
        name=row["step"],
        type=row["step_type"] or "",
        status=StepStatus(row["status"]),
        tries=row["tries"] or 0,
        rows=row["rows"],
        bytes=row["bytes"],
        start_time=_time(row["start_time"]) if row["tries"] else None,
        end_time=_time(row["end_time"]),
        error=_error(row),
        details=json.loads(row["details"] or "{}"),
    )


def _check(row: Mapping[str, Any]) -> Check:
    return Check(
        attempt=row["attempt"],
        name=row["check_name"],
        type=row["check_type"] or "",
        severity=row["severity"] or "",
        status=row["status"],
        dimension=row["dimension"] or "",
        expected=row["expected"],
        actual=row["actual"],
        message=row["message"] or "",
        check_time=row["checked_at"].astimezone(UTC),
    )


def _time(value: datetime | None) -> datetime | None:
    return value.astimezone(UTC) if value else None
