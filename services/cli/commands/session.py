"""``login``, ``logout``, ``whoami``, ``profiles``: who calls which API."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from services.cli.command import Cli, command
from services.cli.failures import Exit, Failure
from services.cli.options import read_text
from services.cli.profiles import LOCAL_URL, Profile

KeyFile = Annotated[
    str, typer.Option("--key-file", metavar="FILE", help="Read the key from a file (`-`: from standard input).")
]


def add(app: typer.Typer) -> None:
    """Registers the commands."""

    @command(
        app,
        "login",
        tenant=False,
        examples=[
            "convergence login https://api.example.com",
            "convergence login --profile admin --key-file admin.key",
            "pass show convergence | convergence login",
        ],
    )
    def login(
        cli: Cli,
        url: Annotated[
            str, typer.Argument(metavar="[URL]", help=f"The API. Default: {LOCAL_URL}, the local stack.")
        ] = "",
        key_file: KeyFile = "",
        user_id: Annotated[
            str, typer.Option("--user-id", metavar="ID", help="Whom you act for: it stands in the audit trail.")
        ] = "",
        ca_file: Annotated[
            Path | None, typer.Option("--ca-file", exists=True, dir_okay=False, help="Certificates (PEM) to trust.")
        ] = None,
    ) -> None:
        """Sign in with an API key.

        The key is asked for, or read from standard input or a file; it is never an argument. It is checked, then
        stored for you alone in your configuration directory.
        """
        profile = Profile(
            name=cli.profile_name or "default",
            url=url or cli.profiles.url(),
            user_id=user_id,
            ca_file=str(ca_file.resolve()) if ca_file else "",
        )
        assert profile.address  # refused before a key is asked for
        path, known = sign_in(cli, replace(profile, api_key=_read_key(key_file)))
        if cli.print.as_json:
            cli.print.json(_described(known))
        else:
            cli.print.say(f"Signed in to {known.url} as {who(known)}.", "green")
            cli.print.say(f"The key is in {path}, readable by you alone.")

    @command(app, "logout", tenant=False, examples=["convergence logout", "convergence logout --profile admin"])
    def logout(cli: Cli) -> None:
        """Forget the key of a profile.

        The key itself lives on: `convergence keys revoke` ends it.
        """
        name = cli.profile_name or cli.profiles.active
        if not name:
            raise Failure("You are not signed in.", exit_code=Exit.DENIED)
        cli.profiles.remove(name)
        cli.print.say(f"Forgot profile {name}.")

    @command(app, "whoami", tenant=False, examples=["convergence whoami", "convergence whoami --output json"])
    def whoami(cli: Cli) -> None:
        """Say whose key is in use, and for which API."""
        caller = cli.api.call("tenant.GetCaller")
        if cli.print.as_json:
            cli.print.json(caller)
            return
        cli.print.details(
            [
                ("api", cli.profile.url),
                ("profile", cli.profile.name or "(of the environment)"),
                ("tenant", caller.tenant_id or "(all: the platform admin's key)"),
                ("role", caller.role),
                ("key", caller.api_key_id),
                ("acts for", cli.profile.user_id),
            ]
        )

    @command(app, "profiles", tenant=False, examples=["convergence profiles", "convergence profiles --use admin"])
    def profiles(
        cli: Cli, use: Annotated[str, typer.Option("--use", metavar="NAME", help="Make this the one in use.")] = ""
    ) -> None:
        """List the stored profiles, or switch to one."""
        from services.cli.output import Column

        if use:
            cli.profiles.read(use)
            cli.profiles.activate(use)
        known = [cli.profiles.read(name) for name in cli.profiles.names()]
        if cli.print.as_json:
            active = cli.profiles.active
            cli.print.json({"profiles": [_described(each) | {"active": each.name == active} for each in known]})
            return
        columns = [
            Column("", lambda each: "*" if each.name == cli.profiles.active else ""),
            Column("profile", lambda each: each.name),
            Column("api", lambda each: each.url),
            Column("tenant", lambda each: each.tenant_id),
            Column("role", lambda each: each.role),
        ]
        cli.print.table(known, columns, empty="No profile yet: `convergence login` makes one.")


def sign_in(cli: Cli, profile: Profile) -> tuple[Path, Profile]:
    """Asks the API whose key it is, and stores the profile. Nothing is stored of a key that is refused."""
    api = cli.connect(profile)
    try:
        caller = api.call("tenant.GetCaller")
    finally:
        api.close()
    known = replace(profile, tenant_id=caller.tenant_id, role=caller.role, api_key_id=caller.api_key_id)
    return cli.profiles.save(known), known


def who(profile: Profile) -> str:
    """A profile's owner in words."""
    return f"{profile.role} of tenant {profile.tenant_id}" if profile.tenant_id else "the platform admin"


def _described(profile: Profile) -> dict[str, str]:
    return {
        "profile": profile.name,
        "url": profile.url,
        "tenant_id": profile.tenant_id,
        "role": profile.role,
        "api_key_id": profile.api_key_id,
    }


def _read_key(key_file: str) -> str:
    if key_file and key_file != "-":
        text = read_text(key_file)
    elif key_file == "-" or not sys.stdin.isatty():
        text = sys.stdin.readline()
    else:
        text = typer.prompt("API key (not shown)", hide_input=True, err=True)
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Failure("That is no API key: it must be one line of letters, digits and _.", exit_code=Exit.USAGE)
    return key
