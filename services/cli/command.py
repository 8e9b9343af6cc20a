"""What all commands have in common: their shared options, their examples, and how they end.

A command is a function of a ``Cli`` and its own options; ``command`` registers it with ``--output``, ``--profile``
and, where it acts inside a tenant, ``--tenant``, and turns ``Failure`` into words on stderr and an exit code.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.failures import Exit, Failure
from services.cli.output import Column, Output, Printer, clean
from services.cli.profiles import Profile, Profiles

if TYPE_CHECKING:
    from services.cli.api import Api


def _complete_profile(incomplete: str) -> list[str]:
    return [name for name in Profiles().names() if name.startswith(incomplete)]


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="A table to read, or the API's JSON.", show_choices=True)
]
ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        metavar="NAME",
        help="The profile to use instead of the one in use ($CONVERGENCE_PROFILE).",
        autocompletion=_complete_profile,
    ),
]
TenantOption = Annotated[
    str,
    typer.Option("--tenant", "-t", metavar="TENANT", help="The tenant, where the key is the platform admin's."),
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=0, help="At most so many; 0 for all.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Cli:
    """One invocation: who calls whom, and how it answers."""

    def __init__(self, *, output: Output = Output.TABLE, profile: str = "", tenant: str = "") -> None:
        self.profiles = Profiles()
        self.print = Printer(output)
        self.profile_name = profile
        self._tenant = tenant

    @functools.cached_property
    def profile(self) -> Profile:
        """The profile in use; exits 3 where there is none."""
        found = self.profiles.current(self.profile_name)
        return replace(found, tenant_id=self._tenant or self.profiles.tenant or found.tenant_id)

    @functools.cached_property
    def api(self) -> Api:
        """The API of the profile in use."""
        return self.connect(self.profile)

    def connect(self, profile: Profile) -> Api:
        """An API that is closed when the command ends."""
        from services.cli import api

        return api.connect(profile)

    @functools.cached_property
    def tenant(self) -> str:
        """The tenant that is meant; exits 2 where nothing says which."""
        if self.profile.tenant_id:
            return self.profile.tenant_id
        # Of a key of the environment only the server knows whose it is.
        unknown = not self.profile.role
        if unknown and (tenant := self.api.call("tenant.GetCaller").tenant_id):
            return str(tenant)
        raise Failure(
            "For which tenant? This key is the platform admin's.",
            exit_code=Exit.USAGE,
            advice="Name one with --tenant, or set CONVERGENCE_TENANT.",
        )

    def list(self, rpc: str, items: str, columns: Sequence[Column], /, *, empty: str, limit: int, **given: Any) -> None:
        """Calls a list and shows it."""
        answer = self.api.pages(rpc, items, limit=limit, **given)
        if self.print.as_json:
            self.print.json(answer)
            return
        self.print.table(getattr(answer, items), columns, empty=empty)
        if answer.next_page_token:
            self.print.say(f"There are more than {limit}: --limit 0 shows all.", "dim")

    def show(self, answer: Any, rows: Callable[[Any], Sequence[tuple[str, Any]]]) -> None:
        """Shows one thing."""
        if self.print.as_json:
            self.print.json(answer)
        else:
            self.print.details(rows(answer))

    def confirm(self, question: str, *, yes: bool) -> None:
        """Asks before something that cannot be taken back; without a terminal it must be said with ``--yes``."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise Failure(f"{question} Nobody is there to answer.", exit_code=Exit.USAGE, advice="Say it with --yes.")
        if not typer.confirm(question, err=True):
            raise Failure("Nothing was changed.")

    def complain(self, failure: Failure) -> None:
        """Says why the command failed."""
        from rich.text import Text

        named = f" [{failure.reason}]" if failure.reason else ""
        said = Text.assemble(("error: ", "bold red"), clean(failure.message), (named, "dim"))
        self.print.err.print(said, soft_wrap=True)
        for line in failure.lines:
            self.print.say(f"  {line}")
        if failure.advice:
            self.print.say(failure.advice)
        if failure.request_id:
            self.print.say(f"request id: {failure.request_id}", "dim")


def group(help_text: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def command(
    app: typer.Typer, name: str, *, examples: Sequence[str], tenant: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function of ``Cli`` and options as a command. ``tenant``: whether it takes ``--tenant``."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        shared: dict[str, tuple[Any, Any]] = {"output": (OutputOption, Output.TABLE), "profile": (ProfileOption, "")}
        if tenant:
            shared = {"tenant": (TenantOption, ""), **shared}

        @functools.wraps(function)
        def run(**given: Any) -> None:
            cli = Cli(**{option: given.pop(option) for option in shared})
            raise typer.Exit(_ended(cli, lambda: function(cli, **given)))

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        added = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for option, (kind, default) in shared.items()
        ]
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        run.__signature__ = inspect.Signature([*keywords, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        epilog = "\n".join(["\b", "Examples:", *(f"  $ {example}" for example in examples)])
        app.command(name, epilog=epilog)(run)
        return function

    return register


def _ended(cli: Cli, act: Callable[[], None]) -> Exit:
    """Does it, says what went wrong, and returns the exit code."""
    try:
        act()
        return Exit.OK
    except Failure as failure:
        cli.complain(failure)
        return failure.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`); what is still buffered goes nowhere.
        with suppress(OSError):
            sys.stdout.close()
        return Exit.OK
    finally:
        if "api" in cli.__dict__:
            cli.api.close()
