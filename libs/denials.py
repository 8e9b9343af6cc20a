"""Refused callers in the audit trail: counted per key, reason and minute, so that a flood of them is a few records.

Whoever refuses (the gateway's authentication, a server's interceptor) notes it here and goes on; ``run`` writes the
counts once a minute. Counts are per process. What cannot be written is counted on; what may have been written is
written again as the same record, so that nothing counts twice.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from libs import logs
from libs.audit import AuditRecord, Outcome
from libs.errors import Ambiguous, Error
from libs.tenancy import Caller

MINUTE = timedelta(minutes=1)
# A flood of made-up key ids must not fill the memory: what is beyond is counted under one name.
_MAX_COUNTS = 500
_OTHERS = "others"

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _What:
    tenant_id: str
    key_id: str
    reason: str
    minute: datetime


@dataclass(slots=True)
class _Count:
    count: int = 0
    source_ip: str = ""
    method: str = ""
    record_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    sent: bool = False


class Denials:
    """Counts refusals and appends them as audit records. For one event loop."""

    def __init__(
        self, append: Callable[[AuditRecord], Awaitable[None]], *, service: str, now: Callable[[], datetime]
    ) -> None:
        self._append = append
        self._service = service
        self._now = now
        self._counts: dict[_What, _Count] = {}
        self._unsure: list[tuple[_What, _Count]] = []

    def note(self, *, tenant_id: str, key_id: str, reason: str, source_ip: str = "", method: str = "") -> None:
        """Counts one refusal; address and method are those of the first of the minute."""
        minute = self._now().replace(second=0, microsecond=0)
        what = _What(tenant_id, key_id, reason, minute)
        if what not in self._counts and len(self._counts) + len(self._unsure) >= _MAX_COUNTS:
            what = _What("", _OTHERS, reason, minute)
        count = self._counts.setdefault(what, _Count(source_ip=source_ip, method=method))
        count.count += 1

    def of_call(self, who: Caller, method: str, refusal: Error) -> None:
        """Counts a call that ``who`` may not make; for ``libs.grpc_server``. Callers without a key are only logged."""
        if who.key_id:
            self.note(
                tenant_id=who.tenant_id,
                key_id=who.key_id,
                reason=refusal.reason,
                source_ip=who.source_ip,
                method=method,
            )

    async def flush(self, *, ended_only: bool = False) -> None:
        """Appends what was counted, or only the minutes that have ended."""
        current = self._now().replace(second=0, microsecond=0)
        ended = [(what, count) for what, count in self._counts.items() if not ended_only or what.minute < current]
        for what, _ in ended:
            del self._counts[what]
        due, self._unsure = self._unsure + ended, []
        written = await asyncio.gather(
            *(self._append(self._record(what, count)) for what, count in due), return_exceptions=True
        )
        for (what, count), outcome in zip(due, written, strict=True):
            if isinstance(outcome, Error):
                self._keep(what, count, unsure=isinstance(outcome, Ambiguous))
            elif isinstance(outcome, BaseException):
                raise outcome

    def _keep(self, what: _What, count: _Count, *, unsure: bool) -> None:
        """Counts on; but a record that may be in the log already stays as it was sent."""
        count.sent = count.sent or unsure
        if count.sent:
            self._unsure.append((what, count))
            return
        if later := self._counts.get(what):
            count.count += later.count
        self._counts[what] = count

    async def run(self) -> None:
        """Appends the minutes that have ended, for ever."""
        while True:
            await asyncio.sleep(MINUTE.total_seconds())
            await self.flush(ended_only=True)

    def _record(self, what: _What, count: _Count) -> AuditRecord:
        return AuditRecord(
            time=what.minute,
            tenant_id=what.tenant_id,
            action="access.deny",
            object_type="api_key",
            object_id=what.key_id,
            outcome=Outcome.DENIED,
            reason=what.reason,
            actor_key_id=what.key_id,
            peer=self._service,
            source_ip=count.source_ip,
            details={"count": count.count, "first_method": count.method},
            record_id=count.record_id,
        )
