"""A tenant as the console shows it, behind the stand-in services: a year of costs, runs, schedules, quotas, findings.

Everything follows from the day ``TODAY`` and a formula, so that pictures of the page change only when the page does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2

from libs import caller

TODAY = date(2025, 11, 30)
NOW = datetime(2025, 11, 30, 9, 24, tzinfo=UTC)
# Service, provider, account, what it costs a day, and by how much it grows over a year.
_SPENT = (
    ("Compute Engine", "gcp", "acme-production", "182.413377", "0.35"),
    ("AmazonEC2", "aws", "412233445566", "141.090001", "-0.20"),
    ("BigQuery", "gcp", "acme-analytics", "96.77", "0.90"),
    ("AmazonS3", "aws", "412233445566", "52.1255", "0.10"),
    ("Virtual Machines", "azure", "acme-eu", "48.33", "0.00"),
    ("Cloud SQL", "gcp", "acme-production", "31.90", "0.25"),
    ("AWSLambda", "aws", "998877665544", "14.02", "1.40"),
    ("Storage", "azure", "acme-eu", "9.485", "0.05"),
    ("Cloud Logging", "gcp", "acme-production", "6.6", "0.60"),
    ("<b>Key Vault</b>", "azure", "acme-eu", "1.217", "0.00"),
)
RUN_IDS = tuple(f"6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b{n:02d}" for n in range(8))


def spent() -> Iterator[tuple[date, str, str, str, Decimal]]:
    """Every charge: day, service, provider, account, cost in USD."""
    first = date(2024, 12, 1)
    for number in range((TODAY - first).days + 1):
        day = first + timedelta(days=number)
        for service, provider, account, daily, growth in _SPENT:
            wave = Decimal(7 + (number * 5 + len(service)) % 7) / 10 * (Decimal("0.72") if day.weekday() > 4 else 1)
            year = 1 + Decimal(growth) * number / 365
            yield day, service, provider, account, (Decimal(daily) * wave * year).quantize(Decimal("0.000001"))


_LEDGER = tuple(spent())


def total(first: date, last: date, **only: str) -> Decimal:
    """The sum of all charges of some days, by none of the console's code."""
    return sum(
        (cost for day, service, provider, account, cost in _LEDGER
         if first <= day <= last and only.get("service", service) == service), Decimal()
    )  # fmt: skip


def costs(request: Any) -> Any:
    """What QueryCosts answers."""
    last = date.fromisoformat(request.end_date or str(TODAY))
    first = date.fromisoformat(request.start_date or str(last.replace(day=1)))
    months = first.day == 1 and (last + timedelta(days=1)).day == 1
    before = (first - timedelta(days=1)).replace(day=1) if months else first - (last - first) - timedelta(days=1)
    sums: dict[tuple[str, ...], list[Decimal]] = defaultdict(lambda: [Decimal(), Decimal()])
    for day, service, provider, account, cost in _LEDGER:
        named = {"day": str(day), "month": str(day)[:7], "service": service, "provider": provider, "account": account}
        key = tuple(named[name] for name in request.group_by)
        if first <= day <= last:
            sums[key][0] += cost
        elif request.compare and before <= day < first:
            sums[key][1] += cost
    answer = executor_pb2.QueryCostsResponse()
    for key, (cost, previous) in sorted(sums.items(), key=lambda each: -each[1][0]):
        one = answer.costs.add(currency="USD", cost=str(cost), dimensions=dict(zip(request.group_by, key, strict=True)))
        if request.compare:
            one.previous_cost, one.change = str(previous), str(cost - previous)
    return answer


def compliance(_request: Any) -> Any:
    """What QueryCompliance answers, by standard."""
    answer = executor_pb2.QueryComplianceResponse()
    for standard, passed, failed, muted in (
        ("CIS Google Cloud 2.0", 246, 14, 3),
        ("CIS AWS 3.0", 188, 41, 0),
        ("PCI DSS 4.0", 97, 38, 6),
        ("SOC 2", 311, 4, 1),
    ):
        rate = f"{Decimal(passed) / (passed + failed):.4f}"
        answer.compliance.add(
            dimensions={"standard": standard}, passed=passed, failed=failed, muted=muted, pass_rate=rate
        )
    return answer


def run(number: int) -> Any:
    """One run with its steps; the first is running, the fourth failed."""
    status = {0: "RUNNING", 3: "FAILED"}.get(number, "COMPLETED")
    start = NOW - timedelta(seconds=41) if number == 0 else datetime(2025, 11, 30 - number, 6, 0, 4, tzinfo=UTC)
    made = executor_pb2.Run(
        pipeline_logging_id=RUN_IDS[number],
        tenant_id="acme",
        provider=("gcp", "aws", "azure")[number % 3],
        domain="cost",
        template="billing",
        start_date=str(start.date() - timedelta(days=1)),
        end_date=str(start.date() - timedelta(days=1)),
        status=status,
        trigger="SCHEDULED",
        rows_published=0 if status != "COMPLETED" else 18_431 - 977 * number,
        outcome="PUBLISHED" if status == "COMPLETED" else "OUTCOME_UNSPECIFIED",
        attempt=1,
    )
    made.start_time.FromDatetime(start)
    at = start
    ended = {"RUNNING": 2, "FAILED": 3}.get(status, 5)
    for n, (step, seconds) in enumerate(
        (("extract", 21.4), ("load", 9.8), ("transform", 14.2), ("quality", 3.1), ("publish", 6.6))
    ):
        one = made.steps.add(step=step, step_type=step, tries=1, attempt=1)
        one.status = "COMPLETED" if n < ended else ("RUNNING" if status == "RUNNING" and n == ended else "PENDING")
        if status == "FAILED":
            one.status = "COMPLETED" if n < 3 else "FAILED" if n == 3 else "SKIPPED"
        if n <= ended and one.status not in (executor_pb2.Step.PENDING, executor_pb2.Step.SKIPPED):
            one.start_time.FromDatetime(at)
        at += timedelta(seconds=seconds)
        if one.status in (executor_pb2.Step.COMPLETED, executor_pb2.Step.FAILED):
            one.end_time.FromDatetime(at)
            one.rows = 18_431 if n < 3 else 0
    if status != "RUNNING":
        made.end_time.FromDatetime(at)
    if status == "FAILED":
        made.error.reason = "QUALITY_FAILED"
        made.error.message = "USD: the source has 1284.07, staging 1281.90. Nothing was published; run it again."
    return made


def finished() -> Any:
    """The first run, once it has ended."""
    made = run(0)
    made.status, made.rows_published, made.outcome = "COMPLETED", 18_431, "PUBLISHED"
    made.end_time.FromDatetime(NOW)
    for step in made.steps:
        step.status = "COMPLETED"
        if not step.HasField("start_time"):
            step.start_time.FromDatetime(NOW - timedelta(seconds=5))
        step.end_time.FromDatetime(NOW)
    return made


def runs(_request: Any) -> Any:
    """What ListRuns answers."""
    answer = executor_pb2.ListRunsResponse(runs=[run(number) for number in range(8)], next_page_token="more")
    for one in answer.runs:
        del one.steps[:]
    return answer


def watch(_request: Any) -> list[Any]:
    """What WatchRun streams: half-way, then the end."""
    return [
        executor_pb2.RunProgress(run=run(0), percent=55, rows_read=18_431),
        executor_pb2.RunProgress(run=finished(), percent=100, rows_read=18_431),
    ]


def schedules(_request: Any) -> Any:
    """What ListSchedules answers."""
    answer = scheduler_pb2.ListSchedulesResponse()
    for name, provider, cron, zone, active, hours in (
        ("nightly Google Cloud", "gcp", "0 6 * * *", "Europe/Berlin", True, 20),
        ("nightly AWS", "aws", "30 5 * * *", "UTC", True, 21),
        ("", "azure", "0 7 * * 1-5", "America/New_York", False, 50),
    ):
        one = answer.pipelines.add(
            config_id=RUN_IDS[len(answer.pipelines)], tenant_id="acme", provider=provider, domain="cost",
            template="billing", cron=cron, timezone=zone, name=name, is_active=active,
        )  # fmt: skip
        one.next_run_time.FromDatetime(NOW + timedelta(hours=hours))
    return answer


def usage(_request: Any) -> Any:
    """What GetUsage answers."""
    answer = tenant_pb2.Usage(tenant_id="acme")
    for quota, limit, used in ((answer.daily, 25, 4), (answer.monthly, 750, 634), (answer.concurrent, 3, 1)):
        quota.limit, quota.used, quota.remaining = limit, used, limit - used
        quota.reset_time.FromDatetime(datetime(2025, 12, 1, tzinfo=UTC))
    for number in range(1, 40):
        day = TODAY - timedelta(days=number)
        if number % 9:
            answer.history.add(date=str(day), used=3 + number * 7 % 11)
    return answer


def who(_request: Any) -> Any:
    """What GetCaller answers."""
    me = caller.current()
    return tenant_pb2.Caller(tenant_id=me.tenant_id, role=str(me.role), api_key_id=me.key_id)


def tenants(_request: Any) -> Any:
    """What ListTenants answers."""
    return tenant_pb2.ListTenantsResponse(
        tenants=[tenant_pb2.Tenant(tenant_id=name, state="ACTIVE") for name in ("acme", "other_co")]
    )


ANSWERS: Mapping[str, Callable[[Any], Any]] = {
    "TenantService/GetCaller": who,
    "TenantService/ListTenants": tenants,
    "TenantService/GetUsage": usage,
    "PipelineService/QueryCosts": costs,
    "PipelineService/QueryCompliance": compliance,
    "PipelineService/ListRuns": runs,
    "PipelineService/GetRun": lambda request: run(RUN_IDS.index(request.pipeline_logging_id)),
    "PipelineService/WatchRun": watch,
    "ScheduleService/ListSchedules": schedules,
}
# A tenant that has just been onboarded: everything is there and empty.
EMPTY: Mapping[str, Callable[[Any], Any]] = {
    "TenantService/GetCaller": who,
    "TenantService/GetUsage": lambda _: tenant_pb2.Usage(
        tenant_id="acme",
        daily=tenant_pb2.Usage.Quota(limit=6, remaining=6),
        monthly=tenant_pb2.Usage.Quota(limit=180, remaining=180),
        concurrent=tenant_pb2.Usage.Quota(limit=1, remaining=1),
    ),
}
