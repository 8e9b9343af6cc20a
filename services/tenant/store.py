"""BigQuery behind the tenant context's Protocols: rows ↔ dataclasses, statements by file name. Decides nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from libs import caller, tables
from libs.audit import AuditLog, AuditRecord, Outcome
from libs.bigquery import Dataset, Sql, Typed, Value, Warehouse, new_job_id, rows_param
from libs.errors import FailedPrecondition, Internal
from libs.ledger import BigQueryTable
from libs.tenancy import CENTRAL_DATASET, Role
from services.tenant.domain import AuditEntry, Leaving, Profile, Tenant
from services.tenant.keys import ApiKey, KeyEntry
from services.tenant.quotas import Grant, GrantState, Limits, Plan, QuotaRow, TenantState

# Nothing waits longer: callers' deadlines are 15 s and up, and a refresh of keys must come well within that.
_READ_SECONDS = 10.0
_KEYS_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_CONFLICT_RETRIES = 6
_NOT_A_PROVIDER = frozenset({"central", "helper", "x_meta", *tables.SHARED})

type Row = Mapping[str, Any]


def _sql(name: str) -> Sql:
    return Sql.load("services.tenant", f"sql/{name}.sql")


# ---------------------------------------------------------------- rows


def quota_from_row(row: Row) -> QuotaRow:
    """A quota row as it is stored."""
    return QuotaRow(
        tenant_id=row["tenant_id"],
        version=row["version"],
        plan=Plan(row["plan"]),
        state=TenantState(row["state"]),
        limits=_limits(row),
        day=row["day"],
        month=row["month"],
        pipelines_run_today=row["pipelines_run_today"],
        pipelines_run_month=row["pipelines_run_month"],
        grants=tuple(_grant_from_json(item) for item in json.loads(row["grants"] or "[]")),
        history=tuple((date.fromisoformat(item["day"]), item["runs"]) for item in json.loads(row["history"] or "[]")),
        updated_at=row["updated_at"],
    )


def quota_to_json(row: QuotaRow) -> Mapping[str, Any]:
    """A quota row as statements take it."""
    return {
        "tenant_id": row.tenant_id,
        "version": row.version,
        "plan": row.plan.value,
        "state": row.state.value,
        "daily_limit": row.limits.daily,
        "monthly_limit": row.limits.monthly,
        "concurrent_limit": row.limits.concurrent,
        "day": row.day,
        "month": row.month,
        "pipelines_run_today": row.pipelines_run_today,
        "pipelines_run_month": row.pipelines_run_month,
        "concurrent_running": row.in_use(row.updated_at),
        "grants": [_grant_to_json(grant) for grant in row.grants],
        "next_expiry": row.next_expiry,
        "history": [{"day": day.isoformat(), "runs": runs} for day, runs in row.history],
        "updated_at": row.updated_at,
    }


def _grant_to_json(grant: Grant) -> dict[str, Any]:
    body: dict[str, Any] = {
        "run_id": grant.run_id,
        "attempt": grant.attempt,
        "owner": grant.owner,
        "day": grant.day.isoformat(),
        "until": grant.until.isoformat(),
        "state": grant.state.value,
    }
    if grant.fingerprint:
        body["fingerprint"] = grant.fingerprint
    if grant.ended is not None:
        body["ended"] = grant.ended.isoformat()
    return body


def _grant_from_json(body: Row) -> Grant:
    ended = body.get("ended")
    return Grant(
        run_id=body["run_id"],
        attempt=body["attempt"],
        owner=body["owner"],
        day=date.fromisoformat(body["day"]),
        until=datetime.fromisoformat(body["until"]),
        state=GrantState(body["state"]),
        fingerprint=body.get("fingerprint", ""),
        ended=datetime.fromisoformat(ended) if ended else None,
    )


def _limits(row: Row) -> Limits:
    return Limits(row["daily_limit"], row["monthly_limit"], row["concurrent_limit"])


def profile_from_row(row: Row) -> Profile:
    """A profile as it is stored."""
    return Profile(
        tenant_id=row["tenant_id"],
        version=row["version"],
        company_name=row["company_name"] or "",
        admin_email=row["admin_email"] or "",
        state=TenantState(row["state"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        state_reason=row["state_reason"] or "",
        onboarding_owner=row["onboarding_owner"] or "",
        confirmations=_confirmations(row["confirmations"]),
        delete_dataset=bool(row["delete_dataset"]),
        offboarded_at=row["offboarded_at"],
        deleted_at=row["deleted_at"],
    )


def profile_to_json(row: Profile) -> Mapping[str, Any]:
    """A profile as statements take it."""
    return {
        "tenant_id": row.tenant_id,
        "version": row.version,
        "company_name": row.company_name,
        "admin_email": row.admin_email,
        "state": row.state.value,
        "state_reason": row.state_reason,
        "onboarding_owner": row.onboarding_owner,
        "confirmations": {name: at.isoformat() for name, at in row.confirmations},
        "delete_dataset": row.delete_dataset,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "offboarded_at": row.offboarded_at,
        "deleted_at": row.deleted_at,
    }


def _confirmations(text: str | None) -> tuple[tuple[str, datetime], ...]:
    return tuple((name, datetime.fromisoformat(at)) for name, at in json.loads(text or "{}").items())


def _tenant_from_row(row: Row) -> Tenant:
    profile = profile_from_row(row)
    return Tenant.of(profile, TenantState(row["quota_state"]), Plan(row["plan"]), _limits(row))


def _key_from_row(row: Row) -> ApiKey:
    lifetime = row["lifetime_seconds"]
    return ApiKey(
        api_key_id=row["api_key_id"],
        tenant_id=row["tenant_id"],
        version=row["version"],
        name=row["name"] or "",
        role=Role(row["role"]),
        key_hash=row["key_hash"],
        last4=row["last4"] or "",
        lineage_id=row["lineage_id"] or row["api_key_id"],
        created_at=row["created_at"],
        created_by=row["created_by"] or "",
        expires_at=row["expires_at"],
        lifetime=timedelta(seconds=lifetime) if lifetime is not None else None,
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )


def _key_to_json(key: ApiKey) -> Mapping[str, Any]:
    return {
        "api_key_id": key.api_key_id,
        "tenant_id": key.tenant_id,
        "name": key.name,
        "role": key.role.value,
        "key_hash": key.key_hash,
        "last4": key.last4,
        "lineage_id": key.lineage_id,
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "lifetime_seconds": _seconds(key.lifetime),
    }


def _seconds(lifetime: timedelta | None) -> int | None:
    return max(1, int(lifetime.total_seconds())) if lifetime is not None else None


def _timestamp(value: datetime | None) -> Value:
    return Typed("TIMESTAMP", value)


# ---------------------------------------------------------------- tables


def quota_table(warehouse: Warehouse) -> BigQueryTable[QuotaRow]:
    """The quota rows, for a ledger."""
    return BigQueryTable(
        warehouse,
        dataset=CENTRAL_DATASET,
        read=_sql("read_quotas"),
        replace=_sql("replace_quotas"),
        key=lambda row: row.tenant_id,
        from_row=quota_from_row,
        to_json=quota_to_json,
    )


def profile_table(warehouse: Warehouse) -> BigQueryTable[Profile]:
    """The profiles, for a ledger."""
    return BigQueryTable(
        warehouse,
        dataset=CENTRAL_DATASET,
        read=_sql("read_profiles"),
        replace=_sql("replace_profiles"),
        key=lambda row: row.tenant_id,
        from_row=profile_from_row,
        to_json=profile_to_json,
    )


class _Central:
    """Statements on the central dataset."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    async def _rows(self, name: str, seconds: float = _READ_SECONDS, **params: Value) -> list[dict[str, Any]]:
        return await self._warehouse.query(_SQL[name], dataset=CENTRAL_DATASET, params=params, timeout=seconds)

    async def _write(self, name: str, *, job_id: str | None = None, **params: Value) -> int:
        return await self._warehouse.execute(
            _SQL[name],
            dataset=CENTRAL_DATASET,
            params=params,
            job_id=job_id,
            timeout=_WRITE_SECONDS,
            conflict_retries=_CONFLICT_RETRIES,
        )


class BigQueryQuotaStore(_Central):
    """``quotas.QuotaStore``."""

    def __init__(self, warehouse: Warehouse, table: BigQueryTable[QuotaRow]) -> None:
        super().__init__(warehouse)
        self._table = table

    async def read(self, keys: Collection[str]) -> Mapping[str, QuotaRow]:
        """The rows as they are now, by tenant."""
        return await self._table.read(keys)

    async def expired(self, now: datetime, limit: int) -> Sequence[QuotaRow]:
        """Rows with a lease that ran out, oldest first."""
        return [quota_from_row(row) for row in await self._rows("read_expired_quotas", now=now, limit=limit)]

    async def stale(self, today: date) -> Sequence[str]:
        """Tenants whose row counts an earlier day."""
        return [row["tenant_id"] for row in await self._rows("read_stale_quotas", today=today)]


class BigQueryTenantStore(_Central):
    """``domain.TenantStore`` and ``onboarding.OnboardingStore``."""

    def __init__(self, warehouse: Warehouse, profiles: BigQueryTable[Profile], now: Callable[[], datetime]) -> None:
        super().__init__(warehouse)
        self._profiles = profiles
        self._now = now

    async def get(self, tenant_id: str) -> Tenant | None:
        """One tenant."""
        found = await self._list(tenant_id=tenant_id, limit=1)
        return found[0] if found else None

    async def page(self, after: str, limit: int, *, state: TenantState | None, plan: Plan | None) -> Sequence[Tenant]:
        """Tenants by id."""
        return await self._list(after=after, limit=limit, state=state or "", plan=plan or "")

    async def _list(
        self, *, limit: int, tenant_id: str = "", after: str = "", state: str = "", plan: str = ""
    ) -> list[Tenant]:
        rows = await self._rows(
            "list_tenants", tenant_id=tenant_id, after=after, state=str(state), plan=str(plan), limit=limit
        )
        return [_tenant_from_row(row) for row in rows]

    async def leaving(self, now: datetime) -> Sequence[Leaving]:
        """Tenants that are being offboarded."""
        return [
            Leaving(profile_from_row(row), TenantState(row["quota_state"]), row["live_grants"], row["live_keys"])
            for row in await self._rows("read_leaving_tenants", now=now)
        ]

    async def unconfirmed(self, context: str) -> Sequence[str]:
        """Tenants a context has not confirmed."""
        rows = await self._rows("read_unconfirmed_tenants")
        return [row["tenant_id"] for row in rows if context not in dict(_confirmations(row["confirmations"]))]

    async def drifted(self) -> Sequence[str]:
        """Tenants whose rows disagree."""
        return [row["tenant_id"] for row in await self._rows("read_drifted_tenants")]

    async def follow(self, tenant_ids: Collection[str]) -> None:
        """Makes subscription and profile say what the quota row says."""
        keys, now = list(tenant_ids), self._now()
        await asyncio.gather(
            self._write("follow_subscriptions", keys=keys, now=now), self._write("follow_profiles", keys=keys, now=now)
        )

    async def audit_page(
        self, tenant_id: str, before: tuple[datetime, str] | None, limit: int, *, action: str
    ) -> Sequence[AuditEntry]:
        """Audit records, newest first."""
        time, after_id = before or (None, "")
        rows = await self._rows(
            "list_audit_records",
            tenant_id=tenant_id,
            action=action,
            before=_timestamp(time),
            after_id=after_id,
            limit=limit,
        )
        return [_entry_from_row(row) for row in rows]

    async def profile(self, tenant_id: str) -> Profile | None:
        """One profile."""
        return (await self._profiles.read([tenant_id])).get(tenant_id)

    async def insert_profile(self, profile: Profile, *, job_id: str, owner: str) -> None:
        """Inserts a profile unless the tenant has one."""
        await self._insert("insert_profile", profile_to_json(profile), job_id, owner)

    async def insert_quota(self, row: QuotaRow, *, job_id: str, owner: str) -> None:
        """Inserts a quota row unless the tenant has one."""
        await self._insert("insert_quota", quota_to_json(row), job_id, owner)

    async def insert_subscription(self, row: QuotaRow, *, job_id: str, owner: str) -> None:
        """Inserts a subscription unless the tenant has one."""
        await self._insert("insert_subscription", quota_to_json(row), job_id, owner)

    async def _insert(self, name: str, row: Row, job_id: str, owner: str) -> None:
        """Inserts under an id all owners share; one that failed (and so wrote nothing) is done under the owner's."""
        rows = rows_param([row])
        try:
            await self._write(name, rows=rows, job_id=job_id)
        except (FailedPrecondition, Internal):
            await self._write(name, rows=rows, job_id=f"{job_id}-{owner}")


def _entry_from_row(row: Row) -> AuditEntry:
    return AuditEntry(
        record_id=row["record_id"],
        time=row["time"],
        tenant_id=row["tenant_id"],
        actor=row["actor_key_id"] or row["peer"] or "",
        user_id=row["user_id"] or "",
        role=row["role"] or "",
        action=row["action"],
        object_type=row["object_type"],
        object_id=row["object_id"],
        outcome=row["outcome"],
        reason=row["reason"] or "",
        request_id=row["request_id"] or "",
        source_ip=row["source_ip"] or "",
        details=row["details"] or "",
    )


class BigQueryKeyStore(_Central):
    """``keys.KeyStore``."""

    async def load(self, dead_since: datetime) -> Sequence[KeyEntry]:
        """Every key that is live or ended lately."""
        rows = await self._rows("read_api_keys", seconds=_KEYS_SECONDS, dead_since=dead_since)
        return [
            KeyEntry(
                row["api_key_id"],
                row["tenant_id"],
                Role(row["role"]),
                row["key_hash"],
                row["expires_at"],
                row["revoked"],
            )
            for row in rows
        ]

    async def get(self, tenant_id: str, api_key_id: str) -> ApiKey | None:
        """One key."""
        found = await self._list(tenant_id, api_key_id=api_key_id, limit=1) if api_key_id else []
        return found[0] if found else None

    async def family(self, tenant_id: str, api_key_id: str) -> Sequence[ApiKey]:
        """A key and the others of its lineage."""
        return await self._list(tenant_id, family_of=api_key_id, limit=1_000) if api_key_id else []

    async def live(self, tenant_id: str, now: datetime) -> Sequence[str]:
        """Ids of the tenant's live keys."""
        return [key.api_key_id for key in await self._list(tenant_id, limit=1_000) if key.live(now)]

    async def page(self, tenant_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[ApiKey]:
        """Keys, newest first."""
        return await self._list(tenant_id, after=after, limit=limit)

    async def _list(
        self,
        tenant_id: str,
        *,
        limit: int,
        api_key_id: str = "",
        family_of: str = "",
        after: tuple[datetime, str] | None = None,
    ) -> list[ApiKey]:
        before, after_id = after or (None, "")
        rows = await self._rows(
            "list_api_keys",
            tenant_id=tenant_id,
            api_key_id=api_key_id,
            family_of=family_of,
            before=_timestamp(before),
            after_id=after_id,
            limit=limit,
        )
        return [_key_from_row(row) for row in rows]

    async def insert(self, key: ApiKey, *, job_id: str | None = None) -> None:
        """Inserts a key."""
        await self._write("insert_api_key", rows=rows_param([_key_to_json(key)]), job_id=job_id or new_job_id("key"))

    async def rotate(self, old: ApiKey, new: ApiKey, old_expires_at: datetime) -> bool:
        """Ends one key and inserts its successor, both or neither."""
        affected = await self._write(
            "rotate_api_key",
            tenant_id=old.tenant_id,
            api_key_id=old.api_key_id,
            version=old.version,
            old_expires_at=old_expires_at,
            new_id=new.api_key_id,
            key_hash=new.key_hash,
            last4=new.last4,
            created_by=new.created_by,
            now=new.created_at,
            expires_at=_timestamp(new.expires_at),
            lifetime_seconds=Typed("INT64", _seconds(new.lifetime)),
        )
        return affected == 2

    async def revoke(self, tenant_id: str, api_key_ids: Sequence[str] | None, now: datetime) -> int:
        """Takes keys back."""
        ids = list(api_key_ids or ())
        return await self._write(
            "revoke_api_keys", tenant_id=tenant_id, all=api_key_ids is None, api_key_ids=ids, now=now
        )

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Writes when keys were used last."""
        rows = rows_param({"api_key_id": key, "last_used_at": at} for key, at in used.items())
        await self._write("touch_api_keys", rows=rows)


class BigQueryDatasets:
    """``domain.Datasets``."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    async def create(self, name: str, labels: Mapping[str, str]) -> Dataset:
        """Creates a dataset."""
        return await self._warehouse.create_dataset(name, labels=labels)

    async def get(self, name: str) -> Dataset | None:
        """A dataset as it is."""
        return await self._warehouse.get_dataset(name)

    async def relabel(self, name: str, labels: Mapping[str, str | None], *, etag: str) -> Dataset:
        """Changes labels of a dataset that is still as it was read."""
        return await self._warehouse.label_dataset(name, labels, etag=etag)

    async def delete(self, name: str) -> None:
        """Deletes a dataset with its tables."""
        await self._warehouse.delete_dataset(name)

    async def ensure_tables(self, name: str, provider: str) -> list[str]:
        """Makes the run tables and the provider's."""
        schemas = [*tables.group("x_meta"), *(tables.of_provider(provider) if provider else ())]
        return await self._warehouse.ensure_tables(name, schemas, tables.views(provider) if provider else ())

    def knows(self, provider: str) -> bool:
        """True for a provider that has tables."""
        return provider.isidentifier() and provider not in _NOT_A_PROVIDER and bool(tables.group(provider))


@dataclass(frozen=True, slots=True)
class AuditTrail:
    """``audit.Audit``: a record with who is calling, from where and under which request id."""

    log: AuditLog
    now: Callable[[], datetime]
    service: str = "tenant"

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
        """Appends the record; durable when it returns."""
        who = caller.known()
        record = AuditRecord(
            time=self.now(),
            tenant_id=tenant_id,
            action=action,
            object_type=object_type,
            object_id=object_id,
            outcome=Outcome.OK,
            actor_key_id=who.key_id if who else "",
            user_id=who.user_id if who else None,
            role=who.role.value if who and who.role else "",
            peer=who.peer if who else self.service,
            request_id=caller.request_id(),
            source_ip=who.source_ip if who else "",
            details=details or {},
            **({"record_id": record_id} if record_id else {}),
        )
        await self.log.append(record)


_SQL = {
    name: _sql(name)
    for name in (
        "follow_profiles",
        "follow_subscriptions",
        "insert_api_key",
        "insert_profile",
        "insert_quota",
        "insert_subscription",
        "list_api_keys",
        "list_audit_records",
        "list_tenants",
        "read_api_keys",
        "read_drifted_tenants",
        "read_expired_quotas",
        "read_leaving_tenants",
        "read_stale_quotas",
        "read_unconfirmed_tenants",
        "revoke_api_keys",
        "rotate_api_key",
        "touch_api_keys",
    )
}
