"""API keys: their form, who a key is, and their life.

The ring answers from memory: it holds the hash of every key, read again every five seconds, so that no request and no
flood of guesses costs a statement of its own. Keep three invariants: the store never sees a secret, only its SHA-256; a
key that was taken back opens nothing once a refresh that began later has ended, and nothing at all is opened on news
older than ``STALE``; of one lineage at most two keys are live.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from libs import logs, metrics
from libs.errors import (
    Aborted,
    Error,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from libs.tenancy import Caller, Role
from services.tenant.audit import Audit

_log = logs.get(__name__)

REFRESH = timedelta(seconds=5)
STALE = timedelta(seconds=15)
PACE = timedelta(seconds=1)
GOOD_FOR = timedelta(seconds=1)
REMEMBER_DEAD = timedelta(days=7)
MAX_LIVE_KEYS = 50
MAX_OVERLAP = timedelta(days=30)
ADMIN_KEY_ID = "admin"

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET, _CHECK = 12, 43, 6
_FORM = re.compile(rf"(cvg_(live|test)_([0-9A-Za-z]{{{_ID}}})_([0-9A-Za-z]{{{_SECRET}}}))_([0-9A-Za-z]{{{_CHECK}}})")
_NOBODY = hashlib.sha256(b"").hexdigest()
# How many ids of unknown keys are remembered, so that one wrong key in a loop asks for nothing.
_MAX_UNKNOWN = 10_000


# ---------------------------------------------------------------- the form of a key


@dataclass(frozen=True, slots=True)
class KeyParts:
    """A well-formed key taken apart; its secret shows nowhere."""

    environment: str
    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyParts({self.environment!r}, {self.key_id!r})"

    @property
    def secret_hash(self) -> str:
        """What the store keeps of the secret: 256 random bits need no salt and no slow hash."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def text(self) -> str:
        """The key as its owner holds it: ``cvg_<environment>_<id>_<secret>_<checksum>``."""
        body = f"cvg_{self.environment}_{self.key_id}_{self.secret}"
        return f"{body}_{_checksum(body)}"


def new_key(environment: str) -> KeyParts:
    """A fresh key with a 256-bit secret."""
    return KeyParts(environment, _random(_ID), _base62(secrets.randbits(256), _SECRET))


def parse(text: str) -> KeyParts | None:
    """The parts of a key, or None if it cannot be one: wrong form or wrong checksum."""
    match = _FORM.fullmatch(text)
    if match is None or _checksum(match[1]) != match[5]:
        return None
    return KeyParts(match[2], match[3], match[4])


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _random(width: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(width))


# ---------------------------------------------------------------- keys as they are stored


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "ACTIVE"
    REVOKED = "REVOKED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key without its secret. ``lifetime`` is what it was made to live for; None is for ever."""

    api_key_id: str
    tenant_id: str
    version: int
    name: str
    role: Role
    key_hash: str
    last4: str
    lineage_id: str
    created_at: datetime
    created_by: str = ""
    expires_at: datetime | None = None
    lifetime: timedelta | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def state(self, now: datetime) -> KeyState:
        """The state at ``now``."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        return KeyState.EXPIRED if self.expires_at is not None and self.expires_at <= now else KeyState.ACTIVE

    def live(self, now: datetime) -> bool:
        """True if it opens anything at ``now``."""
        return self.state(now) is KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made, and its secret text: the only time that text exists here."""

    key: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"NewKey({self.key.api_key_id!r})"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """What the ring knows of a key."""

    api_key_id: str
    tenant_id: str
    role: Role
    key_hash: str
    expires_at: datetime | None
    revoked: bool


class KeyStore(Protocol):
    """Where keys are kept."""

    async def load(self, dead_since: datetime) -> Sequence[KeyEntry]:
        """Every key that is live or ended after ``dead_since``, in one statement."""
        ...

    async def get(self, tenant_id: str, api_key_id: str) -> ApiKey | None: ...

    async def family(self, tenant_id: str, api_key_id: str) -> Sequence[ApiKey]:
        """The key and all others of its lineage, newest first; none if there is no such key."""
        ...

    async def page(self, tenant_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[ApiKey]:
        """Up to ``limit`` keys, newest first, after the one made at that time with that id."""
        ...

    async def insert(self, key: ApiKey, *, job_id: str | None = None) -> None: ...

    async def live(self, tenant_id: str, now: datetime) -> Sequence[str]:
        """Ids of the tenant's live keys."""
        ...

    async def rotate(self, old: ApiKey, new: ApiKey, old_expires_at: datetime) -> bool:
        """In one statement: ends ``old`` at that time and inserts ``new``; False if ``old`` is not as it was read."""
        ...

    async def revoke(self, tenant_id: str, api_key_ids: Sequence[str] | None, now: datetime) -> int:
        """Takes back these keys of the tenant (None: all) and says how many that changed."""
        ...

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Writes when keys were used last, never backwards."""
        ...


# ---------------------------------------------------------------- who a key is


class KeyRing:
    """Says whose a key is, from memory. One per process, for one event loop; ``run`` keeps it fresh, and must run.

    Readings of the store begin at least ``PACE`` apart, whoever asks for them. ``used`` collects when keys were used
    last, for ``ApiKeys.flush_used``.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        environment: str,
        admin_key: str,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._environment = environment
        self._admin = hashlib.sha256(admin_key.encode()).digest()
        self._now = now
        self._sleep = sleep
        self._entries: Mapping[str, KeyEntry] = {}
        self._began_at: datetime | None = None
        self._fresh_at: datetime | None = None
        # Readings are numbered: which one began after a request must not depend on how fine a clock is.
        self._begun = 0
        self._news = 0
        self._reading: asyncio.Task[None] | None = None
        self._forgotten: dict[str, datetime] = {}
        self._unknown: dict[str, datetime] = {}
        self.used: dict[str, datetime] = {}

    @property
    def fresh(self) -> bool:
        """True while keys can be judged."""
        return self._fresh_at is not None and self._now() - self._fresh_at <= STALE

    async def run(self) -> None:
        """Reads the store every five seconds, for ever; a failure is tried again after a second."""
        while True:
            try:
                await self.refresh()
            except Error:
                continue
            await self._sleep(REFRESH.total_seconds())

    async def refresh(self) -> None:
        """Reads all keys, or joins the reading that is under way or waits for its turn."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_retrieve)
        await asyncio.shield(self._reading)

    async def authenticate(self, text: str) -> Caller:
        """Whose key it is.

        Raises ``Unauthenticated(API_KEY_INVALID)`` for any key that is not live, always in the same words, and
        ``Unavailable(KEYS_UNKNOWN)`` while the last news of the store are over 15 s old.
        """
        if hmac.compare_digest(hashlib.sha256(text.encode()).digest(), self._admin):
            return Caller(Role.PLATFORM_ADMIN, key_id=ADMIN_KEY_ID)
        parts = parse(text)
        if parts is None or parts.environment != self._environment:
            raise KeyRefused("MALFORMED")
        entry = await self._find(parts.key_id)
        matches = hmac.compare_digest(parts.secret_hash, entry.key_hash if entry else _NOBODY)
        if entry is None:
            raise KeyRefused("UNKNOWN", parts.key_id)
        if not matches:
            # Whose key id is tried is told the tenant it belongs to; nobody else learns that it exists.
            raise KeyRefused("WRONG_SECRET", parts.key_id, entry.tenant_id)
        now = self._now()
        if entry.revoked or parts.key_id in self._forgotten:
            raise KeyRefused("REVOKED", parts.key_id, entry.tenant_id)
        if entry.expires_at is not None and entry.expires_at <= now:
            raise KeyRefused("EXPIRED", parts.key_id, entry.tenant_id)
        self.used[parts.key_id] = now
        return Caller(entry.role, tenant_id=entry.tenant_id, key_id=parts.key_id)

    def good_for(self, who: Caller) -> timedelta:
        """How long whoever has just been authenticated may be believed without asking: ``GOOD_FOR`` at most.

        Never beyond the key's expiry, nor beyond the moment at which the news of the store become too old to judge by.
        """
        if who.key_id == ADMIN_KEY_ID:
            return GOOD_FOR
        now = self._now()
        entry = self._entries.get(who.key_id)
        if entry is None or self._fresh_at is None:
            return timedelta(0)
        ends = [now + GOOD_FOR, self._fresh_at + STALE, *([entry.expires_at] if entry.expires_at else [])]
        return max(min(ends) - now, timedelta(0))

    def forget(self, api_key_ids: Iterable[str]) -> None:
        """Takes keys back here at once; a reading that began before cannot bring them back."""
        now = self._now()
        self._forgotten = {key: at for key, at in self._forgotten.items() if now - at < 4 * STALE}
        self._forgotten.update(dict.fromkeys(api_key_ids, now))

    def live_keys_of(self, tenant_id: str) -> list[str]:
        """Ids of the tenant's live keys, as far as this process knows."""
        now = self._now()
        return [
            entry.api_key_id
            for entry in self._entries.values()
            if entry.tenant_id == tenant_id
            and not entry.revoked
            and (entry.expires_at is None or entry.expires_at > now)
        ]

    async def _find(self, key_id: str) -> KeyEntry | None:
        """The key, known or found in a reading that began after this request; all who miss share one reading."""
        asked = self._now()
        if not self.fresh:
            raise _keys_unknown()
        guessed = self._unknown.get(key_id)
        if guessed is not None and asked - guessed < REFRESH:
            return None
        metrics.CACHE_READS.labels("api_keys", "hit" if key_id in self._entries else "miss").inc()
        wanted = self._begun + 1
        while (entry := self._entries.get(key_id)) is None and self._news < wanted:
            try:
                await self.refresh()
            except Error:
                # One that began before this request says nothing of it, nor does its failure.
                if self._begun >= wanted:
                    raise _keys_unknown() from None
        if entry is None:
            self._remember_unknown(key_id, asked)
        return entry

    def _remember_unknown(self, key_id: str, now: datetime) -> None:
        if len(self._unknown) >= _MAX_UNKNOWN:
            self._unknown = {key: at for key, at in self._unknown.items() if now - at < REFRESH}
        if len(self._unknown) < _MAX_UNKNOWN:
            self._unknown[key_id] = now

    async def _read(self) -> None:
        if self._began_at is not None:
            rest = PACE - (self._now() - self._began_at)
            if rest > timedelta():
                await self._sleep(rest.total_seconds())
        self._began_at = began = self._now()
        self._begun = number = self._begun + 1
        try:
            entries = await self._store.load(began - REMEMBER_DEAD)
        except Error as error:
            _log.warning("keys_not_read", reason=error.reason)
            raise
        self._entries = {entry.api_key_id: entry for entry in entries}
        self._fresh_at, self._news = began, number
        metrics.KEYS_READ.set_to_current_time()


class KeyRefused(Unauthenticated):
    """A key that opens nothing; the caller is never told which of the causes it was, the audit trail is."""

    def __init__(self, cause: str, key_id: str = "", tenant_id: str = "") -> None:
        super().__init__("API_KEY_INVALID", "The API key is not valid.")
        self.cause = cause
        self.key_id = key_id
        self.tenant_id = tenant_id


def _keys_unknown() -> Unavailable:
    return Unavailable("KEYS_UNKNOWN", "API keys cannot be checked at the moment; try again.", retry_after=REFRESH)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Marks a reading's failure as seen when all who waited for it were cancelled."""
    if not task.cancelled():
        task.exception()


# ---------------------------------------------------------------- the life of a key


class ApiKeys:
    """Makes, lists, rotates and takes back a tenant's keys; every change is audited before it is answered."""

    def __init__(
        self,
        store: KeyStore,
        ring: KeyRing,
        audit: Audit,
        *,
        environment: str,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._ring = ring
        self._audit = audit
        self._environment = environment
        self._now = now

    def mint(
        self, tenant_id: str, role: Role, *, name: str = "", created_by: str = "", expires_at: datetime | None = None
    ) -> NewKey:
        """A key that is not stored yet; the first of a lineage."""
        parts, now = new_key(self._environment), self._now()
        key = ApiKey(
            api_key_id=parts.key_id,
            tenant_id=tenant_id,
            version=1,
            name=name,
            role=role,
            key_hash=parts.secret_hash,
            last4=parts.secret[-4:],
            lineage_id=parts.key_id,
            created_at=now,
            created_by=created_by,
            expires_at=expires_at,
            lifetime=expires_at - now if expires_at else None,
        )
        return NewKey(key, parts.text())

    async def create(
        self,
        tenant_id: str,
        *,
        name: str,
        role: Role,
        expires_at: datetime | None,
        created_by: str,
        must_stay: Callable[[str], Awaitable[None]],
    ) -> NewKey:
        """Makes a key. A lost answer loses the key: list and revoke it.

        Raises ``InvalidArgument(EXPIRE_TIME_PAST)``, ``FailedPrecondition(TOO_MANY_API_KEYS)``, and what ``must_stay``
        raises for a tenant that leaves.
        """
        await must_stay(tenant_id)
        if expires_at is not None and expires_at <= self._now():
            raise InvalidArgument(
                "EXPIRE_TIME_PAST",
                "expire_time must be in the future.",
                field_violations=[FieldViolation("expire_time", "must be in the future")],
            )
        if len(self._ring.live_keys_of(tenant_id)) >= MAX_LIVE_KEYS:
            raise FailedPrecondition(
                "TOO_MANY_API_KEYS", f"A tenant has at most {MAX_LIVE_KEYS} live keys; revoke one first."
            )
        made = self.mint(tenant_id, role, name=name, created_by=created_by, expires_at=expires_at)
        await self._store.insert(made.key)
        try:
            await asyncio.gather(
                self._audit("api_key.create", tenant_id, "api_key", made.key.api_key_id, details=_shown(made.key)),
                # It may have begun to leave meanwhile, and whoever takes its keys back may not have seen this one.
                must_stay(tenant_id),
            )
        except Error:
            with contextlib.suppress(Error):
                await self.discard(tenant_id, made.key.api_key_id)
            raise
        return made

    async def page(self, tenant_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[ApiKey]:
        """Keys of the tenant, newest first."""
        return await self._store.page(tenant_id, after, limit)

    async def revoke(self, tenant_id: str, api_key_id: str) -> ApiKey:
        """Takes a key back; once this has answered no reading can bring it back here. Idempotent.

        Raises ``NotFound(API_KEY_NOT_FOUND)``.
        """
        await self._store.revoke(tenant_id, [api_key_id], self._now())
        key = _found(await self._store.get(tenant_id, api_key_id))
        self._ring.forget([api_key_id])
        await self._audit("api_key.revoke", tenant_id, "api_key", api_key_id, details=_shown(key))
        return key

    async def store(self, made: NewKey, *, job_id: str) -> None:
        """Stores a minted key; the same job id twice stores it once."""
        await self._store.insert(made.key, job_id=job_id)

    async def discard(self, tenant_id: str, api_key_id: str) -> None:
        """Takes back a key that was never shown, if it was stored at all."""
        await self._store.revoke(tenant_id, [api_key_id], self._now())

    async def revoke_others(self, tenant_id: str, api_key_id: str) -> None:
        """Takes back every other key of the tenant that is there now; those made later stay."""
        others = [key for key in await self._store.live(tenant_id, self._now()) if key != api_key_id]
        if others:
            await self._store.revoke(tenant_id, others, self._now())
            self._ring.forget(others)

    async def revoke_all(self, tenant_id: str) -> None:
        """Takes back every key of the tenant. Idempotent."""
        await self._store.revoke(tenant_id, None, self._now())
        self._ring.forget(self._ring.live_keys_of(tenant_id))

    async def rotate(self, tenant_id: str, api_key_id: str, overlap: timedelta, created_by: str) -> NewKey:
        """Replaces a key by one of the same name, role and lifetime; the old one lives on for ``overlap``.

        Raises ``NotFound(API_KEY_NOT_FOUND)``, ``FailedPrecondition`` (API_KEY_NOT_LIVE, API_KEY_ROTATING) and
        ``Aborted(API_KEY_CHANGED)``.
        """
        now = self._now()
        family = await self._store.family(tenant_id, api_key_id)
        old = _found(next((key for key in family if key.api_key_id == api_key_id), None))
        if not old.live(now):
            raise FailedPrecondition("API_KEY_NOT_LIVE", "Only a key that is ACTIVE can be rotated.")
        others = [key for key in family if key.api_key_id != api_key_id and key.live(now)]
        # Only ever fewer keys of a lineage live on than were read: the swap of `old` guards the one that is added.
        if len(others) > 1 or (others and overlap):
            raise FailedPrecondition(
                "API_KEY_ROTATING",
                f"Key {others[0].api_key_id} of the same lineage is still live: revoke it first, or rotate with "
                "overlap_seconds 0.",
                api_key_id=others[0].api_key_id,
            )
        expires_at = now + old.lifetime if old.lifetime else None
        made = self.mint(tenant_id, old.role, name=old.name, created_by=created_by, expires_at=expires_at)
        made = replace(made, key=replace(made.key, lineage_id=old.lineage_id))
        old_end = min(now + overlap, old.expires_at or now + overlap)
        if not await self._store.rotate(old, made.key, old_end):
            raise Aborted("API_KEY_CHANGED", "The key was changed meanwhile; list the keys, then try again.")
        if not overlap:
            self._ring.forget([api_key_id])
        details = {**_shown(made.key), "replaces": api_key_id, "overlap_seconds": int(overlap.total_seconds())}
        await self._audit("api_key.rotate", tenant_id, "api_key", made.key.api_key_id, details=details)
        return made

    async def flush_used(self) -> None:
        """Writes when keys were used last, in one statement; what cannot be written waits for the next time."""
        used, self._ring.used = self._ring.used, {}
        if not used:
            return
        try:
            await self._store.touch(used)
        except Error:
            self._ring.used = used | self._ring.used


def _found(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise NotFound("API_KEY_NOT_FOUND", "API key not found.")
    return key


def _shown(key: ApiKey) -> Mapping[str, Any]:
    expires = key.expires_at.isoformat() if key.expires_at else None
    return {"name": key.name, "role": key.role.value, "last4": key.last4, "expire_time": expires}
