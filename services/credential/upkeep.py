"""What happens to credentials unasked: shredding for tenants that leave, re-wrapping, destroying, asking again.

Two loops that ``main`` starts. Any number of replicas may run them: every change is a compare-and-swap that the second
one finds done. One credential's trouble is logged and left for the next round.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from libs import caller, errors, logs
from libs.tenancy import Caller, TenantId
from services.credential.domain import Cipher, Credentials, Event, Store, Trail
from services.credential.states import Binding, Credential, Prune, Rewrap, Sealed, Status

PENDING_AGE = timedelta(hours=1)
VALID_AGE = timedelta(hours=24)
_BATCH = 200
_AT_ONCE = 4

_log = logs.get(__name__)


class Leaving(Protocol):
    """What is asked of the tenant context about tenants that leave."""

    async def list_offboarding(self) -> Sequence[str]:
        """The tenants that wait for this context."""
        ...

    async def confirm_offboarding(self, tenant_id: str) -> None:
        """Says that nothing of the tenant is left here."""
        ...


class DueStore(Store, Protocol):
    """The store, as upkeep needs it."""

    async def list_due(
        self, now: datetime, *, key_version: str, pending_age: timedelta, valid_age: timedelta, limit: int
    ) -> Sequence[Credential]:
        """Rows with something to re-wrap, to destroy or to ask the provider about again."""
        ...


class Wrapper(Cipher, Protocol):
    """The cipher, as upkeep needs it."""

    async def rewrap(self, binding: Binding, sealed: Sealed) -> Sealed:
        """The same secret under the key service's primary key version."""
        ...

    async def primary_version(self) -> str:
        """The name of that key version."""
        ...


class Upkeep:
    """One round of each kind; ``every`` repeats them."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        store: DueStore,
        cipher: Wrapper,
        leaving: Leaving,
        trail: Trail,
        now: Callable[[], datetime],
    ) -> None:
        self._credentials = credentials
        self._store = store
        self._cipher = cipher
        self._leaving = leaving
        self._trail = trail
        self._now = now

    async def offboard(self) -> int:
        """Shreds the credentials of every tenant that leaves and confirms it; returns how many tenants are done."""
        done = 0
        for tenant_id in await self._leaving.list_offboarding():
            try:
                count = await self._credentials.shred(tenant_id)
                await self._leaving.confirm_offboarding(tenant_id)
            except errors.Error as failure:
                _log.warning("shredding_failed", tenant_id=tenant_id, reason=failure.reason)
            else:
                _log.info("tenant_shredded", tenant_id=tenant_id, credentials=count)
                done += 1
        return done

    async def tidy(self) -> int:
        """Re-wraps what an older KMS key version wraps, destroys what is past its time, asks providers again.

        Returns how many credentials were due; at most a batch per round.
        """
        primary, now = await self._cipher.primary_version(), self._now()
        due = await self._store.list_due(
            now, key_version=primary, pending_age=PENDING_AGE, valid_age=VALID_AGE, limit=_BATCH
        )
        turn = asyncio.Semaphore(_AT_ONCE)

        async def tend(row: Credential) -> None:
            async with turn:
                try:
                    await self._tend(row, primary, now)
                except errors.Error as failure:
                    _log.warning("upkeep_failed", credential_id=row.credential_id, reason=failure.reason)

        await asyncio.gather(*(tend(row) for row in due))
        return len(due)

    async def _tend(self, row: Credential, primary: str, now: datetime) -> None:
        if any(secret.destroy_time is not None and secret.destroy_time <= now for secret in row.secrets):
            row = await self._store.change(row.credential_id, Prune(row.tenant_id))
            await self._trail.append(Event("credential.prune", row.tenant_id, row.credential_id))
        if any(secret.sealed.key_version != primary for secret in row.secrets):
            row = await self._rewrap(row)
        if _unasked_for_long(row, now):
            await self._credentials.validate(TenantId(row.tenant_id), row.credential_id)

    async def _rewrap(self, row: Credential) -> Credential:
        old = {secret.version_id: secret.sealed for secret in row.secrets}
        new = {s.version_id: await self._cipher.rewrap(row.bind(s), s.sealed) for s in row.secrets}
        row = await self._store.change(row.credential_id, Rewrap(row.tenant_id, old, new))
        await self._trail.append(Event("credential.rewrap", row.tenant_id, row.credential_id))
        return row


def _unasked_for_long(row: Credential, now: datetime) -> bool:
    if row.last_validated_time is None or row.status not in (Status.PENDING, Status.VALID):
        return False
    fresh = row.status is Status.PENDING and row.update_time >= now - VALID_AGE
    return now - row.last_validated_time > (PENDING_AGE if fresh else VALID_AGE)


async def every(seconds: float, work: Callable[[], Awaitable[int]], *, peer: str) -> None:
    """Repeats ``work`` for ever, as the process ``peer``, with a jittered pause; a failure is logged and waited out."""
    while True:
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
        with caller.bind(Caller(role=None, peer=peer), request_id=f"upkeep-{uuid.uuid4().hex}"):
            try:
                await work()
            except errors.Error as failure:
                _log.warning("upkeep_failed", reason=failure.reason)
            except Exception:
                _log.exception("upkeep_failed")
