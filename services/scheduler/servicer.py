"""The rpcs of the schedule service: decode, call the use case, encode. No rules and no SQL here."""

from __future__ import annotations

from typing import Any

from convergence.scheduler.v1 import scheduler_pb2 as pb
from convergence.scheduler.v1 import scheduler_pb2_grpc as rpc

from libs.errors import Unimplemented


def _not_yet() -> Unimplemented:
    return Unimplemented("NOT_IMPLEMENTED", "The contract names this method; it is not served yet.")


class ScheduleServicer(rpc.ScheduleServiceServicer):
    """Serves ``convergence.scheduler.v1.ScheduleService``."""

    async def Trigger(self, request: pb.TriggerRequest, context: Any) -> pb.TriggerResponse:
        raise _not_yet()

    async def ProcessQueue(self, request: pb.ProcessQueueRequest, context: Any) -> pb.ProcessQueueResponse:
        raise _not_yet()

    async def ResetDailyQuotas(self, request: pb.ResetDailyQuotasRequest, context: Any) -> pb.ResetDailyQuotasResponse:
        raise _not_yet()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        raise _not_yet()

    async def CheckInvariants(self, request: pb.CheckInvariantsRequest, context: Any) -> pb.CheckInvariantsResponse:
        raise _not_yet()

    async def ListQueue(self, request: pb.ListQueueRequest, context: Any) -> pb.ListQueueResponse:
        raise _not_yet()

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        raise _not_yet()

    async def RequeueDeadLetter(self, request: pb.RequeueDeadLetterRequest, context: Any) -> pb.ScheduledRun:
        raise _not_yet()

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> pb.ListSchedulesResponse:
        raise _not_yet()

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Any) -> pb.Schedule:
        raise _not_yet()

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> pb.Schedule:
        raise _not_yet()

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Any) -> pb.Schedule:
        raise _not_yet()

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Any) -> pb.Schedule:
        raise _not_yet()

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Any) -> pb.Schedule:
        raise _not_yet()

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Any) -> pb.Schedule:
        raise _not_yet()

    async def RunSchedule(self, request: pb.RunScheduleRequest, context: Any) -> pb.ScheduledRun:
        raise _not_yet()

    async def ListScheduledRuns(
        self, request: pb.ListScheduledRunsRequest, context: Any
    ) -> pb.ListScheduledRunsResponse:
        raise _not_yet()

    async def CancelScheduledRun(self, request: pb.CancelScheduledRunRequest, context: Any) -> pb.ScheduledRun:
        raise _not_yet()

    async def CreateBackfill(self, request: pb.CreateBackfillRequest, context: Any) -> pb.Backfill:
        raise _not_yet()

    async def ListBackfills(self, request: pb.ListBackfillsRequest, context: Any) -> pb.ListBackfillsResponse:
        raise _not_yet()

    async def GetBackfill(self, request: pb.GetBackfillRequest, context: Any) -> pb.Backfill:
        raise _not_yet()

    async def CancelBackfill(self, request: pb.CancelBackfillRequest, context: Any) -> pb.Backfill:
        raise _not_yet()
