"""The rpcs of the credential context: decode, call the use case, encode. No rules here.

A posted secret leaves its request as soon as it is parsed; an opened one is wiped as soon as it is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from convergence.credential.v1 import credential_pb2 as pb
from convergence.credential.v1 import credential_pb2_grpc as rpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from libs.pages import Pages
from libs.tenancy import TenantId
from services.credential.domain import Credentials
from services.credential.schemas import parse_credentials, parse_source
from services.credential.states import Credential, Draft, Provider

type Context = Any


class CredentialServicer(rpc.CredentialServiceServicer):
    """Serves ``convergence.credential.v1.CredentialService``; no answer of it holds a secret."""

    def __init__(self, credentials: Credentials, pages: Pages, *, stand_ins: bool, now: Callable[[], datetime]) -> None:
        self._credentials = credentials
        self._pages = pages
        self._stand_ins = stand_ins
        self._now = now

    async def CreateCredential(
        self, request: pb.CreateCredentialRequest, context: Context
    ) -> pb.CreateCredentialResponse:
        tenant_id = TenantId.parse(request.tenant_id)
        source = self._source(Provider.parse(request.provider), request) if request.HasField("source") else None
        draft = self._draft(request)
        with draft.secret:
            created = await self._credentials.create(tenant_id, draft, name=request.name, source=source)
        row, response = created.credential, pb.CreateCredentialResponse
        return response(
            tenant_id=row.tenant_id,
            credential_id=row.credential_id,
            provider=row.provider,
            action=response.UPDATED if created.updated else response.CREATED,
            status=_status(row),
            dataset_status=response.TABLES_CREATED if created.tables_created else response.EXISTS,
            name=row.name,
            external_id=row.external_id,
            status_reason=row.status_reason,
        )

    async def ListCredentials(self, request: pb.ListCredentialsRequest, context: Context) -> pb.ListCredentialsResponse:
        tenant_id = TenantId.parse(request.tenant_id)
        scope, filtered = f"{tenant_id}/credentials", {"provider": request.provider.upper()}
        page = self._pages.open(request.page_size, request.page_token, scope=scope, filter=filtered)
        after = (page.cursor[0], page.cursor[1]) if page.cursor else None
        rows = await self._credentials.list(tenant_id, provider=request.provider, after=after, limit=page.size + 1)
        shown, token = self._pages.cut(rows, page, lambda row: (row.provider, row.name), scope=scope, filter=filtered)
        return pb.ListCredentialsResponse(credentials=map(_encode, shown), next_page_token=token)

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Context) -> pb.Credential:
        return _encode(await self._credentials.get(TenantId.parse(request.tenant_id), request.credential_id))

    async def UpdateCredential(self, request: pb.UpdateCredentialRequest, context: Context) -> pb.Credential:
        tenant_id = TenantId.parse(request.tenant_id)
        row = await self._credentials.get(tenant_id, request.credential_id)
        source = self._source(row.provider, request)
        return _encode(await self._credentials.update_source(tenant_id, request.credential_id, source))

    async def DeleteCredential(self, request: pb.DeleteCredentialRequest, context: Context) -> pb.Credential:
        return _encode(await self._credentials.delete(TenantId.parse(request.tenant_id), request.credential_id))

    async def ValidateCredential(self, request: pb.ValidateCredentialRequest, context: Context) -> pb.Credential:
        return _encode(await self._credentials.validate(TenantId.parse(request.tenant_id), request.credential_id))

    def _draft(self, request: pb.CreateCredentialRequest) -> Draft:
        try:
            given = MessageToDict(request.credentials)
        finally:
            request.ClearField("credentials")
        return parse_credentials(Provider.parse(request.provider), given, self._now())

    def _source(
        self, provider: Provider, request: pb.CreateCredentialRequest | pb.UpdateCredentialRequest
    ) -> Mapping[str, str]:
        return parse_source(provider, MessageToDict(request.source), stand_ins=self._stand_ins)


class CredentialAccessServicer(rpc.CredentialAccessServiceServicer):
    """Serves ``convergence.credential.v1.CredentialAccessService``: the way out of a secret, for the executor only."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def CheckCredential(self, request: pb.CheckCredentialRequest, context: Context) -> pb.CheckCredentialResponse:
        provider = Provider.parse(request.provider)
        row = await self._credentials.check(TenantId.parse(request.tenant_id), provider, request.name)
        return pb.CheckCredentialResponse(
            credential_id=row.credential_id, status=_status(row), source=_struct(row.source)
        )

    async def OpenCredential(self, request: pb.OpenCredentialRequest, context: Context) -> pb.OpenCredentialResponse:
        provider, purpose = (
            Provider.parse(request.provider),
            {"run_id": request.run_id, "attempt": str(request.attempt)},
        )
        opened = await self._credentials.open(TenantId.parse(request.tenant_id), provider, request.name, purpose)
        row = opened.credential
        with opened.secret as secret:
            return pb.OpenCredentialResponse(
                credential_id=row.credential_id,
                kind=row.kind,
                secret=bytes(secret.reveal()),
                source=_struct(row.source),
                external_id=row.external_id,
            )


def _encode(row: Credential) -> pb.Credential:
    message = pb.Credential(
        tenant_id=row.tenant_id,
        credential_id=row.credential_id,
        provider=row.provider,
        name=row.name,
        status=_status(row),
        kind=row.kind,
        display=row.display,
        source=_struct(row.source),
        external_id=row.external_id,
        version=row.number,
        status_reason=row.status_reason,
    )
    message.create_time.FromDatetime(row.create_time)
    message.update_time.FromDatetime(row.update_time)
    if row.expire_time is not None:
        message.expire_time.FromDatetime(row.expire_time)
    if row.last_validated_time is not None:
        message.last_validated_time.FromDatetime(row.last_validated_time)
    return message


def _status(row: Credential) -> pb.Credential.Status.ValueType:
    return pb.Credential.Status.Value(row.status.value)


def _struct(fields: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(dict(fields))
    return struct
