"""``doctor``'s questions: about this machine, the gateway, the key, and the tenant or the platform behind it.

Each check says what it found and, where something is wrong, what to do, as a command where there is one. Checks change
nothing. What only the operator of the platform can ask of Google Cloud is in ``services.cli.cloud``.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from services.cli import health
from services.cli.command import Cli
from services.cli.failures import Failure
from services.cli.output import word

_SKEW = timedelta(seconds=60)
_CERTIFICATE_DAYS = 21
_KEY_DAYS = 14
# How long ago each CronJob may have ended: its period, and as much as a late start and a long round take.
_JOBS = {
    "trigger": timedelta(hours=2),
    "process-queue": timedelta(minutes=20),
    "reset-daily-quotas": timedelta(hours=26),
}


class Verdict(StrEnum):
    """What a check says."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class Check:
    """One answer of the doctor; ``fix`` says what to do, and is empty where all is well."""

    area: str
    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def examine(cli: Cli, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Iterator[Check]:
    """All checks that need nothing but a profile; those that need what failed before are left out."""
    yield from _machine(cli)
    try:
        profile = cli.profile
        address = profile.address
    except Failure as failure:
        yield _failed("key", "profile", failure)
        return
    yield Check("key", "profile", Verdict.OK, f"{profile.name or 'of the environment'}: {profile.url}")
    if address.tls:
        yield _certificate(address.host, address.port, profile.ca_file, now())
    try:
        state = health.gateway_health(profile)
    except Failure as failure:
        yield _failed("gateway", "health", failure)
        return
    if state["status"] == "SERVING":
        yield Check("gateway", "health", Verdict.OK, "all four services are healthy")
    else:
        fix = "Look for the one that is not: its pod's state and log lines with level error (deploy/observability)."
        yield Check("gateway", "health", Verdict.FAIL, "a service is not healthy, or has only just started", fix)
    yield from _clock(state["date"], now())
    yield _version(cli)
    try:
        caller = cli.api.call("tenant.GetCaller")
    except Failure as failure:
        yield _failed("key", "accepted", failure)
        return
    yield Check(
        "key", "accepted", Verdict.OK, f"{caller.role} {caller.tenant_id or '(all tenants)'}, {caller.api_key_id}"
    )
    yield from _tenant(cli, caller, now()) if caller.tenant_id else _platform(cli, now())


def _machine(cli: Cli) -> Iterator[Check]:
    from importlib.metadata import version

    python = ".".join(str(part) for part in sys.version_info[:3])
    yield Check("machine", "versions", Verdict.OK, f"convergence {version('convergence')}, Python {python}")
    if os.name != "posix":
        return
    folder = cli.profiles.directory / "profiles"
    for path in [folder, *sorted(folder.glob("*.json"))] if folder.exists() else ():
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            fix = f"chmod go= {path}   (and, if others use this machine: convergence keys rotate)"
            yield Check("machine", "stored keys", Verdict.FAIL, f"others can read {path}", fix)
            return
    yield Check("machine", "stored keys", Verdict.OK, f"{len(cli.profiles.names())} profiles, readable by you alone")


def _certificate(host: str, port: int, ca_file: str, now: datetime) -> Check:
    context = ssl.create_default_context(cafile=ca_file or None)
    try:
        with (
            socket.create_connection((host, port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"]), UTC)  # type: ignore[index,arg-type]
    except ssl.SSLCertVerificationError as error:
        fix = "Is the address right? For an authority of your own: convergence login --ca-file ca.pem"
        return Check("gateway", "certificate", Verdict.FAIL, error.verify_message, fix)
    except OSError as error:
        return Check("gateway", "certificate", Verdict.FAIL, str(error), "Is the address right, and does it run?")
    days = (ends - now).days
    verdict = Verdict.OK if days > _CERTIFICATE_DAYS else Verdict.WARN
    return Check(
        "gateway", "certificate", verdict, f"valid for {days} days", "" if verdict is Verdict.OK else "Renew it."
    )


def _clock(date: str, now: datetime) -> Iterator[Check]:
    try:
        skew = now - parsedate_to_datetime(date)
    except ValueError:
        return
    if abs(skew) <= _SKEW:
        yield Check("machine", "clock", Verdict.OK, "agrees with the gateway's")
    else:
        found = f"{abs(skew).total_seconds():.0f} s {'ahead of' if skew > timedelta() else 'behind'} the gateway's"
        yield Check("machine", "clock", Verdict.WARN, found, "Synchronise it (NTP).")


def _version(cli: Cli) -> Check:
    """Compares the calls that this command line makes with those that the gateway describes."""
    from services.cli.api import rest_paths

    described = health.described_paths(cli.profile)
    if described is None:
        return Check("gateway", "version", Verdict.SKIPPED, "it describes no API at /openapi.json")
    ours = rest_paths()
    if missing := sorted(ours - described):
        found = f"the gateway lacks {len(missing)} calls of this command line: {', '.join(missing[:3])}"
        return Check("gateway", "version", Verdict.WARN, found, "Upgrade the platform (deploy/README.md).")
    if described - ours:
        found = f"the gateway has {len(described - ours)} calls that this command line does not know"
        return Check(
            "gateway", "version", Verdict.WARN, found, "Upgrade the command line: uv tool install . --reinstall"
        )
    return Check("gateway", "version", Verdict.OK, f"all {len(ours)} calls are known to both sides")


def _tenant(cli: Cli, caller: Any, now: datetime) -> Iterator[Check]:
    tenant_id = caller.tenant_id
    tenant = cli.api.call("tenant.GetTenant", tenant_id=tenant_id)
    state = word(tenant, "state")
    if state == "ACTIVE":
        yield Check("tenant", "state", Verdict.OK, f"ACTIVE on {word(tenant, 'subscription_plan')}")
    else:
        yield Check("tenant", "state", Verdict.FAIL, f"{state}: nothing new starts", "Ask the platform admin.")
    usage = cli.api.call("tenant.GetUsage", tenant_id=tenant_id)
    full = [name for name in ("daily", "monthly") if not getattr(usage, name).remaining]
    used = f"{usage.daily.used} of {usage.daily.limit} today, {usage.monthly.used} of {usage.monthly.limit} this month"
    verdict, fix = (Verdict.WARN, "Wait, or ask for a higher plan: convergence usage") if full else (Verdict.OK, "")
    yield Check("tenant", "quota", verdict, used, fix)
    if caller.role == "ADMIN":
        yield from _own_key(cli, caller, now)
    credentials = cli.api.pages("credential.ListCredentials", "credentials", limit=0, tenant_id=tenant_id).credentials
    if not credentials:
        fix = "convergence credentials add PROVIDER --file KEY.json"
        yield Check("tenant", "credentials", Verdict.WARN, "none: nothing can run", fix)
    for each in credentials:
        name = f"credential {each.provider.lower()}/{each.name}"
        status = word(each, "status")
        if status == "VALID":
            yield Check("tenant", name, Verdict.OK, f"VALID, {each.display}")
        elif status == "PENDING":
            fix = f"convergence credentials validate {each.credential_id}"
            yield Check("tenant", name, Verdict.WARN, f"PENDING {each.status_reason}".strip(), fix)
        elif status == "INVALID":
            fix = f"convergence credentials add {each.provider.lower()} --name {each.name} --file KEY.json"
            yield Check("tenant", name, Verdict.FAIL, f"INVALID: {each.status_reason}", fix)
    runs = cli.api.call("pipeline_executor.ListRuns", tenant_id=tenant_id, page_size=1).runs
    for run in runs:
        if word(run, "status") == "FAILED":
            fix = f"convergence logs {run.pipeline_logging_id}"
            yield Check("tenant", "last run", Verdict.WARN, f"FAILED: {run.error.message}", fix)
        else:
            yield Check("tenant", "last run", Verdict.OK, word(run, "status"))


def _own_key(cli: Cli, caller: Any, now: datetime) -> Iterator[Check]:
    keys = cli.api.pages("tenant.ListApiKeys", "api_keys", limit=0, tenant_id=caller.tenant_id).api_keys
    for key in keys:
        if key.api_key_id != caller.api_key_id or not key.HasField("expire_time"):
            continue
        days = (key.expire_time.ToDatetime(UTC) - now).days
        verdict = Verdict.OK if days > _KEY_DAYS else Verdict.WARN
        fix = "" if verdict is Verdict.OK else "convergence keys rotate"
        yield Check("key", "expiry", verdict, f"ends in {days} days", fix)


def _platform(cli: Cli, now: datetime) -> Iterator[Check]:
    status = cli.api.call("scheduler.GetStatus")
    calls = {job.job: job for job in status.jobs}
    for name, within in _JOBS.items():
        job = calls.get(name)
        fix = f"Is its CronJob there and allowed to run? By hand: convergence scheduler {name}"
        if job is None:
            yield Check("scheduler", name, Verdict.WARN, "has never run", fix)
        elif now - job.start_time.ToDatetime(UTC) > within:
            yield Check("scheduler", name, Verdict.WARN, f"has not run since {job.start_time.ToJsonString()}", fix)
        elif job.HasField("end_time") and job.outcome != "OK":
            yield Check(
                "scheduler",
                name,
                Verdict.FAIL,
                f"ended with {job.outcome}",
                "Its log says why; runbook: deploy/observability/README.md",
            )
        else:
            yield Check("scheduler", name, Verdict.OK, f"ran at {job.start_time.ToJsonString()}")
    dead = cli.api.call("scheduler.ListDeadLetters", page_size=1).runs
    verdict, fix = (Verdict.WARN, "convergence queue dead-letters") if dead else (Verdict.OK, "")
    yield Check("scheduler", "dead letters", verdict, "there are some" if dead else "none", fix)
    found = cli.api.call("scheduler.CheckInvariants")
    broken = [each.name for each in found.invariants if each.count]
    verdict, fix = (Verdict.FAIL, "convergence scheduler invariants") if broken else (Verdict.OK, "")
    yield Check("scheduler", "invariants", verdict, ", ".join(broken) or f"all {len(found.invariants)} hold", fix)


def _failed(area: str, name: str, failure: Failure) -> Check:
    found = " ".join([failure.message, *failure.lines])
    if failure.request_id:
        found += f" (request id {failure.request_id})"
    return Check(area, name, Verdict.FAIL, found, failure.advice)
