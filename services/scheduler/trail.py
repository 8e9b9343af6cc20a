"""Writes what people do to schedules, runs and backfills into the audit trail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from libs import caller
from libs.audit import AuditRecord


class Audit(Protocol):
    """Where records go; ``libs.audit.AuditLog`` or a fake."""

    async def append(self, record: AuditRecord) -> None: ...


class Trail:
    """Appends records on behalf of the caller being served."""

    def __init__(self, audit: Audit, now: Callable[[], datetime]) -> None:
        self._audit = audit
        self._now = now

    async def note(self, action: str, tenant_id: str, object_type: str, object_id: str, **details: Any) -> None:
        """Returns when the record is durable."""
        who = caller.current()
        await self._audit.append(
            AuditRecord(
                time=self._now(),
                tenant_id=tenant_id,
                action=action,
                object_type=object_type,
                object_id=object_id,
                actor_key_id=who.key_id,
                user_id=who.user_id,
                role=who.role or "",
                peer=who.peer,
                request_id=caller.request_id(),
                source_ip=who.source_ip,
                details=details,
            )
        )
