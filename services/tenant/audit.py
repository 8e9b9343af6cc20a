"""What the use cases need of the audit trail; ``store.AuditTrail`` is the real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Audit(Protocol):
    """Writes down one action, who did it (the caller of the call being served) and how it ended."""

    async def __call__(
        self,
        action: str,
        tenant_id: str,
        object_type: str,
        object_id: str,
        *,
        details: Mapping[str, Any] | None = None,
        record_id: str | None = None,
    ) -> None:
        """Returns when the record is durable. The same ``record_id`` twice is one record."""
        ...
