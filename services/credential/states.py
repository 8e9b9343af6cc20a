"""What a credential is and how it changes: its row, the changes, and the pure decision about each.

All changes of a row go through ``decide``, run under compare-and-swap (``libs.ledger``), so each change must recognise
itself: deciding it twice equals deciding it once. No row can hold a secret in the clear.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from libs import errors
from services.credential.secret import Secret

KEPT_VERSIONS: Final = 2
KEPT_FOR: Final = timedelta(days=7)
_SEEN: Final = 32
_IDS = uuid.UUID("6f0cf4bd-2d0f-5c7e-9a51-4a1f6f3f9c0e")


class Provider(StrEnum):
    """Whose cloud a credential opens."""

    GCP = "GCP"
    AWS = "AWS"
    AZURE = "AZURE"

    @classmethod
    def parse(cls, text: str) -> Provider:
        """Takes any case. Raises ``InvalidArgument(PROVIDER_UNKNOWN)``."""
        try:
            return cls(text.upper())
        except ValueError:
            raise errors.InvalidArgument("PROVIDER_UNKNOWN", "provider must be GCP, AWS or AZURE.") from None


class Kind(StrEnum):
    """What kind of secret it is."""

    SERVICE_ACCOUNT = "service_account"
    ACCESS_KEY = "access_key"
    ROLE = "role"
    SERVICE_PRINCIPAL = "service_principal"
    SAS = "sas"
    GRANTED_ACCESS = "granted_access"


class Status(StrEnum):
    """Whether a credential opens anything; only PENDING and VALID may be used."""

    PENDING = "PENDING"
    VALID = "VALID"
    INVALID = "INVALID"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class Binding:
    """What a ciphertext belongs to; it opens for exactly this and nothing else."""

    tenant_id: str
    credential_id: str
    provider: Provider
    kind: Kind
    version_id: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret under its own data key, and that key under the key service's key ``key_version``."""

    ciphertext: bytes = field(repr=False)
    wrapped_key: bytes = field(repr=False)
    key_version: str
    scheme: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A secret as a caller brought it, checked for form only."""

    provider: Provider
    kind: Kind
    secret: Secret
    display: str
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret. ``worked`` is whether the provider ever accepted it."""

    version_id: str
    number: int
    kind: Kind
    sealed: Sealed
    display: str
    worked: bool
    create_time: datetime
    expire_time: datetime | None = None
    destroy_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """One row: what is known of a credential, with its secret versions, the one in force first.

    ``version`` is the row's, for compare-and-swap; ``last_number`` the highest number a secret version ever had;
    ``first_id`` the secret version that made the credential live; ``seen`` the last ones that came in, so that one
    whose reply was lost is not put again, not even over a revocation.
    """

    credential_id: str
    tenant_id: str
    provider: Provider
    name: str
    version: int
    status: Status
    status_reason: str
    source: Mapping[str, Any]
    secrets: tuple[SecretVersion, ...]
    last_number: int
    first_id: str
    seen: tuple[str, ...]
    kind: Kind
    display: str
    create_time: datetime
    update_time: datetime
    last_validated_time: datetime | None = None
    """When the provider was asked last, whatever it said."""

    @property
    def current(self) -> SecretVersion:
        """The secret in force. Raises ``IndexError`` once it is destroyed."""
        return self.secrets[0]

    @property
    def number(self) -> int:
        """The number of the secret in force; the last one's once it is destroyed."""
        return self.secrets[0].number if self.secrets else self.last_number

    @property
    def expire_time(self) -> datetime | None:
        """When the secret in force ends by itself, if that is known."""
        return self.secrets[0].expire_time if self.secrets else None

    @property
    def external_id(self) -> str:
        """What an AWS role's trust policy must ask for: ours, never the caller's, and the same for every version."""
        return self.credential_id if self.kind is Kind.ROLE else ""

    @property
    def binding(self) -> Binding:
        """What the secret in force is bound to."""
        return self.bind(self.current)

    def bind(self, secret: SecretVersion) -> Binding:
        """What one of its secret versions is bound to."""
        return Binding(self.tenant_id, self.credential_id, self.provider, secret.kind, secret.version_id)

    def as_of(self, now: datetime) -> Credential:
        """The same, with a secret that has ended by itself shown as INVALID."""
        if self.status is not Status.REVOKED and self.expire_time is not None and self.expire_time <= now:
            return replace(self, status=Status.INVALID, status_reason="It has expired.")
        return self


def credential_id(tenant_id: str, provider: Provider, name: str) -> str:
    """The id of a tenant's credential: it follows from what the credential is called, so there can be one only."""
    return str(uuid.uuid5(_IDS, f"{tenant_id}/{provider}/{name}"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a provider said: VALID, INVALID (a definite refusal), or PENDING (nobody can tell now), and why.

    ``asked`` is False where nobody knows how to ask; ``final`` marks a refusal that no patience mends.
    """

    status: Status
    reason: str = ""
    asked: bool = True
    final: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """A new secret version for the credential of this name; ``source`` None keeps the one that is there."""

    tenant_id: str
    provider: Provider
    name: str
    version_id: str
    kind: Kind
    sealed: Sealed
    display: str
    expire_time: datetime | None
    source: Mapping[str, Any] | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SetSource:
    """Where the data lie, whole, and what the provider said with it."""

    tenant_id: str
    source: Mapping[str, Any]
    version_id: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Judge:
    """What the provider said of one secret version with one source."""

    tenant_id: str
    version_id: str
    source: Mapping[str, Any]
    verdict: Verdict
    time: datetime


@dataclass(frozen=True, slots=True)
class Revoke:
    """The end: no secret version survives it."""

    tenant_id: str


@dataclass(frozen=True, slots=True)
class Rewrap:
    """Data keys under the key service's newer key, by secret version; ``old`` is what they replace."""

    tenant_id: str
    old: Mapping[str, Sealed]
    new: Mapping[str, Sealed]


@dataclass(frozen=True, slots=True)
class Prune:
    """Destroys the secret versions whose time is over."""

    tenant_id: str


type Change = Put | SetSource | Judge | Revoke | Rewrap | Prune


def not_found() -> errors.NotFound:
    """The one answer for a credential that does not exist and for one that is another tenant's."""
    return errors.NotFound("CREDENTIAL_NOT_FOUND", "Credential not found.")


def decide(row: Credential | None, change: Change, now: datetime) -> tuple[Credential | None, Credential]:
    """The row after a change, which is also the answer; pure, and the second time it changes nothing.

    Raises ``NotFound(CREDENTIAL_NOT_FOUND)`` for no row or another tenant's, ``FailedPrecondition(CREDENTIAL_REVOKED)``
    for a change that needs a secret where none is left.
    """
    if row is None or row.tenant_id != change.tenant_id:
        raise not_found()
    kept = tuple(s for s in row.secrets if s.destroy_time is None or s.destroy_time > now)
    row = row if len(kept) == len(row.secrets) else replace(row, secrets=kept)
    match change:
        case Put():
            after = _put(row, change, now)
        case SetSource():
            after = _set_source(row, change, now)
        case Judge():
            after = _judge(row, change, now)
        case Revoke():
            after = _revoke(row, now)
        case Rewrap():
            after = _rewrap(row, change)
        case Prune():
            after = row
    return after, after


def born(put: Put, now: datetime) -> Credential:
    """The first row of a credential."""
    blank = Credential(
        credential_id=credential_id(put.tenant_id, put.provider, put.name),
        tenant_id=put.tenant_id,
        provider=put.provider,
        name=put.name,
        version=1,
        status=Status.PENDING,
        status_reason="",
        source={},
        secrets=(),
        last_number=0,
        first_id=put.version_id,
        seen=(),
        kind=put.kind,
        display="",
        create_time=now,
        update_time=now,
    )
    return _put(blank, put, now)


def usable(row: Credential | None, tenant_id: str, now: datetime) -> Credential:
    """The row, if its secret may be opened for this tenant now. Raises the reason if not."""
    if row is None or row.tenant_id != tenant_id:
        raise not_found()
    if row.status is Status.REVOKED or not row.secrets:
        raise errors.FailedPrecondition("CREDENTIAL_REVOKED", "The credential is revoked; post a new one.")
    if row.expire_time is not None and row.expire_time <= now:
        raise errors.FailedPrecondition("CREDENTIAL_EXPIRED", "The credential has expired; post a new one.")
    if row.status is Status.INVALID:
        raise errors.FailedPrecondition(
            "CREDENTIAL_INVALID", "The provider refused the credential; post a new one, or mend it and validate it."
        )
    return row


def _put(row: Credential, put: Put, now: datetime) -> Credential:
    if put.version_id in row.seen:
        return row
    fresh = SecretVersion(
        version_id=put.version_id,
        number=row.last_number + 1,
        kind=put.kind,
        sealed=put.sealed,
        display=put.display,
        worked=put.verdict.status is Status.VALID,
        create_time=now,
        expire_time=put.expire_time,
    )
    older = [replace(s, destroy_time=s.destroy_time or now + KEPT_FOR) for s in row.secrets]
    older.sort(key=lambda s: not s.worked)
    return replace(
        row,
        status=put.verdict.status,
        status_reason=put.verdict.reason,
        source=row.source if put.source is None else dict(put.source),
        secrets=(fresh, *older[: KEPT_VERSIONS - 1]),
        last_number=fresh.number,
        first_id=row.first_id if row.secrets else put.version_id,
        seen=(put.version_id, *row.seen[: _SEEN - 1]),
        kind=put.kind,
        display=put.display,
        update_time=now,
        last_validated_time=now if put.verdict.asked else None,
    )


def _set_source(row: Credential, change: SetSource, now: datetime) -> Credential:
    if not row.secrets:
        raise errors.FailedPrecondition("CREDENTIAL_REVOKED", "The credential is revoked; post a new one.")
    if row.current.version_id != change.version_id:
        raise errors.Aborted("CREDENTIAL_CHANGED", "The credential was replaced meanwhile; try again.")
    if row.source == change.source and row.status is change.verdict.status:
        return row
    return replace(
        row,
        source=dict(change.source),
        status=change.verdict.status,
        status_reason=change.verdict.reason,
        update_time=now,
        last_validated_time=now if change.verdict.asked else row.last_validated_time,
    )


def _judge(row: Credential, change: Judge, now: datetime) -> Credential:
    """Records a verdict on what is still in force; a provider that could not be asked leaves the status alone."""
    if not row.secrets or row.current.version_id != change.version_id or row.source != change.source:
        return row
    if not change.verdict.asked or (row.last_validated_time is not None and row.last_validated_time > change.time):
        return row
    status, reason = change.verdict.status, change.verdict.reason
    if status is Status.PENDING:
        reason = row.status_reason if row.status is Status.INVALID else reason
        return replace(row, status_reason=reason, last_validated_time=change.time)
    before = row.secrets[1] if len(row.secrets) > 1 else None
    if status is Status.INVALID and not row.current.worked and before is not None and before.worked:
        return _roll_back(row, before, now)
    current = replace(row.current, worked=row.current.worked or status is Status.VALID)
    return replace(
        row,
        status=status,
        status_reason=reason,
        secrets=(current, *row.secrets[1:]),
        update_time=row.update_time if row.status is status else now,
        last_validated_time=change.time,
    )


def _roll_back(row: Credential, before: SecretVersion, now: datetime) -> Credential:
    """A version that never worked gives way to the one before, which did; its own ciphertext is dropped."""
    return replace(
        row,
        status=Status.PENDING,
        status_reason="The provider refused the newest version, so the one before it is in force again.",
        secrets=(replace(before, destroy_time=None), *row.secrets[2:]),
        kind=before.kind,
        display=before.display,
        update_time=now,
        last_validated_time=None,
    )


def _revoke(row: Credential, now: datetime) -> Credential:
    if row.status is Status.REVOKED and not row.secrets:
        return row
    return replace(row, status=Status.REVOKED, status_reason="", secrets=(), update_time=now)


def _rewrap(row: Credential, change: Rewrap) -> Credential:
    secrets = tuple(
        replace(s, sealed=change.new[s.version_id])
        if s.version_id in change.new and s.sealed == change.old.get(s.version_id)
        else s
        for s in row.secrets
    )
    return row if secrets == row.secrets else replace(row, secrets=secrets)
