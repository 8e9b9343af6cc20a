"""The rpcs of the schedule service: decode, call the use case, encode. No rules and no SQL here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from convergence.scheduler.v1 import scheduler_pb2 as pb
from convergence.scheduler.v1 import scheduler_pb2_grpc as rpc

from libs import caller
from libs.finishing import Finishing
from libs.pages import Page, Pages
from libs.tenancy import Role, TenantId
from services.scheduler import wire
from services.scheduler.backfills import Backfills
from services.scheduler.domain import Job, Tenants
from services.scheduler.housekeeping import Housekeeping
from services.scheduler.loop import Loop
from services.scheduler.reports import Journal, Reports
from services.scheduler.runs import Runs
from services.scheduler.schedules import Calendar
from services.scheduler.trigger import Triggers

_DEFAULT_BUDGET = 240
# The answer must travel back before the caller's deadline (300 s at the gateway) ends.
_MARGIN = 10.0
_LONGEST = 280.0


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicer calls."""

    triggers: Triggers
    loop: Loop
    housekeeping: Housekeeping
    journal: Journal
    reports: Reports
    calendar: Calendar
    runs: Runs
    backfills: Backfills
    tenants: Tenants


class ScheduleServicer(rpc.ScheduleServiceServicer):
    """Serves ``convergence.scheduler.v1.ScheduleService``."""

    def __init__(self, use: UseCases, pages: Pages, finishing: Finishing) -> None:
        self._use = use
        self._pages = pages
        self._to_its_end = finishing.to_its_end

    # ------------------------------------------------------------------ jobs

    async def Trigger(self, request: pb.TriggerRequest, context: Any) -> pb.TriggerResponse:
        budget = _within(_LONGEST)
        fired = await self._use.journal.run(
            Job.TRIGGER,
            lambda: self._use.triggers.fire_due(budget),
            lambda done: {"triggered": done.schedules, "queued": done.queued, "skipped": done.skipped},
        )
        return pb.TriggerResponse(
            triggered_count=fired.schedules, queued_count=fired.queued, skipped_count=fired.skipped
        )

    async def ProcessQueue(self, request: pb.ProcessQueueRequest, context: Any) -> pb.ProcessQueueResponse:
        asked = request.time_budget_seconds if request.HasField("time_budget_seconds") else _DEFAULT_BUDGET
        budget = _within(asked)
        done = await self._use.journal.run(
            Job.PROCESS_QUEUE,
            lambda: self._use.loop.process(budget),
            lambda done: {"started": done.started, "completed": done.completed, "failed": done.failed},
        )
        return wire.processed(done)

    async def ResetDailyQuotas(self, request: pb.ResetDailyQuotasRequest, context: Any) -> pb.ResetDailyQuotasResponse:
        done = await self._use.journal.run(
            Job.RESET_DAILY_QUOTAS,
            self._use.housekeeping.reset,
            lambda done: {"reset": done.reset, "deleted": done.deleted},
        )
        return pb.ResetDailyQuotasResponse(reset_count=done.reset, deleted_count=done.deleted)

    # ------------------------------------------------------------------ reports

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return wire.health(await self._use.reports.health())

    async def CheckInvariants(self, request: pb.CheckInvariantsRequest, context: Any) -> pb.CheckInvariantsResponse:
        return wire.invariants(await self._use.reports.invariants())

    async def ListQueue(self, request: pb.ListQueueRequest, context: Any) -> pb.ListQueueResponse:
        scope, filter = "/queue", {"state": str(request.state)}
        page = self._pages.open(request.page_size, request.page_token, scope=scope, filter=filter)
        after = int(page.cursor[0]) if page.cursor else 0
        found = await self._use.runs.queue(wire.state(request.state), page.size + 1, after)
        shown, token = self._pages.cut(found, page, lambda row: (str(row[0]),), scope=scope, filter=filter)
        return pb.ListQueueResponse(runs=[wire.run(item) for _, item in shown], next_page_token=token)

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        scope = "/dead-letters"
        page = self._pages.open(request.page_size, request.page_token, scope=scope)
        found = await self._use.runs.dead_letters(page.size + 1, wire.opened(page.cursor))
        shown, token = self._pages.cut(found, page, lambda item: wire.cursor(item.updated_at, item.run_id), scope=scope)
        return pb.ListDeadLettersResponse(runs=[wire.run(item) for item in shown], next_page_token=token)

    async def RequeueDeadLetter(self, request: pb.RequeueDeadLetterRequest, context: Any) -> pb.ScheduledRun:
        return wire.run(await self._to_its_end(self._use.runs.requeue(request.run_id)))

    # ------------------------------------------------------------------ schedules

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> pb.ListSchedulesResponse:
        tenant_id = await self._known(request.tenant_id)
        scope, page = self._page(request, f"{tenant_id}/schedules")
        found = await self._use.calendar.list(tenant_id, page.size + 1, wire.opened(page.cursor))
        shown, token = self._pages.cut(found, page, lambda row: wire.cursor(row.created_at, row.config_id), scope=scope)
        return pb.ListSchedulesResponse(pipelines=[wire.schedule(row) for row in shown], next_page_token=token)

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Any) -> pb.Schedule:
        tenant_id = TenantId.parse(request.tenant_id)
        work = self._use.calendar.create(tenant_id, wire.new_schedule(request), _key(request.request_id))
        return wire.schedule(await self._to_its_end(work))

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> pb.Schedule:
        return wire.schedule(await self._use.calendar.get(TenantId.parse(request.tenant_id), request.config_id))

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Any) -> pb.Schedule:
        return await self._update(request.tenant_id, request.config_id, wire.changed_schedule(request))

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Any) -> pb.Schedule:
        work = self._use.calendar.delete(TenantId.parse(request.tenant_id), request.config_id)
        return wire.schedule(await self._to_its_end(work))

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Any) -> pb.Schedule:
        return await self._update(request.tenant_id, request.config_id, {"is_active": False})

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Any) -> pb.Schedule:
        return await self._update(request.tenant_id, request.config_id, {"is_active": True})

    async def RunSchedule(self, request: pb.RunScheduleRequest, context: Any) -> pb.ScheduledRun:
        tenant_id = TenantId.parse(request.tenant_id)
        work = self._use.calendar.run_now(tenant_id, request.config_id, _key(request.request_id))
        return wire.run(await self._to_its_end(work))

    async def ListScheduledRuns(
        self, request: pb.ListScheduledRunsRequest, context: Any
    ) -> pb.ListScheduledRunsResponse:
        tenant_id = TenantId.parse(request.tenant_id)
        scope, page = self._page(request, f"{tenant_id}/schedules/{request.config_id}/runs")
        found = await self._use.calendar.runs(tenant_id, request.config_id, page.size + 1, wire.opened(page.cursor))
        shown, token = self._pages.cut(found, page, lambda row: wire.cursor(row.scheduled_for, row.run_id), scope=scope)
        return pb.ListScheduledRunsResponse(runs=[wire.run(row) for row in shown], next_page_token=token)

    async def CancelScheduledRun(self, request: pb.CancelScheduledRunRequest, context: Any) -> pb.ScheduledRun:
        work = self._use.runs.cancel(TenantId.parse(request.tenant_id), request.run_id)
        return wire.run(await self._to_its_end(work))

    # ------------------------------------------------------------------ backfills

    async def CreateBackfill(self, request: pb.CreateBackfillRequest, context: Any) -> pb.Backfill:
        work = self._use.backfills.create(
            TenantId.parse(request.tenant_id),
            {**wire.pipeline(request), "parameters": wire.parameters(request)},
            wire.day("start_date", request.start_date),
            wire.day("end_date", request.end_date),
            _key(request.request_id),
        )
        return wire.backfill(await self._to_its_end(work))

    async def ListBackfills(self, request: pb.ListBackfillsRequest, context: Any) -> pb.ListBackfillsResponse:
        tenant_id = await self._known(request.tenant_id)
        scope, page = self._page(request, f"{tenant_id}/backfills")
        found = await self._use.backfills.list(tenant_id, page.size + 1, wire.opened(page.cursor))
        shown, token = self._pages.cut(
            found, page, lambda row: wire.cursor(row.created_at, row.backfill_id), scope=scope
        )
        return pb.ListBackfillsResponse(backfills=[wire.backfill(row) for row in shown], next_page_token=token)

    async def GetBackfill(self, request: pb.GetBackfillRequest, context: Any) -> pb.Backfill:
        return wire.backfill(await self._use.backfills.get(TenantId.parse(request.tenant_id), request.backfill_id))

    async def CancelBackfill(self, request: pb.CancelBackfillRequest, context: Any) -> pb.Backfill:
        work = self._use.backfills.cancel(TenantId.parse(request.tenant_id), request.backfill_id)
        return wire.backfill(await self._to_its_end(work))

    # ------------------------------------------------------------------ shared

    async def _update(self, tenant_id: str, config_id: str, values: dict[str, Any]) -> pb.Schedule:
        work = self._use.calendar.update(TenantId.parse(tenant_id), config_id, values)
        return wire.schedule(await self._to_its_end(work))

    async def _known(self, text: str) -> TenantId:
        """The tenant of a list; the platform admin, who may name any, is told if there is none."""
        tenant_id = TenantId.parse(text)
        if caller.current().role is Role.PLATFORM_ADMIN:
            await self._use.tenants.check_exists(tenant_id)
        return tenant_id

    def _page(self, request: Any, scope: str) -> tuple[str, Page]:
        return scope, self._pages.open(request.page_size, request.page_token, scope=scope)


def _within(seconds: float) -> timedelta:
    """As many seconds, but no more than the caller waits for."""
    remaining = caller.remaining()
    return timedelta(seconds=seconds if remaining is None else max(0.0, min(seconds, remaining - _MARGIN)))


def _key(request_id: str) -> str | None:
    return caller.idempotency_key() or request_id or None
