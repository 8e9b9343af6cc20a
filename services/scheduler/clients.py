"""The stubs of the contexts the scheduler asks, behind the Protocols its use cases need."""

from __future__ import annotations

from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc

from libs.tenancy import Caller, Role


class Keys:
    """Asks tenant whose key it is, for clients that call this service's own port."""

    def __init__(self, stub: tenant_pb2_grpc.TenantAuthServiceStub) -> None:
        self._stub = stub

    async def authenticate(self, api_key: str) -> Caller:
        """Raises ``Unauthenticated`` for a key that is not live, ``Unavailable`` while nobody can know."""
        answer = await self._stub.Authenticate(tenant_pb2.AuthenticateRequest(api_key=api_key))
        return Caller(Role(answer.role), answer.tenant_id, answer.api_key_id)
