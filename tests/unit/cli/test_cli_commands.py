"""Each command: what it asks of the API, what it shows, and that its JSON is the API's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from services.cli import api
from tests.support.cli import Gateway, Terminal, words

RUN = {
    "pipeline_logging_id": "0d3c",
    "tenant_id": "acme",
    "provider": "gcp",
    "domain": "cost",
    "template": "billing",
    "start_date": "2025-11-17",
    "end_date": "2025-11-17",
    "status": "COMPLETED",
    "outcome": "PUBLISHED",
    "rows_published": 1234567,
    "start_time": "2025-11-18T06:00:00Z",
    "end_time": "2025-11-18T06:00:12.5Z",
    "steps": [{"step": "extract", "status": "COMPLETED", "rows": 1234567}],
}
SCHEDULE = {
    "config_id": "7b1e",
    "name": "daily",
    "provider": "gcp",
    "domain": "cost",
    "template": "billing",
    "cron": "0 6 * * *",
    "timezone": "Europe/Berlin",
    "is_active": True,
    "next_run_times": ["2025-11-18T05:00:00Z", "2025-11-19T05:00:00Z"],
}
QUEUED = {"run_id": "0d3c", "tenant_id": "acme", "provider": "gcp", "state": "DEAD_LETTER", "error": "no bucket"}
BACKFILL = {"backfill_id": "51aa", "state": "RUNNING", "total_count": 8, "completed_count": 2, "pending_count": 6}
TENANT = {"tenant_id": "acme", "company_name": "Acme", "subscription_plan": "SCALE", "state": "ACTIVE"}
KEYS = {"api_key_id": "k1", "name": "ci", "role": "RUNNER", "state": "ACTIVE", "last4": "wxyz"}
STORED = {"credential_id": "c1", "provider": "GCP", "name": "default", "status": "VALID", "source": {"dataset_id": "d"}}
PIPELINE = {"provider": "gcp", "domain": "cost", "template": "billing"}
OF_ACME = {"tenant_id": "acme"}

# Arguments, rpc, what the request holds at least, the answer, and a text that the table shows.
ONE: list[tuple[list[str], str, dict[str, Any], dict[str, Any], str]] = [
    (["tenants", "get"], "tenant.GetTenant", OF_ACME, TENANT, "SCALE"),
    (
        ["tenants", "update", "--company", "Acme Ltd"],
        "tenant.UpdateTenant",
        {"company_name": "Acme Ltd"},
        TENANT,
        "Acme",
    ),
    (["tenants", "plan", "starter"], "tenant.UpdateTenant", {"subscription_plan": "STARTER"}, TENANT, "acme"),
    (["tenants", "suspend", "acme", "--reason", "r"], "tenant.SuspendTenant", {"reason": "r"}, TENANT, "acme"),
    (["tenants", "reactivate", "acme"], "tenant.ReactivateTenant", OF_ACME, TENANT, "acme"),
    (
        ["tenants", "delete", "acme", "--delete-dataset", "--yes"],
        "tenant.DeleteTenant",
        {"delete_dataset": True},
        TENANT,
        "acme",
    ),
    (
        ["keys", "create", "--role", "admin"],
        "tenant.CreateApiKey",
        {"role": "ADMIN"},
        {"api_key": "cvg_new"},
        "cvg_new",
    ),
    (["keys", "revoke", "k1", "--yes"], "tenant.DeleteApiKey", {"api_key_id": "k1"}, KEYS, "…wxyz"),
    (["whoami"], "tenant.GetCaller", {}, {"tenant_id": "acme", "role": "ADMIN"}, "ADMIN"),
    (["usage"], "tenant.GetUsage", OF_ACME, {"daily": {"limit": 25, "used": 5, "remaining": 20}}, "25"),
    (["credentials", "get", "c1"], "credential.GetCredential", {"credential_id": "c1"}, STORED, "dataset_id=d"),
    (["credentials", "validate", "c1"], "credential.ValidateCredential", {"credential_id": "c1"}, STORED, "VALID"),
    (
        ["credentials", "set-source", "c1", "--source", "project_id=1", "--source", "dataset_id=d"],
        "credential.UpdateCredential",
        {"source": {"project_id": "1", "dataset_id": "d"}},
        STORED,
        "c1",
    ),
    (["credentials", "delete", "c1", "-y"], "credential.DeleteCredential", {"credential_id": "c1"}, STORED, "c1"),
    (
        ["run", "gcp/cost/billing", "--date", "2025-11-17", "--param", "n=1", "--idempotency-key", "k"],
        "pipeline_executor.RunPipeline",
        {**PIPELINE, "date": "2025-11-17", "parameters": {"n": 1}, "request_id": "k"},
        RUN,
        "1,234,567",
    ),
    (["runs", "get", "0d3c"], "pipeline_executor.GetRun", {"pipeline_logging_id": "0d3c"}, RUN, "12.5 s"),
    (["runs", "cancel", "0d3c"], "pipeline_executor.CancelRun", {"pipeline_logging_id": "0d3c"}, RUN, "0d3c"),
    (
        ["schedules", "create", "gcp/cost/billing", "--cron", "0 6 * * *", "--overlap", "allow", "--paused"],
        "scheduler.CreateSchedule",
        {**PIPELINE, "cron": "0 6 * * *", "overlap_policy": "ALLOW", "is_active": False},
        SCHEDULE,
        "Europe/Berlin",
    ),
    (["schedules", "get", "7b1e"], "scheduler.GetSchedule", {"config_id": "7b1e"}, SCHEDULE, "0 6 * * *"),
    (["schedules", "update", "7b1e", "--priority", "8"], "scheduler.UpdateSchedule", {"priority": 8}, SCHEDULE, "7b1e"),
    (["schedules", "pause", "7b1e"], "scheduler.PauseSchedule", {"config_id": "7b1e"}, SCHEDULE, "7b1e"),
    (["schedules", "resume", "7b1e"], "scheduler.ResumeSchedule", {"config_id": "7b1e"}, SCHEDULE, "7b1e"),
    (["schedules", "run", "7b1e"], "scheduler.RunSchedule", {"config_id": "7b1e"}, QUEUED, "0d3c"),
    (["schedules", "delete", "7b1e", "--yes"], "scheduler.DeleteSchedule", {"config_id": "7b1e"}, SCHEDULE, "7b1e"),
    (["schedules", "cancel-run", "0d3c"], "scheduler.CancelScheduledRun", {"run_id": "0d3c"}, QUEUED, "no bucket"),
    (
        ["backfill", "start", "gcp/cost/billing", "--start-date", "2025-10-01", "--end-date", "2025-10-08"],
        "scheduler.CreateBackfill",
        {**PIPELINE, "start_date": "2025-10-01", "end_date": "2025-10-08"},
        BACKFILL,
        "25 %",
    ),
    (["backfill", "status", "51aa"], "scheduler.GetBackfill", {"backfill_id": "51aa"}, BACKFILL, "2/8"),
    (["backfill", "cancel", "51aa", "--yes"], "scheduler.CancelBackfill", {"backfill_id": "51aa"}, BACKFILL, "51aa"),
    (["queue", "requeue", "0d3c"], "scheduler.RequeueDeadLetter", {"run_id": "0d3c"}, QUEUED, "0d3c"),
    (["scheduler", "trigger"], "scheduler.Trigger", {}, {"queued_count": 7}, "7"),
    (
        ["scheduler", "process-queue", "--seconds", "5"],
        "scheduler.ProcessQueue",
        {"time_budget_seconds": 5},
        {},
        "started",
    ),
    (["scheduler", "reset-daily-quotas"], "scheduler.ResetDailyQuotas", {}, {"reset_count": 3}, "3"),
    (
        ["scheduler", "invariants"],
        "scheduler.CheckInvariants",
        {},
        {"invariants": [{"name": "OVERDUE", "description": "a late schedule"}]},
        "OVERDUE",
    ),
]
# The same for lists: what they hold stands under the name in the middle.
LISTS: list[tuple[list[str], str, str, dict[str, Any], dict[str, Any], str]] = [
    (["tenants", "list", "--state", "active"], "tenant.ListTenants", "tenants", {"state": "ACTIVE"}, TENANT, "Acme"),
    (
        ["tenants", "audit", "--action", "credential.open"],
        "tenant.ListAuditRecords",
        "audit_records",
        {"tenant_id": "acme", "action": "credential.open"},
        {"action": "credential.open", "actor": "k1", "outcome": "OK"},
        "k1",
    ),
    (["keys", "list"], "tenant.ListApiKeys", "api_keys", OF_ACME, KEYS, "…wxyz"),
    (
        ["credentials", "list", "--provider", "gcp"],
        "credential.ListCredentials",
        "credentials",
        {"provider": "gcp"},
        STORED,
        "VALID",
    ),
    (
        ["runs", "list", "--status", "failed", "--domain", "cost"],
        "pipeline_executor.ListRuns",
        "runs",
        {"status": "FAILED", "domain": "cost"},
        RUN,
        "gcp/cost/billing",
    ),
    (
        ["templates"],
        "pipeline_executor.ListTemplates",
        "templates",
        {},
        {**PIPELINE, "tables": ["t"]},
        "gcp/cost/billing",
    ),
    (["schedules", "list"], "scheduler.ListSchedules", "pipelines", OF_ACME, SCHEDULE, "daily"),
    (
        ["schedules", "runs", "7b1e"],
        "scheduler.ListScheduledRuns",
        "runs",
        {"config_id": "7b1e"},
        QUEUED,
        "DEAD_LETTER",
    ),
    (
        ["compliance", "--by", "standard,severity", "--provider", "aws"],
        "pipeline_executor.QueryCompliance",
        "compliance",
        {"group_by": ["standard", "severity"], "provider": "aws"},
        {"dimensions": {"standard": "CIS 1.4"}, "passed": 3, "failed": 1, "pass_rate": "0.7500"},
        "75.0%",
    ),
    (["backfill", "list"], "scheduler.ListBackfills", "backfills", OF_ACME, BACKFILL, "2/8"),
    (["queue", "list"], "scheduler.ListQueue", "runs", {}, QUEUED, "acme"),
    (["queue", "dead-letters"], "scheduler.ListDeadLetters", "runs", {}, QUEUED, "no bucket"),
    (
        ["costs", "--by", "service,account", "--compare"],
        "pipeline_executor.QueryCosts",
        "costs",
        {"group_by": ["service", "account"], "compare": True, "metric": "billed"},
        {"dimensions": {"service": "Compute", "day": "2025-11-17"}, "currency": "EUR", "cost": "1234.5678"},
        "1,234.57",
    ),
]
# Shown by tests of their own.
ELSEWHERE = {
    "tenant.OnboardTenant",
    "tenant.RotateApiKey",
    "credential.CreateCredential",
    "pipeline_executor.WatchRun",
    "pipeline_executor.ListSteps",
    "pipeline_executor.ListDqResults",
    "scheduler.GetStatus",
}


def as_gateway(rpc: str, answer: dict[str, Any]) -> Any:
    """An answer as the gateway prints it over REST."""
    from google.protobuf import message_factory

    message = message_factory.GetMessageClass(api._method(rpc).output_type)()
    json_format.ParseDict(answer, message)
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def test_every_public_rpc_has_a_command() -> None:
    public = {f"{context}.{method.name}" for context in api.SERVICES for method in api._methods(context)}
    assert {rpc for _, rpc, *_ in (*ONE, *LISTS)} | ELSEWHERE == public


@pytest.mark.parametrize(
    ("argv", "rpc", "request_has", "answer", "shown"), ONE, ids=lambda v: words(v) if isinstance(v, list) else ""
)
def test_a_command_asks_and_shows(
    gateway: Gateway,
    acme: Terminal,
    argv: list[str],
    rpc: str,
    request_has: dict[str, Any],
    answer: dict[str, Any],
    shown: str,
) -> None:
    gateway.answers[rpc] = answer
    read = acme.run(*argv)
    assert read.exit_code == 0, read.output
    assert shown in read.stdout
    assert acme.json(*argv) == as_gateway(rpc, answer)
    first, second = gateway.asked(rpc)
    assert request_has.items() <= first.items()
    assert request_has.items() <= second.items()


@pytest.mark.parametrize(
    ("argv", "rpc", "items", "request_has", "item", "shown"),
    LISTS,
    ids=lambda v: words(v) if isinstance(v, list) else "",
)
def test_a_list_asks_and_shows(
    gateway: Gateway,
    acme: Terminal,
    argv: list[str],
    rpc: str,
    items: str,
    request_has: dict[str, Any],
    item: dict[str, Any],
    shown: str,
) -> None:
    gateway.answers[rpc] = {items: [item]}
    read = acme.run(*argv)
    assert read.exit_code == 0, read.output
    assert shown in read.stdout
    assert acme.json(*argv) == as_gateway(rpc, {items: [item]})
    assert request_has.items() <= gateway.asked(rpc)[0].items()
    gateway.answers[rpc] = {}
    nothing = acme.run(*argv)
    assert (nothing.exit_code, nothing.stdout) == (0, "") and nothing.stderr
    assert acme.json(*argv)[items] == []


def test_a_list_turns_pages_up_to_its_limit(gateway: Gateway, acme: Terminal) -> None:
    def page(request: dict[str, Any]) -> dict[str, Any]:
        first, size = int(request.get("page_token", 0)), request["page_size"]
        return {
            "runs": [{}] * min(size, 2500 - first),
            "next_page_token": str(first + size) if first + size < 2500 else "",
        }

    gateway.answers["pipeline_executor.ListRuns"] = page
    every = acme.json("runs", "list", "--limit", "0")
    assert (len(every["runs"]), every["next_page_token"]) == (2500, "")
    some = acme.json("runs", "list", "--limit", "1200")
    assert (len(some["runs"]), some["next_page_token"]) == (1200, "1200")
    assert [request["page_size"] for request in gateway.asked("pipeline_executor.ListRuns")] == [1000] * 3 + [1000, 200]
    assert "--limit 0 shows all" in acme.run("runs", "list", "--limit", "5").stderr


def test_the_admin_names_the_tenant(gateway: Gateway, admin: Terminal) -> None:
    refused = admin.run("runs", "list")
    assert refused.exit_code == 2 and "--tenant" in refused.stderr and not gateway.calls
    assert admin.run("runs", "list", "--tenant", "acme").exit_code == 0
    assert admin.run("usage", env={"CONVERGENCE_TENANT": "other"}).exit_code == 0
    assert admin.run("tenants", "get", "third").exit_code == 0
    assert [request["tenant_id"] for _, request, _ in gateway.calls] == ["acme", "other", "third"]


def test_logs_are_steps_and_checks(gateway: Gateway, acme: Terminal) -> None:
    gateway.answers["pipeline_executor.ListSteps"] = {"steps": [{"step": "load", "status": "FAILED"}]}
    check = {
        "check_name": "cost_equals_source",
        "status": "FAIL",
        "dimension": "EUR",
        "expected": "1.10",
        "actual": "1.1",
    }
    gateway.answers["pipeline_executor.ListDqResults"] = {"dq_results": [check]}
    read = acme.run("logs", "0d3c")
    assert "load" in read.stdout and "cost_equals_source" in read.stdout and "1.10" in read.stdout
    both = acme.json("logs", "0d3c")
    assert both["steps"][0]["status"] == "FAILED" and both["dq_results"][0]["expected"] == "1.10"


def test_costs_show_totals_and_their_course_and_never_mix_currencies(gateway: Gateway, acme: Terminal) -> None:
    def costs(request: dict[str, Any]) -> dict[str, Any]:
        if request["group_by"] == ["service"]:
            rows = [
                ("Compute", "EUR", "70.005"),
                ("Storage", "EUR", "-7"),
                ("Compute", "USD", "0.004"),
                ("Tax", "USD", "3"),
            ]
            kept = [{"provider": "aws", "currency": "USD", "rows": "2", "cost": "1.2"}]
            costs = [{"dimensions": {"service": s}, "currency": c, "cost": v} for s, c, v in rows]
            return {"costs": costs, "quarantined": kept}
        days = [("2025-11-01", "EUR", "60"), ("2025-11-04", "EUR", "3.005"), ("2025-11-01", "USD", "3.004")]
        return {"costs": [{"dimensions": {"day": d}, "currency": c, "cost": v} for d, c, v in days]}

    gateway.answers["pipeline_executor.QueryCosts"] = costs
    shown = acme.run("costs")
    assert "2 rows of aws (1.20 USD) are in quarantine and in no sum" in " ".join(shown.stderr.split())
    lines = shown.stdout.splitlines()
    rows = [line.split() for line in lines[1:5]]
    assert [row[:3] for row in rows[:2]] == [["Compute", "70.00", "EUR"], ["Storage", "-7.00", "EUR"]]
    assert rows[0][3] == "█" * 24 and len(rows[1]) == 3, "a credit has no bar"
    assert rows[2][:3] == ["Compute", "0.0040", "USD"] and rows[3][3] == "█" * 24, "each currency has its own scale"
    assert lines[6:] == [
        "63.00 EUR from 2025-11-01 to 2025-11-04, day by day:",
        "█▁▁▁",
        "3.00 USD on 2025-11-01",
    ]


def test_compliance_shows_its_course_and_what_changed(gateway: Gateway, acme: Terminal) -> None:
    def counted(request: dict[str, Any]) -> dict[str, Any]:
        if "changed_since" in request:
            return {
                "changes": [
                    {"kind": "REOPENED", "resource": "bucket-1", "title": "Public bucket", "date": "2025-11-17"}
                ]
            }
        if request["group_by"] == ["day"]:
            days = [("2025-11-16", "0.5000"), ("2025-11-17", "0.7500"), ("2025-11-18", "")]
            return {"compliance": [{"dimensions": {"day": day}, "pass_rate": rate} for day, rate in days]}
        return {"compliance": [{"dimensions": {"standard": "CIS"}, "failed": 1, "passed": 3, "pass_rate": "0.7500"}]}

    gateway.answers["pipeline_executor.QueryCompliance"] = counted
    head, row, _, course, line = acme.run("compliance").stdout.splitlines()
    assert head.split() == ["standard", "open", "passed", "pass", "rate"], "no column of zeros"
    assert row.split() == ["CIS", "1", "3", "75.0%", "█" * 18 + "░" * 6]
    assert (course, line) == ("50.0% passed on 2025-11-16, 75.0% on 2025-11-17:", "▆█")
    changed = acme.run("compliance", "--since", "2025-11-17").stdout
    assert "REOPENED" in changed and "bucket-1" in changed
    assert acme.json("compliance", "--since", "2025-11-17")["changes"][0]["kind"] == "REOPENED"


def test_usage_shows_how_much_is_left_and_the_days(gateway: Gateway, acme: Terminal) -> None:
    gateway.answers["tenant.GetUsage"] = {
        "daily": {"limit": 6, "used": 6, "remaining": 0, "reset_time": "2025-11-18T00:00:00Z"},
        "monthly": {"limit": 180, "used": 45, "remaining": 135},
        "concurrent": {"limit": 1},
        "history": [{"date": "2025-11-17", "used": 6}, {"date": "2025-11-14", "used": 3}],
    }
    shown = acme.run("usage").stdout
    assert "█" * 24 in shown and "░" * 24 in shown and "2025-11-18 00:00:00" in shown
    assert "▅▁▁█" in shown


def test_status_of_a_tenant_and_of_the_platform(
    gateway: Gateway, acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"/health": (200, {"date": "x"}, b"")}
    # The gateway's plain HTTP is Envoy's: the end-to-end test asks the real one.
    monkeypatch.setattr("services.cli.health.get", lambda profile, path: answers[path])
    gateway.answers["tenant.GetCaller"] = {"tenant_id": "acme", "role": "ADMIN"}
    gateway.answers["tenant.GetTenant"] = TENANT
    gateway.answers["tenant.GetUsage"] = {"daily": {"limit": 25, "used": 5}}
    gateway.answers["pipeline_executor.ListRuns"] = {"runs": [RUN]}
    shown = acme.run("status")
    assert shown.exit_code == 0 and "5 of 25 daily" in shown.stdout and "0d3c" in shown.stdout
    assert acme.json("status")["runs"][0]["pipeline_logging_id"] == "0d3c"
    gateway.answers["tenant.GetCaller"] = {"role": "PLATFORM_ADMIN"}
    gateway.answers["scheduler.GetStatus"] = {
        "queued_by_state": {"QUEUED": 3},
        "jobs": [{"job": "trigger", "outcome": "OK"}],
    }
    shown = acme.run("status")
    assert "3 QUEUED" in shown.stdout and "trigger" in shown.stdout
    answers["/health"] = (503, {}, b"")
    unhealthy = acme.run("status", "--output", "json")
    assert unhealthy.exit_code == 6 and json.loads(unhealthy.stdout)["gateway"]["status"] == "NOT_SERVING"


def test_violated_invariants_are_a_failure(gateway: Gateway, admin: Terminal) -> None:
    gateway.answers["scheduler.CheckInvariants"] = {
        "invariants": [{"name": "STRANDED", "count": 2, "samples": ["a", "b"]}],
        "violation_count": 2,
    }
    found = admin.run("scheduler", "invariants")
    assert found.exit_code == 1 and "STRANDED" in found.stdout and "a, b" in found.stdout


def test_text_from_outside_steers_no_terminal(gateway: Gateway, acme: Terminal) -> None:
    nasty = "Comp\x1b[2Jute\u202e [bold]x[/bold]"
    cost = {"dimensions": {"service": nasty, "day": "2025-11-17"}, "currency": "EUR", "cost": "1"}
    gateway.answers["pipeline_executor.QueryCosts"] = {"costs": [cost]}
    shown = acme.run("costs").stdout
    assert "\x1b" not in shown and "\u202e" not in shown and "[bold]x[/bold]" in shown
    printed = acme.run("costs", "--output", "json").stdout
    assert printed.isascii() and json.loads(printed)["costs"][0]["dimensions"]["service"] == nasty


def test_nothing_is_destroyed_without_a_word(gateway: Gateway, acme: Terminal) -> None:
    for argv in (["tenants", "delete", "acme"], ["keys", "revoke", "k"], ["credentials", "delete", "c"]):
        refused = acme.run(*argv)
        assert refused.exit_code == 2 and "--yes" in refused.stderr, argv
    assert not gateway.calls
