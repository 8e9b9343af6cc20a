"""``keys``: a tenant's API keys."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli.command import Cli, LimitOption, YesOption, command, group
from services.cli.options import span
from services.cli.output import Column, moment, word

app = group("List, create, rotate, revoke a tenant's API keys.")


class Role(StrEnum):
    """The roles of the contract."""

    RUNNER = "RUNNER"
    ADMIN = "ADMIN"


_COLUMNS = [
    Column("key id", lambda each: each.api_key_id),
    Column("name", lambda each: each.name),
    Column("role", lambda each: word(each, "role")),
    Column("state", lambda each: word(each, "state")),
    Column("ends in", lambda each: f"…{each.last4}"),
    Column("created", lambda each: moment(each, "create_time")),
    Column("expires", lambda each: moment(each, "expire_time")),
    Column("last used", lambda each: moment(each, "last_used_time")),
]


def _rows(key: Any) -> list[tuple[str, Any]]:
    return [(column.head, column.value(key)) for column in _COLUMNS]


def _show_new(cli: Cli, made: Any) -> None:
    if cli.print.as_json:
        cli.print.json(made)
        return
    cli.print.details(
        [
            ("key id", made.api_key_id),
            ("name", made.name),
            ("role", word(made, "role")),
            ("expires", moment(made, "expire_time")),
            ("api key", made.api_key),
        ]
    )
    cli.print.say("The key is shown here and never again.", "yellow")


@command(app, "list", examples=["convergence keys list", "convergence keys list --tenant acme -o json"])
def list_(cli: Cli, limit: LimitOption = 100) -> None:
    """List the keys, newest first; never their secrets."""
    cli.list("tenant.ListApiKeys", "api_keys", _COLUMNS, empty="No keys.", limit=limit, tenant_id=cli.tenant)


@command(
    app,
    "create",
    examples=["convergence keys create --name nightly", "convergence keys create --name ci --role ADMIN --expires 90d"],
)
def create(
    cli: Cli,
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "",
    role: Annotated[Role, typer.Option("--role", case_sensitive=False, help="RUNNER runs and reads.")] = Role.RUNNER,
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="How long it lives: 90d, 12h.")] = "",
) -> None:
    """Create a key. It is shown once."""
    ends = f"{datetime.now(UTC) + span(expires):%Y-%m-%dT%H:%M:%SZ}" if expires else None
    _show_new(cli, cli.api.call("tenant.CreateApiKey", tenant_id=cli.tenant, name=name, role=role, expire_time=ends))


@command(
    app,
    "rotate",
    examples=["convergence keys rotate", "convergence keys rotate 4fQ2… --overlap 1h"],
)
def rotate(
    cli: Cli,
    api_key_id: Annotated[str, typer.Argument(metavar="[KEY_ID]", help="The key; your own if it is left out.")] = "",
    overlap: Annotated[str, typer.Option("--overlap", metavar="TIME", help="How long the old one lives on.")] = "0s",
) -> None:
    """Replace a key by a new one of its name and role.

    It is shown once. Your own profile takes up its new key.
    """
    own = cli.api.call("tenant.GetCaller").api_key_id
    wanted = api_key_id or own
    made = cli.api.call(
        "tenant.RotateApiKey",
        tenant_id=cli.tenant,
        api_key_id=wanted,
        overlap_seconds=int(span(overlap).total_seconds()),
    )
    if wanted == own and cli.profile.name:
        renewed = replace(cli.profiles.read(cli.profile.name), api_key=made.api_key, api_key_id=made.api_key_id)
        cli.profiles.save(renewed, activate=False)
        cli.print.say(f"Profile {renewed.name} has the new key.", "green")
    _show_new(cli, made)


@command(app, "revoke", examples=["convergence keys revoke 4fQ2… --yes"])
def revoke(
    cli: Cli, api_key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key.")], yes: YesOption = False
) -> None:
    """Take a key back; within 15 s nobody accepts it."""
    cli.confirm(f"Revoke key {api_key_id}?", yes=yes)
    cli.show(cli.api.call("tenant.DeleteApiKey", tenant_id=cli.tenant, api_key_id=api_key_id), _rows)
