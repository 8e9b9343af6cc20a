"""The servicer under ``grpc_testing``: what goes over the wire, both ways, for every rpc of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import grpc
import pytest
from convergence.scheduler.v1 import scheduler_pb2 as pb
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from libs import caller
from libs.errors import FailedPrecondition
from libs.finishing import Finishing
from libs.pages import Pages
from libs.tenancy import Caller, Role, TenantId
from services.scheduler.domain import AttemptStatus, State
from services.scheduler.servicer import ScheduleServicer
from tests.support.grpc import Reply, TestingServer, testing_server
from tests.support.scheduler_world import HOUR, World

ACME, DAY = TenantId("acme"), date(2025, 11, 1)
PIPELINE = {"provider": "gcp", "domain": "cost", "template": "billing"}
SERVICE = pb.DESCRIPTOR.services_by_name["ScheduleService"]
HOURLY = {"tenant_id": "acme", "provider": "GCP", "domain": "cost", "template": "Billing", "cron": "0 * * * *"}


class Client:
    """Calls methods by name with JSON, as the gateway does."""

    def __init__(self, server: TestingServer, world: World) -> None:
        self.server = server
        self.world = world

    def reply(self, method: str, *, key: str = "", **body: Any) -> Reply:
        descriptor = SERVICE.methods_by_name[method]
        request = ParseDict(body, _message(descriptor.input_type.name))
        return self.server.call(descriptor, request, metadata=[("idempotency-key", key)] if key else [])

    def call(self, method: str, *, key: str = "", **body: Any) -> dict[str, Any]:
        reply = self.reply(method, key=key, **body)
        assert reply.code is grpc.StatusCode.OK, reply
        assert isinstance(reply.response, _type(SERVICE.methods_by_name[method].output_type.name))
        return MessageToDict(reply.response, preserving_proto_field_name=True)

    def refused(self, method: str, **body: Any) -> tuple[str, str]:
        reply = self.reply(method, **body)
        assert reply.code is not grpc.StatusCode.OK
        return reply.code.name, reply.reason


def _type(name: str) -> type[Message]:
    found: type[Message] = getattr(pb, name)
    return found


def _message(name: str) -> Message:
    return _type(name)()


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    opened = []

    def start(role: Role = Role.ADMIN, tenant_id: str = "acme") -> Client:
        world = World()
        servicer = ScheduleServicer(world.use, Pages(b"secret", default_size=100), Finishing())
        manager = testing_server({SERVICE: servicer}, caller=Caller(role, tenant_id, "key_1"))
        opened.append(manager)
        return Client(manager.__enter__(), world)

    yield start
    for manager in opened:
        manager.__exit__(None, None, None)


@pytest.fixture
def client(serve: Callable[..., Client]) -> Client:
    return serve()


def test_a_schedule_over_the_wire(client: Client) -> None:
    made = client.call(
        "CreateSchedule",
        **HOURLY,
        timezone="Europe/Berlin",
        parameters={"source": {"project_id": "p"}, "n": 3},
        overlap_policy="ALLOW",
        refresh_window_days=2,
        max_retries=0,
        name="nightly",
    )
    config_id = made.pop("config_id")
    times = [f"2025-11-17T{hour}:00:00Z" for hour in range(13, 23)]
    assert made == {
        "tenant_id": "acme",
        "provider": "gcp",
        "domain": "cost",
        "template": "billing",
        "cron": "0 * * * *",
        "timezone": "Europe/Berlin",
        "priority": 5,
        "parameters": {"source": {"project_id": "p"}, "n": 3.0},
        "overlap_policy": "ALLOW",
        "catchup_policy": "LAST",
        "refresh_window_days": 2,
        "is_active": True,
        "next_run_time": times[0],
        "next_run_times": times,
        "name": "nightly",
        "catchup_limit": 24,
        "date_offset_days": 1,
        "create_time": "2025-11-17T12:00:00Z",
        "update_time": "2025-11-17T12:00:00Z",
    }
    read = client.call("GetSchedule", tenant_id="acme", config_id=config_id)
    assert read == {**made, "config_id": config_id}
    assert client.call("ListSchedules", tenant_id="acme") == {"pipelines": [read]}


def test_defaults_and_zeroes_are_told_apart(client: Client) -> None:
    made = client.call("CreateSchedule", **HOURLY, max_retries=0, date_offset_days=0, is_active=False)
    [row] = client.world.store.schedules
    assert (row.max_retries, row.date_offset_days, row.is_active, row.timezone) == (0, 0, False, "UTC")
    assert "next_run_times" not in made and "is_active" not in made
    client.call("UpdateSchedule", tenant_id="acme", config_id=made["config_id"], refresh_window_days=0, name="")
    changed = client.call("UpdateSchedule", tenant_id="acme", config_id=made["config_id"], priority=1, is_active=True)
    assert (changed["priority"], changed["is_active"], changed["next_run_time"]) == (1, True, "2025-11-17T13:00:00Z")
    client.call(
        "UpdateSchedule",
        tenant_id="acme",
        config_id=made["config_id"],
        overlap_policy="QUEUE_ONE",
        catchup_policy="NONE",
        parameters={},
        cron=" @daily ",
    )
    [row] = client.world.store.schedules
    assert (row.overlap_policy, row.catchup_policy, row.parameters, row.cron) == ("QUEUE_ONE", "NONE", None, "@daily")


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"cron": "* * * * * *"}, "INVALID_ARGUMENT", "CRON_INVALID"),
        ({"timezone": "Mars/Olympus"}, "INVALID_ARGUMENT", "TIMEZONE_UNKNOWN"),
        ({"parameters": {"x": "y" * 20_000}}, "INVALID_ARGUMENT", "PARAMETERS_TOO_LONG"),
        ({"tenant_id": "x_1"}, "INVALID_ARGUMENT", "TENANT_ID_INVALID"),
    ],
)
def test_bad_schedules(client: Client, change: dict[str, Any], code: str, reason: str) -> None:
    assert client.refused("CreateSchedule", **{**HOURLY, **change}) == (code, reason)


def test_the_header_wins_over_the_body_as_idempotency_key(client: Client) -> None:
    first = client.call("CreateSchedule", key="k", **HOURLY, request_id="other")
    assert client.call("CreateSchedule", key="k", **HOURLY) == first
    assert client.call("CreateSchedule", **HOURLY, request_id="k") == first
    assert client.call("CreateSchedule", **HOURLY) != first
    reply = client.reply("CreateSchedule", key="k", **{**HOURLY, "cron": "@daily"})
    assert reply.reason == "IDEMPOTENCY_KEY_REUSED"


def test_pausing_resuming_running_deleting(client: Client) -> None:
    made = client.call("CreateSchedule", **HOURLY)
    one = {"tenant_id": "acme", "config_id": made["config_id"]}
    paused = client.call("PauseSchedule", **one)
    assert "is_active" not in paused and "next_run_time" not in paused
    assert client.call("ResumeSchedule", **one)["is_active"] is True
    run = client.call("RunSchedule", **one, request_id="r")
    assert client.call("RunSchedule", **one, request_id="r") == run
    assert (run["state"], run["start_date"], run["end_date"], run["attempt"], run["occurrence_count"]) == (
        "QUEUED", "2025-11-16", "2025-11-16", 1, 1,
    )  # fmt: skip
    assert client.call("ListScheduledRuns", **one) == {"runs": [run]}
    assert client.call("CancelScheduledRun", tenant_id="acme", run_id=run["run_id"])["state"] == "CANCELLED"
    assert client.call("DeleteSchedule", **one)["config_id"] == made["config_id"]
    assert client.refused("GetSchedule", **one) == ("NOT_FOUND", "SCHEDULE_NOT_FOUND")
    assert client.refused("CancelScheduledRun", tenant_id="acme", run_id="absent") == ("NOT_FOUND", "RUN_NOT_FOUND")


def test_lists_come_in_pages(client: Client) -> None:
    made = [client.call("CreateSchedule", **HOURLY)["config_id"] for _ in range(5)]
    seen, token = [], ""
    for _ in range(3):
        page = client.call("ListSchedules", tenant_id="acme", page_size=2, page_token=token)
        seen += [row["config_id"] for row in page["pipelines"]]
        token = page.get("next_page_token", "")
    assert sorted(seen) == sorted(made) and token == ""
    assert client.refused("ListSchedules", tenant_id="acme", page_token="forged") == (
        "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID",
    )  # fmt: skip
    for n in range(3):
        client.call("RunSchedule", tenant_id="acme", config_id=made[n])
    first = client.call("ListQueue", page_size=2)
    rest = client.call("ListQueue", page_size=2, page_token=first["next_page_token"])
    assert len(first["runs"]) == 2 and len(rest["runs"]) == 1
    assert client.refused("ListQueue", page_size=2, state="DEFERRED", page_token=first["next_page_token"]) == (
        "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID",
    )  # fmt: skip
    assert client.call("ListQueue", state="DEFERRED") == {}


def test_the_jobs_and_what_they_say(client: Client) -> None:
    client.call("CreateSchedule", **HOURLY)
    client.world.clock.advance(HOUR)
    assert client.call("Trigger") == {"triggered_count": 1, "queued_count": 1}
    client.world.at_once(AttemptStatus.FAILED)
    done = client.call("ProcessQueue", time_budget_seconds=0)
    assert done == {"started_count": 1, "failed_count": 1, "dead_letter_count": 1}
    [letter] = client.call("ListDeadLetters")["runs"]
    assert (letter["state"], letter["reason"]) == ("DEAD_LETTER", "SCRIPTED")
    status = client.call("GetStatus")
    assert (status["queued_by_state"], status["failed_last_day"]) == ({"DEAD_LETTER": 1}, 1)
    assert [(job["job"], job["outcome"]) for job in status["jobs"]] == [("process-queue", "OK"), ("trigger", "OK")]
    assert client.call("RequeueDeadLetter", run_id=letter["run_id"])["state"] == "QUEUED"
    client.world.at_once()
    assert client.call("ProcessQueue")["completed_count"] == 1
    assert client.refused("RequeueDeadLetter", run_id=letter["run_id"]) == ("NOT_FOUND", "RUN_NOT_FOUND")
    assert client.call("ResetDailyQuotas") == {"reset_count": 1}
    invariants = client.call("CheckInvariants")
    assert "violation_count" not in invariants
    assert all(each["description"] and "count" not in each for each in invariants["invariants"])


def test_skipped_occurrences_are_shown_with_their_reason(client: Client) -> None:
    made = client.call("CreateSchedule", **HOURLY)
    client.world.clock.advance(timedelta(days=3))
    assert client.call("Trigger") == {"triggered_count": 1, "queued_count": 1, "skipped_count": 71}
    runs = client.call("ListScheduledRuns", tenant_id="acme", config_id=made["config_id"])["runs"]
    assert (runs[0]["state"], runs[1]["state"], runs[1]["reason"]) == ("QUEUED", "SKIPPED", "MISSED")
    assert sum(run["occurrence_count"] for run in runs) == 72


def test_a_job_keeps_to_what_its_caller_waits_for(client: Client) -> None:
    client.call("CreateSchedule", **HOURLY)
    client.call("RunSchedule", tenant_id="acme", config_id=client.world.store.schedules[0].config_id)
    method = SERVICE.methods_by_name["ProcessQueue"]
    reply = client.server.call(method, pb.ProcessQueueRequest(), timeout=15.0)
    assert reply.response.running_count == 1
    assert client.world.clock() - datetime(2025, 11, 17, 12, tzinfo=UTC) <= timedelta(seconds=6)


def test_backfills_over_the_wire(client: Client) -> None:
    body = {"tenant_id": "acme", "provider": "gcp", "domain": "cost", "template": "billing"}
    made = client.call("CreateBackfill", **body, start_date="2025-11-01", end_date="2025-11-03", request_id="b")
    assert client.call("CreateBackfill", key="b", **body, start_date="2025-11-01", end_date="2025-11-03") == made
    assert made == {
        **body,
        "backfill_id": made["backfill_id"],
        "start_date": "2025-11-01",
        "end_date": "2025-11-03",
        "state": "RUNNING",
        "total_count": 3,
        "pending_count": 3,
        "create_time": "2025-11-17T12:00:00Z",
    }
    one = {"tenant_id": "acme", "backfill_id": made["backfill_id"]}
    client.world.at_once()
    client.call("ProcessQueue", time_budget_seconds=60)
    done = client.call("GetBackfill", **one)
    assert (done["state"], done["completed_count"]) == ("COMPLETED", 3)
    assert client.call("ListBackfills", tenant_id="acme") == {"backfills": [done]}
    other = client.call("CreateBackfill", **body, start_date="2025-11-01", end_date="2025-11-03")
    assert client.call("CancelBackfill", tenant_id="acme", backfill_id=other["backfill_id"])["state"] == "CANCELLED"
    assert client.refused("CreateBackfill", **body, start_date="2025-02-30", end_date="2025-11-03") == (
        "INVALID_ARGUMENT", "DATE_INVALID",
    )  # fmt: skip


def test_the_platform_admin_is_told_that_a_tenant_does_not_exist(serve: Callable[..., Client]) -> None:
    admin = serve(Role.PLATFORM_ADMIN, "")
    admin.world.tenants.gone = {"nobody"}
    for method in ("ListSchedules", "ListBackfills"):
        assert admin.refused(method, tenant_id="nobody") == ("NOT_FOUND", "TENANT_NOT_FOUND")
        assert admin.call(method, tenant_id="acme") == {}


def test_a_tenant_that_leaves_gets_no_new_schedule(client: Client) -> None:
    async def leaving(_tenant_id: str) -> None:
        raise FailedPrecondition("TENANT_OFFBOARDING", "The tenant is being offboarded.")

    client.world.tenants.check_staying = leaving  # type: ignore[method-assign]
    assert client.refused("CreateSchedule", **HOURLY) == ("FAILED_PRECONDITION", "TENANT_OFFBOARDING")


def test_every_rpc_of_the_contract_is_served() -> None:
    for method in SERVICE.methods:
        assert method.name in ScheduleServicer.__dict__, method.name


def written(world: World) -> list[object]:
    """All that people change."""
    return [*world.store.schedules, *world.store.queue_rows, *world.store.backfill_rows]


async def test_a_client_that_goes_away_does_not_part_a_change_from_its_record(world: World) -> None:
    finishing = Finishing()
    servicer = ScheduleServicer(world.use, Pages(b"secret", default_size=100), finishing)
    schedule, other = [await world.create() for _ in range(2)]
    run, letter = [await world.calendar.run_now(ACME, schedule.config_id, None) for _ in range(2)]
    world.store.queue_rows = [
        replace(item, state=State.DEAD_LETTER) if item.run_id == letter.run_id else item for item in world.items
    ]
    backfill = await world.backfills.create(ACME, {**PIPELINE, "parameters": None}, DAY, DAY, None)
    known = {"tenant_id": "acme", "config_id": schedule.config_id}
    dates = {"start_date": DAY.isoformat(), "end_date": DAY.isoformat()}
    for call, request, action in (
        (servicer.CreateSchedule, pb.CreateScheduleRequest(tenant_id="acme", cron="@daily", **PIPELINE), "create"),
        (servicer.UpdateSchedule, pb.UpdateScheduleRequest(**known, cron="@daily"), "update"),
        (servicer.PauseSchedule, pb.PauseScheduleRequest(**known), "pause"),
        (servicer.ResumeSchedule, pb.ResumeScheduleRequest(**known), "resume"),
        (servicer.RunSchedule, pb.RunScheduleRequest(**known), "run"),
        (servicer.DeleteSchedule, pb.DeleteScheduleRequest(tenant_id="acme", config_id=other.config_id), "delete"),
        (servicer.CancelScheduledRun, pb.CancelScheduledRunRequest(tenant_id="acme", run_id=run.run_id), "cancel"),
        (servicer.RequeueDeadLetter, pb.RequeueDeadLetterRequest(run_id=letter.run_id), "requeue"),
        (servicer.CreateBackfill, pb.CreateBackfillRequest(tenant_id="acme", **dates, **PIPELINE), "create"),
        (
            servicer.CancelBackfill,
            pb.CancelBackfillRequest(tenant_id="acme", backfill_id=backfill.backfill_id),
            "cancel",
        ),
    ):
        before, rows = len(world.audit.records), written(world)
        with caller.bind(Caller(Role.ADMIN, "acme", "key_1")):
            asking = asyncio.ensure_future(call(request, None))
        for _ in range(100):
            if written(world) == rows:
                await asyncio.sleep(0)
        assert written(world) != rows and len(world.audit.records) == before, "between the change and its record"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await finishing.close()
        recorded = [record.action.partition(".")[2] for record in world.audit.records[before:]]
        assert recorded == [action], call
