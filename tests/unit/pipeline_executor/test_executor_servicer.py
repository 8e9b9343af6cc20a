"""The executor's unary methods under ``grpc_testing``: what is decoded, what is answered, which error is which code."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as pb
from google.protobuf import json_format
from google.protobuf.message import Message

from libs.errors import FailedPrecondition
from libs.pages import Pages
from libs.tenancy import Caller, Role
from services.pipeline_executor.servicer import PipelineDispatchServicer, PipelineServicer, RunOwnerServicer
from tests.support.executor import TEMPLATES, Script, World
from tests.support.grpc import Reply, TestingServer, testing_server

PUBLIC = pb.DESCRIPTOR.services_by_name["PipelineService"]
DISPATCH = pb.DESCRIPTOR.services_by_name["PipelineDispatchService"]
OWNER = pb.DESCRIPTOR.services_by_name["RunOwnerService"]
CALLER = Caller(Role.RUNNER, "acme", "key_1", user_id="ada")


class Lazy:
    """A servicer that is made on the loop that serves it."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(request: Message, context: grpc.ServicerContext) -> Any:
            return await getattr(self._make(), name)(request, context)

        return call


class Executor:
    """One executor process in a world of its own, behind a testing server."""

    def __init__(self) -> None:
        self.world = World()
        self.world.default_script = Script(seconds=0.05)
        self.server: TestingServer
        self._process: Any = None

    @property
    def process(self) -> Any:
        self._process = self._process or self.world.boot("a", max_runs=4)
        return self._process

    def servicers(self) -> dict[Any, object]:
        def public() -> object:
            parts = {
                "runs": self.process.runs,
                "watch": self.process.watch,
                "templates": TEMPLATES,
                "costs": None,
                "compliance": None,
                "pages": Pages(b"secret", default_size=100),
            }
            # Use cases that are tested elsewhere are given only if the servicer asks for them.
            asked = inspect.signature(PipelineServicer).parameters
            return PipelineServicer(**{name: part for name, part in parts.items() if name in asked})

        return {
            PUBLIC: Lazy(public),
            DISPATCH: Lazy(lambda: PipelineDispatchServicer(self.process.runs, TEMPLATES)),
            OWNER: Lazy(lambda: RunOwnerServicer(self.process.watch, self.process.executions)),
        }

    def call(self, service: Any, name: str, request: Message, **kwargs: Any) -> Reply:
        return self.server.call(service.methods_by_name[name], request, **kwargs)

    def run(self, key: str = "", **changes: Any) -> Reply:
        fields = {"tenant_id": "acme", "provider": "GCP", "domain": "cost", "template": "billing", "date": "2025-11-16"}
        metadata = [("idempotency-key", key)] if key else []
        return self.call(PUBLIC, "RunPipeline", pb.RunPipelineRequest(**{**fields, **changes}), metadata=metadata)

    def ended(self, run_id: str) -> pb.Run:
        for _ in range(500):
            reply = self.call(PUBLIC, "GetRun", pb.GetRunRequest(tenant_id="acme", pipeline_logging_id=run_id))
            if reply.response.status not in (pb.Run.RUNNING, pb.Run.CANCELLING):
                return reply.response
            time.sleep(0.01)
        raise AssertionError("it never ended")


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor()
    with testing_server(made.servicers(), caller=CALLER) as made.server:
        yield made


def test_a_run_on_the_wire_is_as_the_contract_says(executor: Executor) -> None:
    reply = executor.run()
    assert reply.code is grpc.StatusCode.OK
    started = json_format.MessageToDict(reply.response, preserving_proto_field_name=True)
    assert (
        started.items()
        >= {
            "tenant_id": "acme",
            "provider": "gcp",
            "domain": "cost",
            "template": "billing",
            "start_date": "2025-11-16",
            "end_date": "2025-11-16",
            "status": "RUNNING",
            "trigger": "MANUAL",
            "user_id": "ada",
            "attempt": 1,
        }.items()
    )
    done = executor.ended(started["pipeline_logging_id"])
    assert (done.status, done.outcome, done.rows_published) == (pb.Run.COMPLETED, pb.Run.PUBLISHED, 7)
    assert [(step.step, step.status, step.tries) for step in done.steps] == [
        ("extract", pb.Step.COMPLETED, 1),
        ("publish", pb.Step.COMPLETED, 1),
    ]
    assert done.HasField("end_time")
    assert not done.HasField("error")


def test_the_header_wins_over_the_body(executor: Executor) -> None:
    one = executor.run("k1", request_id="k2").response.pipeline_logging_id
    assert executor.run("k1").response.pipeline_logging_id == one
    assert executor.run(request_id="k1").response.pipeline_logging_id == one
    assert executor.run("k2").response.pipeline_logging_id != one


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"template": "x"}, grpc.StatusCode.NOT_FOUND, "TEMPLATE_NOT_FOUND"),
        ({"tenant_id": "No Such"}, grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND"),
        ({"date": "2999-01-01"}, grpc.StatusCode.INVALID_ARGUMENT, "DATE_IN_FUTURE"),
        ({"parameters": {"colour": "red"}}, grpc.StatusCode.INVALID_ARGUMENT, "PARAMETERS_INVALID"),
    ],
)
def test_refusals_have_a_code_and_a_reason(
    executor: Executor, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    reply = executor.run(**changes)
    assert (reply.code, reply.reason) == (code, reason)


def test_a_failed_run_says_why(executor: Executor) -> None:
    executor.world.default_script = Script(0.01, FailedPrecondition("SOURCE_NOT_FOUND", "Name the table."))
    done = executor.ended(executor.run().response.pipeline_logging_id)
    assert done.status == pb.Run.FAILED
    assert (done.error.reason, done.error.message, done.error.retryable) == (
        "SOURCE_NOT_FOUND",
        "Name the table.",
        False,
    )
    assert done.steps[0].error.reason == "SOURCE_NOT_FOUND"


def test_lists_are_paged_and_their_tokens_bound_to_the_filter(executor: Executor) -> None:
    ids = set()
    for _ in range(5):
        run_id = executor.run().response.pipeline_logging_id
        ids.add(run_id)
        executor.ended(run_id)
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListRunsRequest(tenant_id="acme", page_size=2, page_token=token, provider="GCP")
        page = executor.call(PUBLIC, "ListRuns", request).response
        seen += [run.pipeline_logging_id for run in page.runs]
        assert not any(run.steps for run in page.runs)
        token = page.next_page_token
        if not token:
            break
    assert (len(seen), set(seen)) == (5, ids)
    first = executor.call(PUBLIC, "ListRuns", pb.ListRunsRequest(tenant_id="acme", page_size=2)).response
    other = pb.ListRunsRequest(tenant_id="acme", page_token=first.next_page_token, status=pb.Run.FAILED)
    assert executor.call(PUBLIC, "ListRuns", other).reason == "PAGE_TOKEN_INVALID"


def test_steps_and_results_of_a_run(executor: Executor) -> None:
    run_id = executor.run().response.pipeline_logging_id
    executor.ended(run_id)
    names: list[str] = []
    token = ""
    for _ in range(100):
        request = pb.ListStepsRequest(tenant_id="acme", pipeline_logging_id=run_id, page_size=1, page_token=token)
        page = executor.call(PUBLIC, "ListSteps", request).response
        names += [step.step for step in page.steps]
        token = page.next_page_token
        if names and not token:
            break
        time.sleep(0.01)
    assert names == ["extract", "publish"]
    request = pb.ListDqResultsRequest(tenant_id="acme", pipeline_logging_id=run_id)
    assert executor.call(PUBLIC, "ListDqResults", request).code is grpc.StatusCode.OK


@pytest.mark.parametrize("run_id", ["600bc052-688a-432f-8c79-c55729ef85b7", "x", "../x"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GetRun", pb.GetRunRequest),
        ("ListSteps", pb.ListStepsRequest),
        ("ListDqResults", pb.ListDqResultsRequest),
        ("CancelRun", pb.CancelRunRequest),
    ],
)
def test_what_is_not_there_is_not_found(executor: Executor, name: str, kind: type[Message], run_id: str) -> None:
    reply = executor.call(PUBLIC, name, kind(tenant_id="acme", pipeline_logging_id=run_id))
    assert (reply.code, reply.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


def test_a_cancelled_run(executor: Executor) -> None:
    executor.world.default_script = Script(seconds=60)
    run_id = executor.run().response.pipeline_logging_id
    request = pb.CancelRunRequest(tenant_id="acme", pipeline_logging_id=run_id)
    assert executor.call(PUBLIC, "CancelRun", request).response.status == pb.Run.CANCELLING
    assert executor.ended(run_id).status == pb.Run.CANCELLED
    reply = executor.call(PUBLIC, "CancelRun", request)
    assert (reply.code, reply.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED")


def test_templates_are_listed(executor: Executor) -> None:
    page = executor.call(PUBLIC, "ListTemplates", pb.ListTemplatesRequest()).response
    assert "gcp/cost/billing" in {f"{item.provider}/{item.domain}/{item.template}" for item in page.templates}
    assert all(item.steps and item.tables and item.description for item in page.templates)


def test_the_scheduler_starts_asks_and_cancels(executor: Executor) -> None:
    executor.world.default_script = Script(seconds=60)
    run_id = str(uuid.uuid4())
    request = pb.StartRunRequest(
        tenant_id="acme",
        run_id=run_id,
        attempt=1,
        provider="gcp",
        domain="cost",
        template="billing",
        start_date="2025-11-15",
        end_date="2025-11-16",
        trigger=pb.Run.BACKFILL,
        config_id="c1",
        user_id="eve",
    )
    started = executor.call(DISPATCH, "StartRun", request).response
    assert (started.pipeline_logging_id, started.attempt, started.trigger) == (run_id, 1, pb.Run.BACKFILL)
    assert started.user_id == "eve"
    assert executor.call(DISPATCH, "StartRun", request).response.pipeline_logging_id == run_id
    key = pb.BatchGetRunsRequest.Key(tenant_id="acme", run_id=run_id, attempt=1)
    missing = pb.BatchGetRunsRequest.Key(tenant_id="acme", run_id=str(uuid.uuid4()), attempt=1)
    batch = executor.call(DISPATCH, "BatchGetRuns", pb.BatchGetRunsRequest(keys=[missing, key])).response
    assert [run.pipeline_logging_id for run in batch.runs] == [run_id]
    cancel = pb.CancelDispatchedRunRequest(tenant_id="acme", run_id=run_id)
    assert executor.call(DISPATCH, "CancelDispatchedRun", cancel).response.status == pb.Run.CANCELLING
    assert executor.ended(run_id).status == pb.Run.CANCELLED


def test_the_scheduler_reads_how_far_back_a_template_still_changes(executor: Executor) -> None:
    asked = pb.GetTemplateRequest(provider="GCP", domain="cost", template="billing")
    assert executor.call(DISPATCH, "GetTemplate", asked).response.refresh_window_days == 10
    nowhere = pb.GetTemplateRequest(provider="gcp", domain="cost", template="nowhere")
    assert executor.call(DISPATCH, "GetTemplate", nowhere).code is grpc.StatusCode.NOT_FOUND


def test_a_notice_for_a_run_that_is_not_here_is_fine(executor: Executor) -> None:
    request = pb.NotifyCancelRequest(tenant_id="acme", run_id=str(uuid.uuid4()), attempt=1)
    assert executor.call(OWNER, "NotifyCancel", request).code is grpc.StatusCode.OK
