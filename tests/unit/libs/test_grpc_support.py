"""The adapter that lets coroutine servicers run under ``grpc_testing``."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from convergence.tenant.v1 import tenant_pb2

from libs import caller, errors
from libs.tenancy import Caller, Role
from tests.support.grpc import testing_server as serving

SERVICE = tenant_pb2.DESCRIPTOR.services_by_name["TenantService"]
GET = SERVICE.methods_by_name["GetTenant"]


class Servicer:
    async def GetTenant(self, request: tenant_pb2.GetTenantRequest, _context: Any) -> tenant_pb2.Tenant:
        await asyncio.sleep(0)
        if request.tenant_id == "gone":
            raise errors.NotFound("TENANT_NOT_FOUND", "Tenant not found.")
        if request.tenant_id == "defect":
            raise KeyError("row")
        return tenant_pb2.Tenant(tenant_id=caller.current().tenant_id, company_name=caller.idempotency_key() or "")


def test_coroutines_run_to_their_end_as_the_given_caller() -> None:
    who = Caller(Role.RUNNER, "other_co")
    with serving({SERVICE: Servicer()}, caller=who) as server:
        reply = server.call(GET, tenant_pb2.GetTenantRequest(), metadata=[("idempotency-key", "i")])
        assert (reply.code, reply.response.tenant_id) == (grpc.StatusCode.OK, "other_co")
        assert reply.response.company_name == "i" and reply.status is None


def test_errors_end_as_the_interceptor_would_end_them() -> None:
    with serving({SERVICE: Servicer()}) as server:
        gone = server.call(GET, tenant_pb2.GetTenantRequest(tenant_id="gone"))
        assert (gone.code, gone.reason, gone.details) == (
            grpc.StatusCode.NOT_FOUND,
            "TENANT_NOT_FOUND",
            "Tenant not found.",
        )
        defect = server.call(GET, tenant_pb2.GetTenantRequest(tenant_id="defect"))
        assert (defect.code, defect.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL") and "row" not in defect.details
