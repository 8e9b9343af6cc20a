"""Who is calling, for which tenant, and what a tenant may be named: the one place isolation rules live.

A tenant's BigQuery dataset is named exactly its id, and identifiers cannot be bound as query parameters. So an id
becomes a ``TenantId`` once, at the edge, and everything behind it takes that type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from libs.errors import InvalidArgument, NotFound

CENTRAL_DATASET = "tenants"
_PATTERN = re.compile(r"[a-z][a-z0-9_]{2,49}", re.ASCII)
_RESERVED = frozenset({CENTRAL_DATASET, "information_schema", "onboard"})


class TenantId(str):
    """A validated tenant id, 3–50 characters of ``[a-z0-9_]`` starting with a letter; also its dataset's name."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> TenantId:
        """Raises ``InvalidArgument(TENANT_ID_INVALID)`` unless the whole text is a usable, unreserved id."""
        if not _PATTERN.fullmatch(text) or text in _RESERVED or text.startswith("x_"):
            raise InvalidArgument(
                "TENANT_ID_INVALID",
                "tenant_id must be 3 to 50 characters of a-z, 0-9 and _, start with a letter, and not be reserved "
                "(tenants, information_schema, onboard, x_…).",
            )
        return cls(text)


class Role(StrEnum):
    """What a caller may do; the order of strength is in ``allows``."""

    ONBOARDER = "ONBOARDER"
    RUNNER = "RUNNER"
    ADMIN = "ADMIN"
    PLATFORM_ADMIN = "PLATFORM_ADMIN"

    def allows(self, needed: Role) -> bool:
        """True if a caller with this role may call something that needs ``needed``."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated principal.

    ``tenant_id`` is empty for the platform admin, an open onboarding and internal peers. ``user_id`` is whom the
    client says it acts for: audit only, never authority. ``peer`` is the process on the other end of the
    connection (``gateway``, ``cron``, ``scheduler`` …; empty for a client with its own key).
    """

    role: Role | None
    tenant_id: str = ""
    key_id: str = ""
    user_id: str | None = None
    peer: str = ""
    source_ip: str = ""


def tenant_not_found() -> NotFound:
    """The one answer for a tenant that does not exist and for one that is somebody else's."""
    return NotFound("TENANT_NOT_FOUND", "Tenant not found.")
