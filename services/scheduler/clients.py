"""The stubs of the contexts the scheduler asks, behind the Protocols its use cases need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC

from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as executor
from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as executor_rpc
from convergence.tenant.v1 import tenant_pb2 as tenant
from convergence.tenant.v1 import tenant_pb2_grpc as tenant_rpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from libs.errors import FailedPrecondition
from libs.tenancy import Caller, Role, TenantId, tenant_not_found
from services.scheduler.domain import Allowance, Attempt, AttemptStatus, Item

_PAGE = 1_000
# A reset touches the rows of all tenants; it may take as long as the job that asks for it.
_RESET_SECONDS = 240.0
# Reads and whatever is the same when it is repeated; a start that is refused is not asked for again at once.
RETRIED = (
    "convergence.tenant.v1.TenantQuotaService",
    "convergence.tenant.v1.TenantLifecycleService",
    "convergence.tenant.v1.TenantAuthService",
    "convergence.pipeline_executor.v1.PipelineDispatchService/BatchGetRuns",
    "convergence.pipeline_executor.v1.PipelineDispatchService/GetTemplate",
)


class ExecutorClient:
    """``domain.Executor`` over gRPC."""

    def __init__(self, stub: executor_rpc.PipelineDispatchServiceStub) -> None:
        self._stub = stub

    async def start(self, item: Item) -> Attempt:
        parameters = ParseDict(json.loads(item.parameters), Struct()) if item.parameters else None
        request = executor.StartRunRequest(
            tenant_id=item.tenant_id,
            run_id=item.run_id,
            attempt=item.attempt,
            provider=item.provider,
            domain=item.domain,
            template=item.template,
            start_date=item.start_date.isoformat(),
            end_date=item.end_date.isoformat(),
            parameters=parameters,
            trigger=executor.Run.Trigger.Value(item.trigger.value),
            config_id=item.config_id or "",
        )
        return _attempt(await self._stub.StartRun(request))

    async def refresh_window(self, provider: str, domain: str, template: str) -> int:
        request = executor.GetTemplateRequest(provider=provider, domain=domain, template=template)
        return (await self._stub.GetTemplate(request)).refresh_window_days

    async def attempts(self, items: Sequence[Item]) -> Mapping[str, Attempt]:
        found: dict[str, Attempt] = {}
        for start in range(0, len(items), _PAGE):
            keys = [
                executor.BatchGetRunsRequest.Key(tenant_id=item.tenant_id, run_id=item.run_id, attempt=item.attempt)
                for item in items[start : start + _PAGE]
            ]
            answer = await self._stub.BatchGetRuns(executor.BatchGetRunsRequest(keys=keys))
            found |= {run.pipeline_logging_id: _attempt(run) for run in answer.runs}
        return found

    async def cancel(self, item: Item) -> Attempt:
        request = executor.CancelDispatchedRunRequest(tenant_id=item.tenant_id, run_id=item.run_id)
        return _attempt(await self._stub.CancelDispatchedRun(request))


def _attempt(run: executor.Run) -> Attempt:
    return Attempt(
        run_id=run.pipeline_logging_id,
        attempt=run.attempt,
        status=AttemptStatus(executor.Run.Status.Name(run.status)),
        reason=run.error.reason,
        message=run.error.message,
        retryable=run.error.retryable,
        outcome=executor.Run.Outcome.Name(run.outcome) if run.outcome else "",
    )


class TenantsClient:
    """``domain.Tenants`` over gRPC."""

    def __init__(
        self, quotas: tenant_rpc.TenantQuotaServiceStub, lifecycle: tenant_rpc.TenantLifecycleServiceStub
    ) -> None:
        self._quotas = quotas
        self._lifecycle = lifecycle

    async def allowances(self, tenant_ids: Sequence[str]) -> Mapping[str, Allowance]:
        found: dict[str, Allowance] = {}
        for start in range(0, len(tenant_ids), 10 * _PAGE):
            request = tenant.ListAllowancesRequest(tenant_ids=tenant_ids[start : start + 10 * _PAGE])
            answer = await self._quotas.ListAllowances(request)
            found |= {each.tenant_id: _allowance(each) for each in answer.allowances}
        return found

    async def check_exists(self, tenant_id: TenantId) -> None:
        await self._state(tenant_id)

    async def check_staying(self, tenant_id: TenantId) -> None:
        if await self._state(tenant_id) == tenant.Tenant.OFFBOARDING:
            raise FailedPrecondition("TENANT_OFFBOARDING", "The tenant is being offboarded; nothing new is accepted.")

    async def _state(self, tenant_id: TenantId) -> tenant.Tenant.State.ValueType:
        answer = await self._lifecycle.GetTenantState(tenant.GetTenantStateRequest(tenant_id=tenant_id))
        if answer.state in (tenant.Tenant.STATE_UNSPECIFIED, tenant.Tenant.DELETED):
            raise tenant_not_found()
        return answer.state

    async def reset_daily_quotas(self) -> int:
        answer = await self._quotas.ResetDailyQuotas(tenant.ResetDailyQuotasRequest(), timeout=_RESET_SECONDS)
        return answer.reset_count

    async def offboarding(self) -> Sequence[TenantId]:
        answer = await self._lifecycle.ListOffboardingTenants(tenant.ListOffboardingTenantsRequest())
        return [TenantId(each) for each in answer.tenant_ids]

    async def confirm_offboarding(self, tenant_id: TenantId) -> None:
        await self._lifecycle.ConfirmOffboarding(tenant.ConfirmOffboardingRequest(tenant_id=tenant_id))


def _allowance(each: tenant.ListAllowancesResponse.Allowance) -> Allowance:
    return Allowance(
        active=each.state == tenant.Tenant.ACTIVE,
        free_slots=each.free_slots,
        daily_remaining=each.daily_remaining,
        monthly_remaining=each.monthly_remaining,
        window=each.reset_time.ToDatetime(tzinfo=UTC) if each.HasField("reset_time") else None,
    )


class Keys:
    """Asks tenant whose key it is, for clients that call this service's own port."""

    def __init__(self, stub: tenant_rpc.TenantAuthServiceStub) -> None:
        self._stub = stub

    async def authenticate(self, api_key: str) -> Caller:
        """Raises ``Unauthenticated`` for a key that is not live, ``Unavailable`` while nobody can know."""
        answer = await self._stub.Authenticate(tenant.AuthenticateRequest(api_key=api_key))
        return Caller(Role(answer.role), answer.tenant_id, answer.api_key_id)
