"""The stubs of the contexts the executor asks, and of its own replicas, behind the Protocols its use cases need."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from datetime import UTC, date
from typing import Any

import grpc
from convergence.credential.v1 import credential_pb2, credential_pb2_grpc
from convergence.pipeline_executor.v1 import pipeline_executor_pb2, pipeline_executor_pb2_grpc
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from google.protobuf import json_format

from libs import errors
from libs.tenancy import Caller, Role, TenantId
from services.pipeline_executor.domain import Grant, GrantState, Key, Renewal, View, run_not_found
from services.pipeline_executor.wire import decode_progress

_NOTICE_SECONDS = 3.0


class TenantQuotas:
    """``Quotas`` at tenant."""

    def __init__(self, stub: tenant_pb2_grpc.TenantQuotaServiceStub) -> None:
        self._stub = stub

    async def reserve(self, key: Key, owner: str, fingerprint: str) -> Grant:
        """The attempt's grant, new or found."""
        answer = await self._stub.ReserveRun(
            tenant_pb2.ReserveRunRequest(
                tenant_id=key.tenant_id,
                run_id=key.run_id,
                attempt=key.attempt,
                owner=owner,
                fingerprint=fingerprint,
            )
        )
        return _grant(answer.grant)

    async def renew(self, owner: str, keys: Collection[Key]) -> Renewal:
        """Prolongs the owner's grants."""
        wanted = [
            tenant_pb2.RenewGrantsRequest.Key(tenant_id=key.tenant_id, run_id=key.run_id, attempt=key.attempt)
            for key in keys
        ]
        answer = await self._stub.RenewGrants(tenant_pb2.RenewGrantsRequest(owner=owner, grants=wanted))
        return Renewal(
            {grant.key: grant.until for grant in map(_grant, answer.renewed)},
            frozenset(Key(TenantId(lost.tenant_id), lost.run_id, lost.attempt) for lost in answer.lost),
        )

    async def settle(self, key: Key, state: GrantState) -> None:
        """Ends a grant."""
        await self._stub.SettleGrant(
            tenant_pb2.SettleGrantRequest(
                tenant_id=key.tenant_id,
                run_id=key.run_id,
                attempt=key.attempt,
                state=tenant_pb2.Grant.State.Value(state.value),
            )
        )

    async def expired(self, limit: int) -> list[Grant]:
        """LIVE grants of all tenants whose lease has run out, oldest first."""
        answer = await self._stub.ListExpiredGrants(tenant_pb2.ListExpiredGrantsRequest(page_size=limit))
        return [_grant(grant) for grant in answer.grants]


class TenantDatasets:
    """``Tenants`` at tenant."""

    def __init__(self, stub: tenant_pb2_grpc.TenantLifecycleServiceStub) -> None:
        self._stub = stub

    async def ensure_dataset(self, tenant_id: TenantId, provider: str) -> None:
        """Makes sure that dataset and tables are there."""
        await self._stub.EnsureDataset(tenant_pb2.EnsureDatasetRequest(tenant_id=tenant_id, provider=provider))


class StoredCredentials:
    """``Credentials`` at credential."""

    def __init__(self, stub: credential_pb2_grpc.CredentialAccessServiceStub) -> None:
        self._stub = stub

    async def source(self, tenant_id: TenantId, provider: str) -> Mapping[str, Any]:
        """Where the credential's data lie; a missing one is a state to be mended, not a wrong path."""
        request = credential_pb2.CheckCredentialRequest(tenant_id=tenant_id, provider=provider)
        try:
            answer = await self._stub.CheckCredential(request)
        except errors.NotFound as exc:
            raise errors.FailedPrecondition(
                "CREDENTIAL_NOT_FOUND",
                f"There is no {provider} credential: store one with POST /api/v1/tenants/{tenant_id}/credentials.",
            ) from exc
        return json_format.MessageToDict(answer.source)

    async def open(self, key: Key, provider: str) -> Mapping[str, Any]:
        """The secret, for this attempt; credential writes an audit record first."""
        answer = await self._stub.OpenCredential(
            credential_pb2.OpenCredentialRequest(
                tenant_id=key.tenant_id, provider=provider, run_id=key.run_id, attempt=key.attempt
            )
        )
        secret: dict[str, Any] = json.loads(answer.secret)
        return {**secret, "external_id": answer.external_id} if answer.external_id else secret


class ReplicaOwners:
    """``Owners``: an owner's text ends in ``@host:port``, its process's internal port."""

    def __init__(self, connect: Callable[[str], grpc.aio.Channel]) -> None:
        self._connect = connect

    async def watch(self, owner: str, key: Key) -> AsyncGenerator[View]:
        """What the owner reports of an attempt until it has ended."""
        async with self._connect(_address(owner)) as channel:
            stub = pipeline_executor_pb2_grpc.RunOwnerServiceStub(channel)
            request = pipeline_executor_pb2.WatchOwnedRunRequest(
                tenant_id=key.tenant_id, run_id=key.run_id, attempt=key.attempt
            )
            responses: Any = stub.WatchOwnedRun(request)
            async with aclosing(responses):
                async for message in responses:
                    yield decode_progress(message)

    async def cancelled(self, owner: str, key: Key) -> None:
        """Tells the owner that the row says CANCELLING."""
        async with self._connect(_address(owner)) as channel:
            stub: Any = pipeline_executor_pb2_grpc.RunOwnerServiceStub(channel)
            request = pipeline_executor_pb2.NotifyCancelRequest(
                tenant_id=key.tenant_id, run_id=key.run_id, attempt=key.attempt
            )
            await stub.NotifyCancel(request, timeout=_NOTICE_SECONDS)


class Keys:
    """Asks tenant whose key it is, for clients that call this service's own port."""

    def __init__(self, stub: tenant_pb2_grpc.TenantAuthServiceStub) -> None:
        self._stub = stub

    async def authenticate(self, api_key: str) -> Caller:
        """Raises ``Unauthenticated`` for a key that is not live, ``Unavailable`` while nobody can know."""
        answer = await self._stub.Authenticate(tenant_pb2.AuthenticateRequest(api_key=api_key))
        return Caller(Role(answer.role), answer.tenant_id, answer.api_key_id)


def owner_text(process_id: str, address: str) -> str:
    """What stands as a process's owner in its grants and rows."""
    return f"{process_id}@{address}"


def _address(owner: str) -> str:
    address = owner.partition("@")[2]
    if not address:
        raise run_not_found()
    return address


def _grant(message: tenant_pb2.Grant) -> Grant:
    return Grant(
        Key(TenantId(message.tenant_id), message.run_id, message.attempt),
        message.owner,
        date.fromisoformat(message.day),
        message.until.ToDatetime(UTC),
        GrantState(tenant_pb2.Grant.State.Name(message.state)),
    )
