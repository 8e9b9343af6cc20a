"""Keeps credentials in ``tenants.tenant_cloud_credentials``: rows ↔ ``Credential``, SQL by file name.

The only code with SQL of this service. The sealed versions of a secret travel in one JSON column, so that a decision
about them swaps one row; every other column is for reading, listing and finding due rows.
"""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from google.api_core.exceptions import NotFound

from libs import errors
from libs.bigquery import Sql, Warehouse, rows_param
from libs.ledger import BigQueryTable, Ledger
from libs.tenancy import CENTRAL_DATASET
from services.credential.states import Change, Credential, Kind, Provider, Sealed, SecretVersion, Status, decide

_PACKAGE: Final = "services.credential"
_READ: Final = Sql.load(_PACKAGE, "sql/read_credentials.sql")
_REPLACE: Final = Sql.load(_PACKAGE, "sql/replace_credentials.sql")
_ADD: Final = Sql.load(_PACKAGE, "sql/add_credential.sql")
_LIST: Final = Sql.load(_PACKAGE, "sql/list_credentials.sql")
_LIST_DUE: Final = Sql.load(_PACKAGE, "sql/list_due_credentials.sql")
_ADD_TRIES: Final = 5


class BigQueryCredentialStore:
    """The rows on BigQuery. Reads and changes that arrive together travel in one statement each."""

    def __init__(self, warehouse: Warehouse, *, now: Callable[[], datetime]) -> None:
        self._warehouse = warehouse
        table = BigQueryTable(
            warehouse,
            dataset=CENTRAL_DATASET,
            read=_READ,
            replace=_REPLACE,
            key=lambda row: row.credential_id,
            from_row=from_row,
            to_json=to_json,
        )
        self._changes: Ledger[Credential, Change, Credential] = Ledger(table, decide, now=now)
        # Apart from the changes: a reader does not wait for a write.
        self._reads: Ledger[Credential, None, Credential | None] = Ledger(
            table, lambda row, _request, _now: (row, row), now=now
        )

    async def read(self, credential_id: str) -> Credential | None:
        """The row as it is now."""
        return await self._reads.ask(credential_id, None)

    async def change(self, credential_id: str, change: Change) -> Credential:
        """Commits ``decide`` and gives its answer."""
        return await self._changes.ask(credential_id, change)

    async def list(
        self, tenant_id: str, *, provider: str, after: tuple[str, str] | None, limit: int
    ) -> Sequence[Credential]:
        """At most ``limit`` of a tenant's rows by provider and name, from behind ``after``."""
        after_provider, after_name = after or ("", "")
        rows = await self._warehouse.query(
            _LIST,
            dataset=CENTRAL_DATASET,
            params={
                "tenant_id": tenant_id,
                "provider": provider,
                "after_provider": after_provider,
                "after_name": after_name,
                "limit": limit,
            },
        )
        return [from_row(row) for row in rows]

    async def list_due(
        self, now: datetime, *, key_version: str, pending_age: timedelta, valid_age: timedelta, limit: int
    ) -> Sequence[Credential]:
        """Rows with something to re-wrap, to destroy or to ask the provider about again."""
        rows = await self._warehouse.query(
            _LIST_DUE,
            dataset=CENTRAL_DATASET,
            params={
                "now": now,
                "kek_version": key_version,
                "pending_before": now - pending_age,
                "valid_before": now - valid_age,
                "limit": limit,
            },
        )
        return [from_row(row) for row in rows]

    async def add(self, row: Credential, attempt: int) -> None:
        """Adds the row unless the same attempt was made before, by whomever.

        The attempt's job id is the mutex: BigQuery accepts it once. ``Aborted`` means that the job exists and has
        failed, so that nobody can add anything under this attempt any more; only then may the next one be tried.
        """
        job_id, owner = f"credential-{row.credential_id}-{attempt}", uuid.uuid4().hex
        for wait in range(_ADD_TRIES):
            try:
                await self._warehouse.execute(
                    _ADD,
                    dataset=CENTRAL_DATASET,
                    params={"rows": rows_param([to_json(row)])},
                    job_id=job_id,
                    labels={"owner": owner},
                )
                return
            except errors.Error as failure:
                passing = isinstance(failure, (errors.Aborted, errors.Unavailable))
                if isinstance(failure, errors.Ambiguous):
                    raise
                failed_by = await self._failed_by(job_id)
                if failed_by is not None and (passing or failed_by != owner):
                    raise errors.Aborted("STORE_CONFLICT", "The row was not added; try the next attempt.") from failure
                if not passing:
                    raise
            await asyncio.sleep(0.05 * 2**wait)
        raise errors.Unavailable("STORE_BUSY", "The store did not take the row in time; try again.")

    async def close(self) -> None:
        """Returns when all that was asked is answered."""
        await self._changes.close()
        await self._reads.close()

    async def _failed_by(self, job_id: str) -> str | None:
        """Whose the job is, if it exists and has failed."""
        try:
            job = await self._warehouse.run(self._warehouse.client.get_job, job_id, timeout=10)
        except errors.Error as failure:
            if isinstance(failure.__cause__, NotFound):
                return None
            raise
        return job.labels.get("owner", "") if job.state == "DONE" and job.error_result is not None else None


def to_json(row: Credential) -> Mapping[str, Any]:
    """The columns of a row."""
    destroy_times = [secret.destroy_time for secret in row.secrets if secret.destroy_time is not None]
    key_versions = sorted({secret.sealed.key_version for secret in row.secrets})
    return {
        "credential_id": row.credential_id,
        "tenant_id": row.tenant_id,
        "version": row.version,
        "provider": row.provider.value,
        "name": row.name,
        "kind": row.kind.value,
        "status": row.status.value,
        "status_reason": row.status_reason,
        "display": row.display,
        "source": json.dumps(dict(row.source)),
        "secret_version": row.number,
        "secrets": json.dumps(
            {
                "first_id": row.first_id,
                "seen": list(row.seen),
                "last_number": row.last_number,
                "versions": [_secret_to_json(secret) for secret in row.secrets],
            }
        ),
        "kek_version": ",".join(key_versions) or None,
        "destroy_at": min(destroy_times, default=None),
        "expires_at": row.expire_time,
        "last_validated_at": row.last_validated_time,
        "created_at": row.create_time,
        "updated_at": row.update_time,
    }


def from_row(row: Mapping[str, Any]) -> Credential:
    """The credential of a row's columns."""
    document = json.loads(row["secrets"])
    return Credential(
        credential_id=row["credential_id"],
        tenant_id=row["tenant_id"],
        provider=Provider(row["provider"]),
        name=row["name"],
        version=row["version"],
        status=Status(row["status"]),
        status_reason=row["status_reason"] or "",
        source=json.loads(row["source"] or "{}"),
        secrets=tuple(_secret_from_json(secret) for secret in document["versions"]),
        last_number=document["last_number"],
        first_id=document["first_id"],
        seen=tuple(document["seen"]),
        kind=Kind(row["kind"]),
        display=row["display"] or "",
        create_time=row["created_at"],
        update_time=row["updated_at"],
        last_validated_time=row["last_validated_at"],
    )


def _secret_to_json(secret: SecretVersion) -> dict[str, Any]:
    return {
        "version_id": secret.version_id,
        "number": secret.number,
        "kind": secret.kind.value,
        "display": secret.display,
        "worked": secret.worked,
        "ciphertext": base64.b64encode(secret.sealed.ciphertext).decode(),
        "wrapped_key": base64.b64encode(secret.sealed.wrapped_key).decode(),
        "key_version": secret.sealed.key_version,
        "scheme": secret.sealed.scheme,
        "create_time": _text(secret.create_time),
        "expire_time": _text(secret.expire_time),
        "destroy_time": _text(secret.destroy_time),
    }


def _secret_from_json(document: Mapping[str, Any]) -> SecretVersion:
    created = _time(document["create_time"])
    assert created is not None
    return SecretVersion(
        version_id=document["version_id"],
        number=document["number"],
        kind=Kind(document["kind"]),
        sealed=Sealed(
            ciphertext=base64.b64decode(document["ciphertext"]),
            wrapped_key=base64.b64decode(document["wrapped_key"]),
            key_version=document["key_version"],
            scheme=document["scheme"],
        ),
        display=document["display"],
        worked=document["worked"],
        create_time=created,
        expire_time=_time(document["expire_time"]),
        destroy_time=_time(document["destroy_time"]),
    )


def _text(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
