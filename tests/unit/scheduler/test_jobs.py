"""The console scripts under ``grpc_testing.channel``: one call, one log line, one exit code."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
import pytest
from convergence.scheduler.v1 import scheduler_pb2 as pb

from libs import errors, grpc_client, grpc_errors, logs
from libs.settings import write_peer_tokens
from services.scheduler import jobs
from services.scheduler.domain import Job

SERVICE = pb.DESCRIPTOR.services_by_name["ScheduleService"]


@dataclass
class Cron:
    """One console script being run against a scheduler that a test plays."""

    channel: grpc_testing.Channel
    capsys: pytest.CaptureFixture[str]

    def run(
        self, job: Job, method: str, answer: Callable[[Any], tuple[Any, Any, grpc.StatusCode, str]], **given: Any
    ) -> tuple[int, Any, dict[str, Any]]:
        """Exit code, the request that was sent, the one line that was logged."""
        logs.configure("INFO", service="cron")
        codes: list[int] = []
        wrapped = grpc_client.wrap(self.channel, token="cron-token-of-the-test")
        thread = threading.Thread(target=lambda: codes.append(jobs.call(job, wrapped, **given)))
        thread.start()
        metadata, request, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        assert ("x-peer-token", "cron-token-of-the-test") in list(metadata)
        response, trailers, code, details = answer(request)
        rpc.terminate(response, trailers, code, details)
        thread.join(10)
        lines = self.capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        return codes[0], request, json.loads(lines[0])


@pytest.fixture
def cron(capsys: pytest.CaptureFixture[str]) -> Iterator[Cron]:
    yield Cron(grpc_testing.channel([SERVICE], grpc_testing.strict_real_time()), capsys)


def ok(response: Any) -> Callable[[Any], tuple[Any, Any, grpc.StatusCode, str]]:
    return lambda _request: (response, (), grpc.StatusCode.OK, "")


def failed(error: errors.Error) -> Callable[[Any], tuple[Any, Any, grpc.StatusCode, str]]:
    return lambda _request: (None, grpc_errors.trailers(error), grpc_errors.code_of(error), error.message)


def test_trigger_says_what_was_due(cron: Cron) -> None:
    answer = pb.TriggerResponse(triggered_count=3, queued_count=2, skipped_count=1)
    code, _, line = cron.run(Job.TRIGGER, "Trigger", ok(answer))
    assert code == 0
    assert line["event"] == "job_done" and line["job"] == "trigger"
    assert (line["triggered_count"], line["queued_count"], line["skipped_count"]) == (3, 2, 1)


def test_process_queue_sends_its_budget_only_if_it_is_given(cron: Cron) -> None:
    code, request, line = cron.run(Job.PROCESS_QUEUE, "ProcessQueue", ok(pb.ProcessQueueResponse(started_count=7)))
    assert (code, line["started_count"], line["failed_count"]) == (0, 7, 0)
    assert not request.HasField("time_budget_seconds")
    _, request, _ = cron.run(Job.PROCESS_QUEUE, "ProcessQueue", ok(pb.ProcessQueueResponse()), time_budget_seconds=0)
    assert request.HasField("time_budget_seconds") and request.time_budget_seconds == 0


def test_reset_says_what_was_cleaned(cron: Cron) -> None:
    answer = pb.ResetDailyQuotasResponse(reset_count=4, deleted_count=9)
    code, _, line = cron.run(Job.RESET_DAILY_QUOTAS, "ResetDailyQuotas", ok(answer))
    assert (code, line["job"], line["reset_count"], line["deleted_count"]) == (0, "reset-daily-quotas", 4, 9)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.Unavailable("TRIGGER_UNFINISHED", "Schedules are still due; call again."), "TRIGGER_UNFINISHED"),
        (errors.PermissionDenied("ROLE_TOO_LOW", "This needs another key."), "ROLE_TOO_LOW"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(cron: Cron, error: errors.Error, reason: str) -> None:
    code, _, line = cron.run(Job.TRIGGER, "Trigger", failed(error))
    assert code == 1
    assert line["event"] == "job_failed" and line["reason"] == reason and line["level"] == "error"


def test_a_scheduler_that_is_not_there_is_a_failure_too(
    cron: Cron,
) -> None:
    code, _, line = cron.run(
        Job.TRIGGER, "Trigger", lambda _: (None, (), grpc.StatusCode.UNAVAILABLE, "connection refused to 10.0.0.7")
    )
    assert (code, line["kind"]) == (1, "UNAVAILABLE")
    assert "10.0.0.7" not in json.dumps(line)


def test_bad_settings_are_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVERGENCE_SCHEDULER_ADDRESS", "nowhere")
    assert jobs.main(Job.TRIGGER, []) == 2
    assert "CONVERGENCE_SCHEDULER_ADDRESS" in capsys.readouterr().err


def test_the_token_of_the_peer_cron_is_all_a_job_needs(tmp_path: Path) -> None:
    write_peer_tokens(tmp_path, ["cron"])
    settings = jobs.JobSettings(peers_dir=tmp_path, scheduler_address="scheduler:50051")
    assert settings.peers().own_token == (tmp_path / "cron.token").read_text()


@pytest.mark.parametrize(
    ("script", "job"),
    [
        (jobs.trigger, Job.TRIGGER),
        (jobs.process_queue, Job.PROCESS_QUEUE),
        (jobs.reset_daily_quotas, Job.RESET_DAILY_QUOTAS),
    ],
)
def test_each_console_script_runs_its_job(
    script: Callable[[], None], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Job] = []
    monkeypatch.setattr(jobs, "main", lambda given: ran.append(given) or 3)
    with pytest.raises(SystemExit) as exit_:
        script()
    assert (ran, exit_.value.code) == ([job], 3)
