"""The audit trail: who did what to which object, and how it ended; append-only, in ``tenants.audit_log``.

Every service appends, only tenant reads. A record is durable when ``append`` returns. Nothing secret may stand in
``details``. One that was appended twice (a caller's retry after an unknown outcome) has one ``record_id``: readers keep
one row per id.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from libs.bigquery import Sql, Warehouse
from libs.ledger import Appender, bigquery_insert
from libs.tenancy import CENTRAL_DATASET


class Outcome(StrEnum):
    """How an audited action ended."""

    OK = "OK"
    DENIED = "DENIED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One action. ``action`` is a verb of ours (``tenant.suspend``), ``reason`` the error's word if it did not end OK.

    ``user_id`` is whom the client said it acts for; the key that was used is ``actor_key_id``.
    """

    time: datetime
    tenant_id: str
    action: str
    object_type: str
    object_id: str
    outcome: Outcome = Outcome.OK
    reason: str = ""
    actor_key_id: str = ""
    user_id: str | None = None
    role: str = ""
    peer: str = ""
    request_id: str = ""
    source_ip: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    record_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class AuditLog:
    """Appends records in groups: however many arrive, one INSERT is in flight per process."""

    def __init__(self, warehouse: Warehouse) -> None:
        insert = bigquery_insert(
            warehouse,
            dataset=CENTRAL_DATASET,
            sql=Sql.load("libs", "sql/append_audit_records.sql"),
            to_json=_to_json,
        )
        self._appender: Appender[AuditRecord] = Appender(insert)

    async def append(self, record: AuditRecord) -> None:
        """Returns when the record is stored; ``Unavailable`` (maybe ``Ambiguous``) if that took over 15 s."""
        await self._appender.append(record)

    async def close(self) -> None:
        """Returns when all that was appended is settled."""
        await self._appender.close()


def _to_json(record: AuditRecord) -> Mapping[str, Any]:
    return {
        "record_id": record.record_id,
        "time": record.time,
        "tenant_id": record.tenant_id,
        "actor_key_id": record.actor_key_id,
        "user_id": record.user_id,
        "role": record.role,
        "peer": record.peer,
        "action": record.action,
        "object_type": record.object_type,
        "object_id": record.object_id,
        "outcome": record.outcome.value,
        "reason": record.reason,
        "request_id": record.request_id,
        "source_ip": record.source_ip,
        "details": dict(record.details),
    }
