"""Stand-ins for what the credential context talks to: a store that can fail, a cipher without keys, and more."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from libs import errors
from libs.ledger import Ledger
from services.credential.domain import Event
from services.credential.secret import Secret
from services.credential.states import Binding, Change, Credential, Kind, Sealed, Status, Verdict, decide
from tests.support.fakes import Faults, MemoryTable


class MemoryCredentialStore:
    """A ``domain.Store``; several on one ``table`` are the replicas of a service."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        table: MemoryTable[Credential] | None = None,
        attempts: dict[tuple[str, int], bool] | None = None,
        faults: Faults | None = None,
        seed: int = 0,
    ) -> None:
        self.table = table or MemoryTable(key=lambda row: row.credential_id, faults=faults, seed=seed)
        self.attempts = {} if attempts is None else attempts
        self._ledger: Ledger[Credential, Change, Credential] = Ledger(self.table, decide, now=now)

    def replica(self, *, now: Callable[[], datetime]) -> MemoryCredentialStore:
        """Another process on the same rows."""
        return MemoryCredentialStore(now=now, table=self.table, attempts=self.attempts)

    async def read(self, credential_id: str) -> Credential | None:
        return (await self.table.read([credential_id])).get(credential_id)

    async def list(
        self, tenant_id: str, *, provider: str, after: tuple[str, str] | None, limit: int
    ) -> Sequence[Credential]:
        await asyncio.sleep(0)
        rows = [row for row in self.table.rows.values() if row.tenant_id == tenant_id]
        rows = [
            row for row in rows if provider in ("", row.provider) and (row.provider, row.name) > (after or ("", ""))
        ]
        return sorted(rows, key=lambda row: (row.provider, row.name))[:limit]

    async def change(self, credential_id: str, change: Change) -> Credential:
        return await self._ledger.ask(credential_id, change)

    async def add(self, row: Credential, attempt: int) -> None:
        await asyncio.sleep(0)
        done = self.attempts.get((row.credential_id, attempt))
        if done is None:
            done = not self.table._hit(self.table.faults.conflict)
            self.attempts[row.credential_id, attempt] = done
            if done:
                assert row.credential_id not in self.table.rows, "two rows of one credential"
                self.table.rows[row.credential_id] = row
        await asyncio.sleep(0)
        if not done:
            raise errors.Aborted("STORE_CONFLICT", "The fake lost.")
        if self.table._hit(self.table.faults.lost_reply):
            raise errors.Ambiguous("STORE_OUTCOME_UNKNOWN", "The fake lost the reply.")


class OpenCipher:
    """A ``domain.Cipher`` that hides nothing but checks what a secret is bound to."""

    def __init__(self) -> None:
        self.opened = 0
        self.key_version = "kek/1"
        self.failure: errors.Error | None = None

    async def seal(self, binding: Binding, secret: Secret) -> Sealed:
        await asyncio.sleep(0)
        body = json.dumps([list(_parts(binding)), base64.b85encode(secret.reveal()).decode()[::-1]])
        return Sealed(body.encode(), b"", self.key_version, 1)

    async def open(self, binding: Binding, sealed: Sealed) -> Secret:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        bound, body = json.loads(sealed.ciphertext)
        if bound != list(_parts(binding)):
            raise errors.Internal("SECRET_UNREADABLE", "The stored secret does not belong where it was found.")
        self.opened += 1
        return Secret(base64.b85decode(body[::-1]))

    async def rewrap(self, binding: Binding, sealed: Sealed) -> Sealed:
        (await self.open(binding, sealed)).wipe()
        if sealed.key_version == self.key_version:
            return sealed
        return Sealed(sealed.ciphertext, b"", self.key_version, 1)

    async def primary_version(self) -> str:
        return self.key_version


def _parts(binding: Binding) -> tuple[str, ...]:
    return (binding.tenant_id, binding.credential_id, binding.provider, binding.kind, binding.version_id)


class Judgement:
    """A ``domain.Validator`` that says what it is told to, and remembers what it was asked."""

    def __init__(self, verdict: Verdict | Exception | None = None) -> None:
        self.verdict = verdict or Verdict(Status.VALID)
        self.by_secret: dict[str, Verdict] = {}
        self.asked: list[tuple[Kind, dict[str, str], dict[str, str], str]] = []
        self.hang = False

    async def validate(self, kind: Kind, secret: Secret, source: Mapping[str, str], external_id: str) -> Verdict:
        self.asked.append((kind, secret.fields(), dict(source), external_id))
        if self.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return next((v for part, v in self.by_secret.items() if part in str(secret.fields())), self.verdict)


class KnownTenants:
    """A ``domain.Tenants`` that makes tables once per tenant and provider."""

    def __init__(self) -> None:
        self.made: set[tuple[str, str]] = set()
        self.failure: errors.Error | None = None
        self.offboarding: set[str] = set()
        self.confirmed: list[str] = []

    async def ensure_dataset(self, tenant_id: str, provider: str) -> bool:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        fresh = (tenant_id, provider) not in self.made
        self.made.add((tenant_id, provider))
        return fresh

    async def is_leaving(self, tenant_id: str) -> bool:
        await asyncio.sleep(0)
        return tenant_id in self.offboarding

    async def list_offboarding(self) -> Sequence[str]:
        return sorted(self.offboarding)

    async def confirm_offboarding(self, tenant_id: str) -> None:
        self.offboarding.discard(tenant_id)
        self.confirmed.append(tenant_id)


class MemoryTrail:
    """A ``domain.Trail`` in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failure: errors.Error | None = None

    async def append(self, event: Event) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.events.append(event)

    def actions(self) -> list[tuple[str, str]]:
        """Action and outcome of each event."""
        return [(event.action, event.outcome) for event in self.events]
