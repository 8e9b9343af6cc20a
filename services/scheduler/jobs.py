"""What the CronJobs run: one synchronous call of one job, one log line, one exit code.

``convergence-trigger``, ``convergence-process-queue`` and ``convergence-reset-daily-quotas`` are console scripts of the
project's own image. The invariant: exit code 0 means that the job has done its work, so Kubernetes may count on it; a
call that is repeated because nobody knows its outcome does no harm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import grpc
from convergence.scheduler.v1 import scheduler_pb2 as pb
from convergence.scheduler.v1 import scheduler_pb2_grpc as rpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from pydantic import Field

from libs import grpc_client, logs
from libs.errors import Error
from libs.settings import Address, ServiceSettings, SettingsInvalid, load
from services.scheduler.domain import Job

_SERVICE = "convergence.scheduler.v1.ScheduleService"
# The scheduler stops earlier by itself; this is for the case that it does not answer at all.
_SECONDS = 300.0


class JobSettings(ServiceSettings):
    """What a CronJob reads: where the scheduler is, and the identity of the peer ``cron``."""

    service: ClassVar[str] = "cron"

    gcp_project_id: str = Field(
        default="", validation_alias="GCP_PROJECT_ID", description="not needed here", examples=["my-project-123"]
    )
    scheduler_address: Address = Field(
        default="scheduler:50051", description="the gRPC port of the scheduler", examples=["scheduler:50051"]
    )


def call(job: Job, channel: grpc.Channel, *, time_budget_seconds: int | None = None) -> int:
    """Calls the job over ``channel``, says in one log line what happened, and returns the exit code."""
    log = logs.get("cron")
    began = time.monotonic()
    try:
        answer = _method(job, channel, time_budget_seconds)()
    except Error as error:
        log.error(
            "job_failed",
            job=job.value,
            kind=error.kind,
            reason=error.reason,
            message=error.message,
            seconds=round(time.monotonic() - began, 3),
        )
        return 1
    counts = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    log.info("job_done", job=job.value, seconds=round(time.monotonic() - began, 3), **counts)
    return 0


def _method(job: Job, channel: grpc.Channel, time_budget_seconds: int | None) -> Callable[[], Message]:
    # The stub is typed for coroutines; the generated class serves both kinds of channel.
    stub = rpc.ScheduleServiceStub(channel)  # type: ignore[arg-type]
    match job:
        case Job.TRIGGER:
            return lambda: _wait(stub.Trigger(pb.TriggerRequest(), timeout=_SECONDS))
        case Job.PROCESS_QUEUE:
            request = pb.ProcessQueueRequest(time_budget_seconds=time_budget_seconds)
            return lambda: _wait(stub.ProcessQueue(request, timeout=_SECONDS))
        case Job.RESET_DAILY_QUOTAS:
            return lambda: _wait(stub.ResetDailyQuotas(pb.ResetDailyQuotasRequest(), timeout=_SECONDS))


def _wait(answer: object) -> Message:
    """The answer of a synchronous stub, which is no promise of one."""
    assert isinstance(answer, Message)
    return answer


def main(job: Job, argv: Sequence[str] | None = None) -> int:
    """Runs a console script and returns its exit code: 0 done, 1 failed, 2 bad settings."""
    parser = argparse.ArgumentParser(prog=f"convergence-{job.value}", description=f"Asks the scheduler to {job.value}.")
    if job is Job.PROCESS_QUEUE:
        parser.add_argument("--time-budget-seconds", type=int, help="how long to work (default: the scheduler's, 240)")
    arguments = vars(parser.parse_args(argv))
    try:
        settings = load(JobSettings)
        token, tls = settings.peers().own_token, settings.tls()
    except SettingsInvalid as exc:
        print(exc, file=sys.stderr)  # noqa: T201  there are no logs yet
        return 2
    logs.configure(settings.log_level, service=settings.service)
    to = settings.scheduler_address
    with grpc_client.sync_channel(to, peer="scheduler", token=token, tls=tls, idempotent=[_SERVICE]) as channel:
        return call(job, channel, time_budget_seconds=arguments.get("time_budget_seconds"))


def trigger() -> None:
    """Entry point of ``convergence-trigger``."""
    raise SystemExit(main(Job.TRIGGER))


def process_queue() -> None:
    """Entry point of ``convergence-process-queue``."""
    raise SystemExit(main(Job.PROCESS_QUEUE))


def reset_daily_quotas() -> None:
    """Entry point of ``convergence-reset-daily-quotas``."""
    raise SystemExit(main(Job.RESET_DAILY_QUOTAS))
