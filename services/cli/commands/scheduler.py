"""``queue``, ``scheduler``, ``status``: what the platform admin looks after; ``status`` speaks to tenants too."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.command import Cli, LimitOption, command, group
from services.cli.commands.runs import RUNS
from services.cli.commands.schedules import RUN_COLUMNS, run_rows
from services.cli.failures import Exit, Failure
from services.cli.output import Column, moment, word

app = group("The scheduler's jobs and invariants (platform admin).")
queue = group("The queue and its dead letters (platform admin).")
_QUEUE = [RUN_COLUMNS[0], Column("tenant", lambda each: each.tenant_id), *RUN_COLUMNS[1:]]
_JOBS = [
    Column("job", lambda each: each.job),
    Column("began (UTC)", lambda each: moment(each, "start_time")),
    Column("ended (UTC)", lambda each: moment(each, "end_time")),
    Column("outcome", lambda each: each.outcome),
]
_INVARIANTS = [
    Column("count", lambda each: each.count, right=True),
    Column("invariant", lambda each: each.name),
    Column("must not be", lambda each: each.description, fold=True),
    Column("samples", lambda each: ", ".join(each.samples), fold=True),
]


@command(queue, "list", tenant=False, examples=["convergence queue list", "convergence queue list --limit 0 -o json"])
def list_(cli: Cli, limit: LimitOption = 100) -> None:
    """List queued runs of all tenants, in claim order."""
    cli.list("scheduler.ListQueue", "runs", _QUEUE, empty="The queue is empty.", limit=limit)


@command(queue, "dead-letters", tenant=False, examples=["convergence queue dead-letters"])
def dead_letters(cli: Cli, limit: LimitOption = 100) -> None:
    """List runs that failed for good, newest first."""
    cli.list("scheduler.ListDeadLetters", "runs", _QUEUE, empty="No dead letters.", limit=limit)


@command(queue, "requeue", tenant=False, examples=["convergence queue requeue 0d3c…"])
def requeue(cli: Cli, run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The dead letter.")]) -> None:
    """Queue a dead letter again, with its retries given back."""
    cli.show(cli.api.call("scheduler.RequeueDeadLetter", run_id=run_id), run_rows)


@command(app, "trigger", tenant=False, examples=["convergence scheduler trigger"])
def trigger(cli: Cli) -> None:
    """Queue what is due now, as the CronJob does."""
    cli.show(cli.api.call("scheduler.Trigger"), _counts)


@command(app, "process-queue", tenant=False, examples=["convergence scheduler process-queue --seconds 60"])
def process_queue(
    cli: Cli,
    seconds: Annotated[int | None, typer.Option("--seconds", min=0, max=280, help="How long (default 240).")] = None,
) -> None:
    """Start and settle queued runs, as the CronJob does.

    It ends when all runs have, or when the time is over.
    """
    cli.show(cli.api.call("scheduler.ProcessQueue", time_budget_seconds=seconds), _counts)


@command(app, "reset-daily-quotas", tenant=False, examples=["convergence scheduler reset-daily-quotas"])
def reset_daily_quotas(cli: Cli) -> None:
    """Do the nightly housekeeping."""
    cli.show(cli.api.call("scheduler.ResetDailyQuotas"), _counts)


@command(app, "invariants", tenant=False, examples=["convergence scheduler invariants"])
def invariants(cli: Cli) -> None:
    """Count what must never be; exits 1 unless all is zero."""
    found = cli.api.call("scheduler.CheckInvariants")
    if cli.print.as_json:
        cli.print.json(found)
    else:
        cli.print.table(found.invariants, _INVARIANTS, empty="")
    if found.violation_count:
        raise Failure(f"{found.violation_count} violations.", advice="The runbook says what each means.")


def add(root: typer.Typer) -> None:
    """Registers what is no group."""

    @command(
        root, "status", tenant=False, examples=["convergence status", "convergence status --profile admin -o json"]
    )
    def status(cli: Cli) -> None:
        """Show how things are now.

        The gateway, then your tenant's quotas and last runs, or for the platform admin the queue.

        Exits 6 if the gateway says that a service is not healthy.
        """
        from services.cli.health import gateway_health

        health = gateway_health(cli.profile)
        caller = cli.api.call("tenant.GetCaller")
        tenant_id = caller.tenant_id
        body: dict[str, Any] = {"gateway": {"url": cli.profile.url, **health}, "caller": caller}
        if tenant_id:
            body["tenant"] = cli.api.call("tenant.GetTenant", tenant_id=tenant_id)
            body["usage"] = cli.api.call("tenant.GetUsage", tenant_id=tenant_id)
            body["runs"] = list(cli.api.call("pipeline_executor.ListRuns", tenant_id=tenant_id, page_size=5).runs)
        else:
            body["scheduler"] = cli.api.call("scheduler.GetStatus")
        if cli.print.as_json:
            cli.print.json(body)
        else:
            _show(cli, body)
        if health["status"] != "SERVING":
            raise Failure(
                "The gateway is not healthy.",
                exit_code=Exit.UNAVAILABLE,
                advice="`convergence doctor` looks for the cause.",
            )


def _show(cli: Cli, body: dict[str, Any]) -> None:
    gateway = body["gateway"]
    if "scheduler" in body:
        now = body["scheduler"]
        queued = ", ".join(f"{number} {state}" for state, number in sorted(now.queued_by_state.items()))
        cli.print.details(
            [
                ("api", gateway["url"]),
                ("gateway", gateway["status"]),
                ("due", f"{now.due_count} schedules, at most {now.lag_seconds} s late"),
                ("queue", queued or "empty"),
                ("running", now.running_count),
                ("oldest", f"{now.oldest_age_seconds} s" if now.oldest_age_seconds else ""),
                ("dead in 24 h", now.failed_last_day),
            ]
        )
        cli.print.line("")
        cli.print.table(now.jobs, _JOBS, empty="No job has run yet: are the three CronJobs there?")
        return
    tenant, usage = body["tenant"], body["usage"]
    used = [
        f"{getattr(usage, name).used} of {getattr(usage, name).limit} {name}"
        for name in ("daily", "monthly", "concurrent")
    ]
    cli.print.details(
        [
            ("api", gateway["url"]),
            ("gateway", gateway["status"]),
            ("tenant", tenant.tenant_id),
            ("state", word(tenant, "state")),
            ("plan", word(tenant, "subscription_plan")),
            ("used", ", ".join(used)),
        ]
    )
    cli.print.line("")
    cli.print.table(body["runs"], RUNS, empty="No runs yet: `convergence run gcp/cost/billing --watch`.")


def _counts(answer: Any) -> list[tuple[str, Any]]:
    return [(field.name.removesuffix("_count"), getattr(answer, field.name)) for field in answer.DESCRIPTOR.fields]
