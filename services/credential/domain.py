"""The use cases on credentials and the Protocols they need; called by the servicers and by upkeep.

Every change and every opening is on the audit trail before its caller hears of it. Secrets travel as ``Secret`` and no
error or event of this module can hold one.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from libs import errors
from libs.finishing import Finishing
from libs.tenancy import TenantId
from services.credential.secret import Secret
from services.credential.states import (
    KEPT_VERSIONS,
    Binding,
    Change,
    Credential,
    Draft,
    Judge,
    Kind,
    Provider,
    Put,
    Revoke,
    Sealed,
    SetSource,
    Status,
    Verdict,
    born,
    credential_id,
    not_found,
    usable,
)

DEFAULT_NAME: Final = "default"
VALIDATION_TIMEOUT: Final = timedelta(seconds=10)
_CREATE_TRIES: Final = 64
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Event:
    """What the audit trail is told. Never anything of a secret."""

    action: str
    tenant_id: str
    credential_id: str
    outcome: str = "OK"
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """Keeps the rows."""

    async def read(self, credential_id: str) -> Credential | None:
        """The row as it is now."""
        ...

    async def list(
        self, tenant_id: str, *, provider: str, after: tuple[str, str] | None, limit: int
    ) -> Sequence[Credential]:
        """At most ``limit`` of a tenant's rows by provider and name, from behind ``after``; revoked ones too."""
        ...

    async def change(self, credential_id: str, change: Change) -> Credential:
        """Commits ``decide`` and gives its answer."""
        ...

    async def add(self, row: Credential, attempt: int) -> None:
        """Adds the row unless the same ``attempt`` on its id was made before, by whomever.

        Attempts are numbered from 1 by everybody, which makes each one a mutex. Raises ``Aborted`` if this attempt
        has failed for good (now or then) and the next number is to be tried.
        """
        ...


class Cipher(Protocol):
    """Seals and opens secrets."""

    async def seal(self, binding: Binding, secret: Secret) -> Sealed:
        """Encrypts under a fresh data key."""
        ...

    async def open(self, binding: Binding, sealed: Sealed) -> Secret:
        """Raises ``Internal(SECRET_UNREADABLE)`` unless it was sealed for exactly this binding."""
        ...


class Validator(Protocol):
    """Asks one provider whether a secret works, cheaply and without changing anything there."""

    async def validate(self, kind: Kind, secret: Secret, source: Mapping[str, Any], external_id: str) -> Verdict:
        """PENDING if the provider does not answer; INVALID only for a definite refusal."""
        ...


class Tenants(Protocol):
    """What is asked of the tenant context."""

    async def ensure_dataset(self, tenant_id: str, provider: str) -> bool:
        """True if any of the provider's tables had to be made. Raises if the tenant is missing or leaving."""
        ...

    async def is_leaving(self, tenant_id: str) -> bool:
        """True if the tenant is being offboarded or is gone, as of now."""
        ...


class Trail(Protocol):
    """The audit trail."""

    async def append(self, event: Event) -> None:
        """Returns when the event is durable."""
        ...


@dataclass(frozen=True, slots=True)
class Created:
    """What ``Credentials.create`` did."""

    credential: Credential
    updated: bool
    tables_created: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """An open secret and what it is for; wipe the secret after use."""

    credential: Credential
    secret: Secret


class Credentials:
    """The use cases. Every change and every opening is on the audit trail before its caller hears of it."""

    def __init__(
        self,
        *,
        store: Store,
        cipher: Cipher,
        tenants: Tenants,
        trail: Trail,
        validators: Mapping[Provider, Validator],
        now: Callable[[], datetime],
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        validation_timeout: timedelta | None = None,
    ) -> None:
        self._store = store
        self._cipher = cipher
        self._tenants = tenants
        self._trail = trail
        self._validators = validators
        self._now = now
        self._new_id = new_id
        self._timeout = (validation_timeout or VALIDATION_TIMEOUT).total_seconds()
        self._finishing = Finishing()

    async def create(
        self, tenant_id: TenantId, draft: Draft, *, name: str, source: Mapping[str, Any] | None
    ) -> Created:
        """Stores a secret: the first version under this name, or one more.

        A secret that the provider definitely refuses is not stored and what was there stays in force
        (``FailedPrecondition(CREDENTIAL_REFUSED)``); one that nobody can judge now is stored as PENDING. So is an AWS
        role whose trust policy does not name the external id yet, because the answer is what tells it; one that lets us
        in without it is refused, and the refusal tells it.
        """
        name = name or DEFAULT_NAME
        cid = credential_id(tenant_id, draft.provider, name)
        verdict, tables_created = await _both(
            self._ask(draft.provider, draft.kind, draft.secret, source or {}, cid),
            self._tenants.ensure_dataset(tenant_id, draft.provider),
        )
        if verdict.status is Status.INVALID:
            if draft.kind is not Kind.ROLE or verdict.final:
                await self._tell("credential.create", tenant_id, cid, "DENIED", "CREDENTIAL_REFUSED")
                raise _refused(verdict)
            verdict = _not_yet(verdict)
        version_id = self._new_id()
        put = Put(
            tenant_id=tenant_id,
            provider=draft.provider,
            name=name,
            version_id=version_id,
            kind=draft.kind,
            sealed=await self._cipher.seal(
                Binding(tenant_id, cid, draft.provider, draft.kind, version_id), draft.secret
            ),
            display=draft.display,
            expire_time=draft.expire_time,
            source=source,
            verdict=verdict,
        )
        row = await self._finishing.to_its_end(self._put(cid, put))
        return Created(row, updated=row.first_id != version_id, tables_created=tables_created)

    async def get(self, tenant_id: TenantId, credential_id: str) -> Credential:
        """What is known of one credential. Raises ``NotFound(CREDENTIAL_NOT_FOUND)``."""
        row = await self._store.read(credential_id)
        if row is None or row.tenant_id != tenant_id:
            raise not_found()
        return row.as_of(self._now())

    async def list(
        self, tenant_id: TenantId, *, provider: str = "", after: tuple[str, str] | None = None, limit: int
    ) -> Sequence[Credential]:
        """At most ``limit`` of the tenant's credentials, by provider and name, from behind ``after``."""
        wanted = Provider.parse(provider).value if provider else ""
        rows = await self._store.list(tenant_id, provider=wanted, after=after, limit=limit)
        return [row.as_of(self._now()) for row in rows if row.tenant_id == tenant_id]

    async def update_source(self, tenant_id: TenantId, credential_id: str, source: Mapping[str, Any]) -> Credential:
        """Replaces the source, if the provider does not definitely refuse the secret there."""
        row = await self._live(tenant_id, credential_id)
        verdict = await self._open_and_ask(row, source)
        if verdict.status is Status.INVALID:
            await self._tell("credential.update", tenant_id, credential_id, "DENIED", "CREDENTIAL_REFUSED")
            raise _refused(verdict)
        change = SetSource(tenant_id, source, row.current.version_id, verdict)
        after = await self._finishing.to_its_end(self._change(credential_id, change, "credential.update"))
        return after.as_of(self._now())

    async def delete(self, tenant_id: TenantId, credential_id: str) -> Credential:
        """Revokes a credential and destroys its secret in all versions. Idempotent."""
        return await self._finishing.to_its_end(self._change(credential_id, Revoke(tenant_id), "credential.delete"))

    async def shred(self, tenant_id: str) -> int:
        """Revokes all credentials of a tenant; returns how many still held a secret."""
        after, count = None, 0
        while page := await self._store.list(tenant_id, provider="", after=after, limit=_PAGE):
            live = [row for row in page if row.secrets or row.status is not Status.REVOKED]
            await asyncio.gather(
                *(self._change(row.credential_id, Revoke(tenant_id), "credential.shred") for row in live)
            )
            after, count = (page[-1].provider, page[-1].name), count + len(live)
        return count

    async def validate(self, tenant_id: TenantId, credential_id: str) -> Credential:
        """Asks the provider again and records what it says; the status stays if it cannot be asked.

        If a version that never worked is refused while the one before it did, that one comes back and is asked about.
        A role stays PENDING until it has trusted us once: its owner learns the external id from us and needs time.
        """
        row = await self._live(tenant_id, credential_id)
        for _ in range(KEPT_VERSIONS):
            judged, asked = row.current.version_id, self._now()
            verdict = await self._open_and_ask(row, row.source)
            change = Judge(tenant_id, judged, row.source, verdict, asked)
            row = await self._finishing.to_its_end(self._change(credential_id, change, "credential.validate"))
            if not row.secrets or row.current.version_id == judged:
                break
        return row.as_of(self._now())

    async def check(self, tenant_id: TenantId, provider: Provider, name: str) -> Credential:
        """The credential, if it could be opened now; raises why not. Opens nothing."""
        row = await self._store.read(credential_id(tenant_id, provider, name or DEFAULT_NAME))
        return usable(row, tenant_id, self._now())

    async def open(self, tenant_id: TenantId, provider: Provider, name: str, purpose: Mapping[str, str]) -> Opened:
        """Opens a secret for one attempt of a run; what was asked is on the trail first, whatever the outcome."""
        cid = credential_id(tenant_id, provider, name or DEFAULT_NAME)
        try:
            row = usable(await self._store.read(cid), tenant_id, self._now())
        except (errors.NotFound, errors.FailedPrecondition) as refusal:
            await self._tell("credential.open", tenant_id, cid, "DENIED", refusal.reason, **purpose)
            raise
        return Opened(row, await self._open(row, **purpose))

    async def _live(self, tenant_id: str, credential_id: str) -> Credential:
        row = await self._store.read(credential_id)
        if row is None or row.tenant_id != tenant_id:
            raise not_found()
        if not row.secrets:
            raise errors.FailedPrecondition("CREDENTIAL_REVOKED", "The credential is revoked; post a new one.")
        return row

    async def _put(self, cid: str, put: Put) -> Credential:
        """Commits ``put``. A row that is missing is added by whoever takes the attempt's number, then decided on."""
        for attempt in range(1, _CREATE_TRIES + 1):
            try:
                row = await self._store.change(cid, put)
            except errors.NotFound:
                try:
                    await self._store.add(born(put, self._now()), attempt)
                except errors.Aborted:
                    await asyncio.sleep(random.uniform(0, min(0.5, 0.02 * 2**attempt)))
            else:
                action = "credential.create" if row.first_id == put.version_id else "credential.update"
                told = self._tell(action, put.tenant_id, cid, provider=put.provider, name=put.name, status=row.status)
                _, leaving = await _both(told, self._tenants.is_leaving(put.tenant_id))
                if leaving:
                    # It began to leave after it was asked for its dataset: the shredding may have passed already.
                    await self._change(cid, Revoke(put.tenant_id), "credential.shred")
                    raise errors.FailedPrecondition("TENANT_OFFBOARDING", "The tenant is being offboarded.")
                return row
        raise errors.Unavailable("STORE_BUSY", "The credential could not be stored now; try again.")

    async def _change(self, cid: str, change: Change, action: str) -> Credential:
        row = await self._store.change(cid, change)
        await self._tell(action, row.tenant_id, cid, provider=row.provider, name=row.name, status=row.status)
        return row

    async def _open_and_ask(self, row: Credential, source: Mapping[str, Any]) -> Verdict:
        with await self._open(row, purpose="validate") as secret:
            verdict = await self._ask(row.provider, row.current.kind, secret, source, row.credential_id)
        waiting = row.current.kind is Kind.ROLE and not row.current.worked and not verdict.final
        return _not_yet(verdict) if verdict.status is Status.INVALID and waiting else verdict

    async def _open(self, row: Credential, **purpose: str) -> Secret:
        details = {**purpose, "secret_version": str(row.current.number)}
        try:
            secret = await self._cipher.open(row.binding, row.current.sealed)
        except errors.Error as failure:
            await self._tell("credential.open", row.tenant_id, row.credential_id, "FAILED", failure.reason, **details)
            raise
        try:
            await self._tell("credential.open", row.tenant_id, row.credential_id, **details)
        except BaseException:
            secret.wipe()
            raise
        return secret

    async def _ask(
        self, provider: Provider, kind: Kind, secret: Secret, source: Mapping[str, Any], cid: str
    ) -> Verdict:
        validator = self._validators.get(provider)
        if validator is None:
            return Verdict(Status.PENDING, "This provider's credentials are not checked before their first use.", False)
        try:
            async with asyncio.timeout(self._timeout):
                return await validator.validate(kind, secret, source, cid if kind is Kind.ROLE else "")
        except TimeoutError:
            return Verdict(Status.PENDING, "The provider did not answer in time.")

    async def _tell(
        self, action: str, tenant_id: str, credential_id: str, outcome: str = "OK", reason: str = "", **details: str
    ) -> None:
        await self._trail.append(Event(action, tenant_id, credential_id, outcome, reason, details))

    async def close(self) -> None:
        """Returns when what was begun has ended."""
        await self._finishing.close()


def _refused(verdict: Verdict) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "CREDENTIAL_REFUSED", f"The provider refuses this credential, so nothing was changed. {verdict.reason}".strip()
    )


def _not_yet(verdict: Verdict) -> Verdict:
    """What a refusal of a role means that has never trusted us."""
    return Verdict(Status.PENDING, verdict.reason)


async def _both[A, B](first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Awaits both at once; the first failure ends the other."""
    one, two = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(one, two)
    finally:
        one.cancel()
        two.cancel()
