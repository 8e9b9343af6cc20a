"""Reads of what runs have published in a tenant's dataset; for the stores that answer questions about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libs import errors
from libs.bigquery import Sql, Value, Warehouse
from libs.tenancy import TenantId, tenant_not_found

_READ_SECONDS = 25.0


async def read_published(
    warehouse: Warehouse, sql: Sql, tenant_id: TenantId, params: Mapping[str, Value]
) -> Sequence[Mapping[str, Any]]:
    """The rows of a SELECT; none for a tenant whose tables are not there yet, ``NotFound`` for one that is not."""
    try:
        return await warehouse.query(sql, dataset=tenant_id, params=params, timeout=_READ_SECONDS)
    except errors.FailedPrecondition as exc:
        if exc.reason != "STORE_OBJECT_MISSING":
            raise
        # The tables come with the first provider's credential.
        if await warehouse.get_dataset(tenant_id) is None:
            raise tenant_not_found() from exc
        return []
