"""``tenants``: who uses the platform, on which plan; their audit trail."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli.command import Cli, LimitOption, YesOption, command, group
from services.cli.commands.session import sign_in, who
from services.cli.output import Column, moment, word
from services.cli.profiles import Profile

app = group("Onboard, change, suspend, delete tenants; their audit.")


class Plan(StrEnum):
    """The plans of the contract."""

    STARTER = "STARTER"
    PROFESSIONAL = "PROFESSIONAL"
    SCALE = "SCALE"


class State(StrEnum):
    """The states of the contract."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    OFFBOARDING = "OFFBOARDING"
    DELETED = "DELETED"


TenantArgument = Annotated[
    str, typer.Argument(metavar="[TENANT]", help="The tenant; your key's own if it is left out.")
]
NamedTenant = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant.")]
_COLUMNS = [
    Column("tenant", lambda each: each.tenant_id),
    Column("company", lambda each: each.company_name),
    Column("plan", lambda each: word(each, "subscription_plan")),
    Column("state", lambda each: word(each, "state")),
    Column("a day", lambda each: each.daily_limit, right=True),
    Column("a month", lambda each: each.monthly_limit, right=True),
    Column("at once", lambda each: each.concurrent_limit, right=True),
    Column("since", lambda each: moment(each, "create_time")[:10]),
]
_AUDIT = [
    Column("time", lambda each: moment(each, "time")),
    Column("actor", lambda each: each.actor),
    Column("for", lambda each: each.user_id),
    Column("action", lambda each: each.action),
    Column("object", lambda each: each.object_id),
    Column("outcome", lambda each: each.outcome),
    Column("reason", lambda each: each.reason, fold=True),
    Column("request", lambda each: each.request_id),
]


def rows(tenant: Any) -> list[tuple[str, Any]]:
    """A tenant, field by field."""
    limits = f"{tenant.daily_limit} a day, {tenant.monthly_limit} a month, {tenant.concurrent_limit} at once"
    return [
        ("tenant", tenant.tenant_id),
        ("company", tenant.company_name),
        ("e-mail", tenant.admin_email),
        ("state", word(tenant, "state")),
        ("plan", word(tenant, "subscription_plan")),
        ("runs", limits),
        ("since", moment(tenant, "create_time")),
        ("changed", moment(tenant, "update_time")),
    ]


@command(
    app,
    "onboard",
    tenant=False,
    examples=[
        "convergence tenants onboard acme --company 'Acme Corp' --email ops@acme.test --plan PROFESSIONAL",
        "convergence tenants onboard acme --company Acme --email ops@acme.test --plan STARTER --login",
    ],
)
def onboard(
    cli: Cli,
    tenant_id: Annotated[str, typer.Argument(metavar="TENANT", help="3 to 50 characters of a-z, 0-9 and _.")],
    company: Annotated[str, typer.Option("--company", help="Name of the company.")],
    email: Annotated[str, typer.Option("--email", help="Whom to write to.")],
    plan: Annotated[Plan, typer.Option("--plan", case_sensitive=False, help="What it pays for.")],
    login: Annotated[
        bool,
        typer.Option("--login", help="Sign in with the new key, as a profile of the tenant's name; it is not shown."),
    ] = False,
    url: Annotated[str, typer.Option("--api", metavar="URL", help="The API, where you are not signed in.")] = "",
) -> None:
    """Create a tenant and its first key.

    The key is shown once. Needs the platform admin's key; the local stack lets anybody.
    """
    profile = cli.profiles.current_or_nobody(cli.profile_name, url)
    api = cli.connect(profile)
    try:
        made = api.call(
            "tenant.OnboardTenant", tenant_id=tenant_id, company_name=company, admin_email=email, subscription_plan=plan
        )
    finally:
        api.close()
    if login:
        new = Profile(name=tenant_id, url=profile.url, api_key=made.api_key, ca_file=profile.ca_file)
        made.api_key = ""
        path, known = sign_in(cli, new)
        cli.print.say(f"Signed in as {who(known)}; the key is in {path}, readable by you alone.", "green")
    if cli.print.as_json:
        cli.print.json(made)
        return
    cli.print.details(
        [
            ("tenant", made.tenant_id),
            ("dataset", word(made, "dataset_status")),
            ("tables", ", ".join(made.tables_created)),
            ("key id", made.api_key_id),
            ("api key", made.api_key),
        ]
    )
    if made.api_key:
        cli.print.say("The key is shown here and never again.", "yellow")


@command(
    app,
    "list",
    tenant=False,
    examples=["convergence tenants list --state SUSPENDED", "convergence tenants list -o json"],
)
def list_(
    cli: Cli,
    state: Annotated[State | None, typer.Option("--state", case_sensitive=False, help="Only in this state.")] = None,
    plan: Annotated[Plan | None, typer.Option("--plan", case_sensitive=False, help="Only on this plan.")] = None,
    limit: LimitOption = 100,
) -> None:
    """List all tenants, by id (platform admin)."""
    cli.list(
        "tenant.ListTenants", "tenants", _COLUMNS, empty="No tenants.", limit=limit, state=state, subscription_plan=plan
    )


@command(app, "get", tenant=False, examples=["convergence tenants get", "convergence tenants get acme -o json"])
def get(cli: Cli, tenant_id: TenantArgument = "") -> None:
    """Show a tenant."""
    cli.show(cli.api.call("tenant.GetTenant", tenant_id=tenant_id or cli.tenant), rows)


@command(app, "update", tenant=False, examples=["convergence tenants update acme --company 'Acme Ltd'"])
def update(
    cli: Cli,
    tenant_id: TenantArgument = "",
    company: Annotated[str | None, typer.Option("--company", help="New name of the company.")] = None,
    email: Annotated[str | None, typer.Option("--email", help="New address.")] = None,
) -> None:
    """Change a tenant's profile; what is left out stays."""
    if company is None and email is None:
        raise typer.BadParameter("say what to change: --company or --email")
    tenant_id = tenant_id or cli.tenant
    cli.show(cli.api.call("tenant.UpdateTenant", tenant_id=tenant_id, company_name=company, admin_email=email), rows)


@command(
    app,
    "plan",
    tenant=False,
    examples=["convergence tenants plan SCALE", "convergence tenants plan STARTER --tenant acme"],
)
def plan(
    cli: Cli,
    plan: Annotated[Plan, typer.Argument(case_sensitive=False, help="The new plan.")],
    tenant_id: Annotated[
        str, typer.Option("--tenant", "-t", metavar="TENANT", help="The tenant; your key's own if left out.")
    ] = "",
) -> None:
    """Change a tenant's plan.

    A higher one holds at once; under a lower one, running work ends undisturbed.
    """
    cli.show(cli.api.call("tenant.UpdateTenant", tenant_id=tenant_id or cli.tenant, subscription_plan=plan), rows)


@command(app, "suspend", tenant=False, examples=["convergence tenants suspend acme --reason 'invoice 42 is unpaid'"])
def suspend(
    cli: Cli,
    tenant_id: NamedTenant,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")] = "",
) -> None:
    """Suspend a tenant (platform admin).

    It may read; nothing new starts.
    """
    cli.show(cli.api.call("tenant.SuspendTenant", tenant_id=tenant_id, reason=reason), rows)


@command(app, "reactivate", tenant=False, examples=["convergence tenants reactivate acme"])
def reactivate(cli: Cli, tenant_id: NamedTenant) -> None:
    """End a suspension (platform admin)."""
    cli.show(cli.api.call("tenant.ReactivateTenant", tenant_id=tenant_id), rows)


@command(
    app,
    "delete",
    tenant=False,
    examples=["convergence tenants delete acme", "convergence tenants delete acme --delete-dataset --yes"],
)
def delete(
    cli: Cli,
    tenant_id: NamedTenant,
    delete_dataset: Annotated[bool, typer.Option("--delete-dataset", help="Delete its data too.")] = False,
    yes: YesOption = False,
) -> None:
    """Offboard a tenant (platform admin).

    Its keys die at once, its credentials and schedules within minutes; its data only if you say so.
    """
    data = "and ALL ITS DATA " if delete_dataset else ""
    cli.confirm(f"Delete tenant {tenant_id} {data}for good?", yes=yes)
    cli.show(cli.api.call("tenant.DeleteTenant", tenant_id=tenant_id, delete_dataset=delete_dataset), rows)


@command(
    app,
    "audit",
    tenant=False,
    examples=["convergence tenants audit", "convergence tenants audit acme --action credential.open --limit 0 -o json"],
)
def audit(
    cli: Cli,
    tenant_id: TenantArgument = "",
    action: Annotated[str, typer.Option("--action", help="Only this action, such as credential.open.")] = "",
    limit: LimitOption = 50,
) -> None:
    """Show what was done and refused, newest first."""
    cli.list(
        "tenant.ListAuditRecords",
        "audit_records",
        _AUDIT,
        empty="No audit records.",
        limit=limit,
        tenant_id=tenant_id or cli.tenant,
        action=action or None,
    )
