"""The executor's three gRPC faces: for clients, for the scheduler, and for its own replicas. Decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import grpc
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as pb
from convergence.pipeline_executor.v1 import pipeline_executor_pb2_grpc as pb_grpc

from libs import caller
from libs.pages import Pages
from services.pipeline_executor.compliance import Compliance
from services.pipeline_executor.costs import Costs
from services.pipeline_executor.domain import Key, RunFilter, RunStatus, Trigger, check_run_id
from services.pipeline_executor.executions import Executions
from services.pipeline_executor.runs import RunRequest, Runs, StartRequest, tenant_of
from services.pipeline_executor.templates import Templates
from services.pipeline_executor.watch import Watch
from services.pipeline_executor.wire import (
    bound_of,
    decode_compliance_request,
    decode_cost_request,
    decode_struct,
    encode_change,
    encode_check,
    encode_cost,
    encode_group,
    encode_progress,
    encode_quarantined,
    encode_run,
    encode_step,
    encode_template,
    encode_view,
)

type Context = grpc.aio.ServicerContext[Any, Any]


class PipelineServicer(pb_grpc.PipelineServiceServicer):
    """Public: what a tenant's clients call through the gateway."""

    def __init__(
        self, runs: Runs, watch: Watch, templates: Templates, costs: Costs, compliance: Compliance, pages: Pages
    ) -> None:
        self._runs = runs
        self._costs = costs
        self._compliance = compliance
        self._watch = watch
        self._templates = templates
        # Templates are as the process found them at its start, and the most asked for.
        self._shown = [(item.id, encode_template(item)) for item in templates.list()]
        self._pages = pages

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Context) -> pb.ListTemplatesResponse:
        page = self._pages.open(request.page_size, request.page_token, scope="templates")
        rows = [item for item in self._shown if item[:1] > page.cursor][: page.size + 1]
        shown, token = self._pages.cut(rows, page, lambda item: item[:1], scope="templates")
        return pb.ListTemplatesResponse(templates=(message for _, message in shown), next_page_token=token)

    async def RunPipeline(self, request: pb.RunPipelineRequest, context: Context) -> pb.Run:
        view = await self._runs.run(
            RunRequest(
                tenant_id=tenant_of(request.tenant_id),
                provider=request.provider,
                domain=request.domain,
                template=request.template,
                date=request.date,
                start_date=request.start_date,
                end_date=request.end_date,
                parameters=decode_struct(request.parameters),
                idempotency_key=caller.idempotency_key() or request.request_id,
            )
        )
        return encode_view(view)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        self._templates.check_provider(request.provider)
        tenant_id, wanted = tenant_of(request.tenant_id), _filter(request)
        scope, bound = f"{tenant_id}/runs", _bound(request)
        page = self._pages.open(request.page_size, request.page_token, scope=scope, filter=bound)
        after = (datetime.fromisoformat(page.cursor[0]), page.cursor[1]) if page.cursor else None
        rows = await self._runs.list_runs(tenant_id, wanted, page.size + 1, after)
        shown, token = self._pages.cut(
            rows, page, lambda run: (run.start_time.isoformat(), run.key.run_id), scope=scope, filter=bound
        )
        return pb.ListRunsResponse(runs=map(encode_run, shown), next_page_token=token)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.Run:
        view = await self._runs.get(tenant_of(request.tenant_id), request.pipeline_logging_id, request.attempt)
        return encode_view(view)

    async def ListSteps(self, request: pb.ListStepsRequest, context: Context) -> pb.ListStepsResponse:
        tenant_id, run_id = tenant_of(request.tenant_id), check_run_id(request.pipeline_logging_id)
        scope = f"{tenant_id}/runs/{run_id}/steps"
        page = self._pages.open(request.page_size, request.page_token, scope=scope)
        after = (int(page.cursor[0]), int(page.cursor[1])) if page.cursor else None
        rows = await self._runs.steps(tenant_id, run_id, page.size + 1, after)
        shown, token = self._pages.cut(rows, page, lambda step: (str(step.attempt), str(step.position)), scope=scope)
        return pb.ListStepsResponse(steps=map(encode_step, shown), next_page_token=token)

    async def ListDqResults(self, request: pb.ListDqResultsRequest, context: Context) -> pb.ListDqResultsResponse:
        tenant_id, run_id = tenant_of(request.tenant_id), check_run_id(request.pipeline_logging_id)
        scope = f"{tenant_id}/runs/{run_id}/dq-results"
        page = self._pages.open(request.page_size, request.page_token, scope=scope)
        after = (int(page.cursor[0]), page.cursor[1], page.cursor[2]) if page.cursor else None
        rows = await self._runs.checks(tenant_id, run_id, page.size + 1, after)
        shown, token = self._pages.cut(
            rows, page, lambda check: (str(check.attempt), check.name, check.dimension), scope=scope
        )
        return pb.ListDqResultsResponse(dq_results=map(encode_check, shown), next_page_token=token)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.Run:
        return encode_view(await self._runs.cancel(tenant_of(request.tenant_id), request.pipeline_logging_id))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncGenerator[pb.RunProgress]:
        async with aclosing(self._watch.watch(tenant_of(request.tenant_id), request.pipeline_logging_id)) as views:
            async for view in views:
                yield encode_progress(view)

    async def QueryCosts(self, request: pb.QueryCostsRequest, context: Context) -> pb.QueryCostsResponse:
        self._templates.check_provider(request.provider)
        question = self._costs.check(decode_cost_request(tenant_of(request.tenant_id), request))
        scope, bound = f"{question.tenant_id}/costs", bound_of(question)
        page = self._pages.open(request.page_size, request.page_token, scope=scope, filter=bound)
        after = (Decimal(page.cursor[0]), page.cursor[1], page.cursor[2]) if page.cursor else None
        rows, kept = await self._costs.ask(question, page.size + 1, after)
        shown, token = self._pages.cut(
            rows, page, lambda cost: (format(cost.cost, "f"), cost.key, cost.currency), scope=scope, filter=bound
        )
        costs = [encode_cost(question, cost) for cost in shown]
        return pb.QueryCostsResponse(costs=costs, next_page_token=token, quarantined=map(encode_quarantined, kept))

    async def QueryCompliance(self, request: pb.QueryComplianceRequest, context: Context) -> pb.QueryComplianceResponse:
        self._templates.check_provider(request.provider)
        question = self._compliance.check(decode_compliance_request(tenant_of(request.tenant_id), request))
        scope, bound = f"{question.tenant_id}/compliance", bound_of(question)
        page = self._pages.open(request.page_size, request.page_token, scope=scope, filter=bound)
        day = date.fromisoformat(page.cursor[0]) if page.cursor else None
        if question.changed_since:
            since = await self._compliance.changes(question, page.size + 1, (day, page.cursor[1]) if day else None)
            changes, token = self._pages.cut(
                since, page, lambda change: (change.day.isoformat(), change.finding_uid), scope=scope, filter=bound
            )
            return pb.QueryComplianceResponse(changes=map(encode_change, changes), next_page_token=token)
        after = (day, int(page.cursor[1]), page.cursor[2]) if day else None
        rows = await self._compliance.groups(question, page.size + 1, after)
        shown, token = self._pages.cut(
            rows, page, lambda group: (group.day.isoformat(), str(group.failed), group.key), scope=scope, filter=bound
        )
        groups = [encode_group(question, group) for group in shown]
        return pb.QueryComplianceResponse(compliance=groups, next_page_token=token)


class PipelineDispatchServicer(pb_grpc.PipelineDispatchServiceServicer):
    """Internal: what the scheduler calls."""

    def __init__(self, runs: Runs, templates: Templates) -> None:
        self._runs = runs
        self._templates = templates

    async def GetTemplate(self, request: pb.GetTemplateRequest, context: Context) -> pb.Template:
        return encode_template(self._templates.get(request.provider, request.domain, request.template))

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.Run:
        trigger = Trigger(pb.Run.Trigger.Name(request.trigger)) if request.trigger else Trigger.SCHEDULED
        view = await self._runs.start(
            StartRequest(
                key=Key(tenant_of(request.tenant_id), check_run_id(request.run_id), request.attempt),
                provider=request.provider,
                domain=request.domain,
                template=request.template,
                start_date=request.start_date,
                end_date=request.end_date,
                parameters=decode_struct(request.parameters),
                trigger=trigger,
                config_id=request.config_id,
                user_id=request.user_id if request.HasField("user_id") else None,
            )
        )
        return encode_view(view)

    async def BatchGetRuns(self, request: pb.BatchGetRunsRequest, context: Context) -> pb.BatchGetRunsResponse:
        keys = [Key(tenant_of(key.tenant_id), key.run_id.lower(), key.attempt) for key in request.keys]
        views = await self._runs.batch(keys)
        return pb.BatchGetRunsResponse(runs=[encode_run(view.run) for view in views])

    async def CancelDispatchedRun(self, request: pb.CancelDispatchedRunRequest, context: Context) -> pb.Run:
        return encode_view(await self._runs.cancel(tenant_of(request.tenant_id), request.run_id))


class RunOwnerServicer(pb_grpc.RunOwnerServiceServicer):
    """Internal: what another executor asks the owner of a run. It never asks on."""

    def __init__(self, watch: Watch, executions: Executions) -> None:
        self._watch = watch
        self._executions = executions

    async def WatchOwnedRun(self, request: pb.WatchOwnedRunRequest, context: Context) -> AsyncGenerator[pb.RunProgress]:
        key = Key(tenant_of(request.tenant_id), check_run_id(request.run_id), request.attempt)
        async with aclosing(self._watch.owned(key)) as views:
            async for view in views:
                yield encode_progress(view)

    async def NotifyCancel(self, request: pb.NotifyCancelRequest, context: Context) -> pb.NotifyCancelResponse:
        self._executions.cancel(Key(tenant_of(request.tenant_id), check_run_id(request.run_id), request.attempt))
        return pb.NotifyCancelResponse()


def _filter(request: pb.ListRunsRequest) -> RunFilter:
    return RunFilter(
        RunStatus(pb.Run.Status.Name(request.status)) if request.status else None,
        request.provider.lower() or None,
        request.domain.lower() or None,
        request.template.lower() or None,
    )


def _bound(request: pb.ListRunsRequest) -> dict[str, str]:
    return {
        "status": str(request.status),
        "provider": request.provider.lower(),
        "domain": request.domain.lower(),
        "template": request.template.lower(),
    }
