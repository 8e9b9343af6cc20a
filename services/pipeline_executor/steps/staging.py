"""Staging tables of one attempt: named after it, in the tenant's own dataset, gone afterwards.

The engine drops what was handed out when the attempt ends, however it ends. What a killed process leaves behind
expires by itself, and no later attempt can mistake it for its own, because the name holds run and attempt.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.cloud import bigquery

from libs import errors, logs
from libs.bigquery import TableRef, Warehouse
from libs.tenancy import TenantId

LIFETIME = timedelta(hours=24)
PREFIX = "x_staging_"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_HTTP_SECONDS = 20.0
_LOG = logs.get(__name__)


class Staging:
    """Hands out this attempt's staging tables; used by one event loop."""

    def __init__(self, warehouse: Warehouse, tenant_id: TenantId, pipeline_logging_id: str, attempt: int) -> None:
        self._warehouse = warehouse
        self._dataset = str(tenant_id)
        self._prefix = f"{PREFIX}{uuid.UUID(pipeline_logging_id).hex}_{attempt:d}_"
        self._given: set[TableRef] = set()

    def table(self, name: str) -> TableRef:
        """The staging table of that name; ``ValueError`` unless the name is lower-case snake."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a staging table's name: {name!r}")
        ref = TableRef(self._prefix + name)
        self._given.add(ref)
        return ref

    async def create(self, name: str, schema: Sequence[bigquery.SchemaField]) -> TableRef:
        """Makes the table anew and empty, with an expiration; whatever an earlier try left in it is gone."""
        ref = self.table(name)
        target = bigquery.DatasetReference(self._warehouse.project_id, self._dataset).table(ref.table)
        await self._warehouse.drop_table(self._dataset, ref)
        table = bigquery.Table(target, schema=list(schema))
        table.expires = datetime.now(UTC) + LIFETIME
        await self._warehouse.run(self._warehouse.client.create_table, table, exists_ok=True, timeout=_HTTP_SECONDS)
        return ref

    async def count(self, ref: TableRef) -> int:
        """Rows in a staging table, from its metadata."""
        target = bigquery.DatasetReference(self._warehouse.project_id, self._dataset).table(ref.table)
        table = await self._warehouse.run(self._warehouse.client.get_table, target, timeout=_HTTP_SECONDS)
        return int(table.num_rows or 0)

    async def drop(self) -> None:
        """Drops every table handed out; a failure is logged, since they expire anyway."""
        given, self._given = self._given, set()
        drops = (self._warehouse.drop_table(self._dataset, ref) for ref in given)
        for result in await asyncio.gather(*drops, return_exceptions=True):
            if isinstance(result, errors.Error):
                _LOG.warning("staging table not dropped", reason=result.reason)
