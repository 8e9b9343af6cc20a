"""Ten times what a port admits: whoever is shed is told so at once, nobody falls, and afterwards all is as before."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from convergence.credential.v1 import credential_pb2, credential_pb2_grpc
from convergence.pipeline_executor.v1 import pipeline_executor_pb2, pipeline_executor_pb2_grpc
from convergence.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc

from tests.support.stack import Stack

_SECONDS = 6.0
_DEADLINE = 15.0
_RECOVERY_SECONDS = 60.0
_ALLOWED = {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
_GROWTH_BYTES = 300 * 2**20


async def flood(
    stack: Stack, tenant_id: str, *, in_flight: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Floods one replica of each service past the gateway, in its name; figures, and what was wrong."""
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    token = (Path(stack.data_dir) / "peers" / "gateway.token").read_text().strip()
    metadata = (("x-peer-token", token), ("x-tenant-id", tenant_id), ("x-role", "ADMIN"), ("x-key-id", "overload"))
    for name in ("tenant-1", "credential-1", "pipeline_executor-1", "scheduler-1"):
        process = stack.process(name)
        before = _memory(process.pid)
        async with grpc.aio.insecure_channel(stack.replicas[name]["address"]) as channel:
            call = _read(stack.replicas[name]["service"], channel, tenant_id, metadata)
            answers, shed_seconds = await _flood(call, in_flight)
            began = time.monotonic()
            while (code := await _code(call)) != "OK" and time.monotonic() - began < _RECOVERY_SECONDS:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        recovered = time.monotonic() - began
        grown = _memory(process.pid) - before
        figures[name] = {
            "answers": dict(answers),
            "recovered_seconds": round(recovered, 1),
            "memory_growth_mb": grown >> 20,
            "median_shed_seconds": shed_seconds,
        }
        say(f"  {name}: {dict(answers)}, well again after {recovered:.1f} s, {grown >> 20} MB more")
        if strange := set(answers) - _ALLOWED:
            wrong.append(f"overloaded, {name} answered {strange}")
        if not answers["OK"] or not answers["RESOURCE_EXHAUSTED"] + answers["UNAVAILABLE"]:
            wrong.append(f"overloaded, {name} answered {dict(answers)}: it should serve some and shed the rest")
        if code != "OK" or stack.process(name) != process:
            wrong.append(f"{name} did not survive the overload: {code}")
        if grown > _GROWTH_BYTES:
            wrong.append(f"{name} took {grown >> 20} MB more under overload")
    return figures, wrong


async def _flood(call: Callable[[], Any], in_flight: int) -> tuple[Counter[str], float]:
    answers: Counter[str] = Counter()
    shed: list[float] = []
    ends = time.monotonic() + _SECONDS

    async def client() -> None:
        while time.monotonic() < ends:
            began = time.monotonic()
            code = await _code(call)
            answers[code] += 1
            if code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
                shed.append(time.monotonic() - began)
                await asyncio.sleep(0.3)

    await asyncio.gather(*(client() for _ in range(in_flight)))
    return answers, round(sorted(shed)[len(shed) // 2], 3) if shed else 0.0


async def _code(call: Callable[[], Any]) -> str:
    try:
        await call()
    except grpc.aio.AioRpcError as exc:
        return exc.code().name
    return "OK"


def _read(
    service: str, channel: grpc.aio.Channel, tenant_id: str, metadata: tuple[tuple[str, str], ...]
) -> Callable[[], Any]:
    """A read of that service that asks the store."""
    stub: Any
    match service:
        case "tenant":
            stub, request = tenant_pb2_grpc.TenantServiceStub(channel).GetUsage, tenant_pb2.GetUsageRequest
        case "credential":
            stub = credential_pb2_grpc.CredentialServiceStub(channel).ListCredentials
            request = credential_pb2.ListCredentialsRequest
        case "pipeline_executor":
            stub = pipeline_executor_pb2_grpc.PipelineServiceStub(channel).ListRuns
            request = pipeline_executor_pb2.ListRunsRequest
        case _:
            stub = scheduler_pb2_grpc.ScheduleServiceStub(channel).ListSchedules
            request = scheduler_pb2.ListSchedulesRequest
    return lambda: stub(request(tenant_id=tenant_id), metadata=metadata, timeout=_DEADLINE)


def _memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
