"""``doctor``: what is wrong, and how to fix it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from services.cli.command import Cli, command
from services.cli.failures import Failure
from services.cli.output import Column

_MARKS = {"OK": ("green", "ok"), "WARN": ("yellow", "warn"), "FAIL": ("bold red", "FAIL"), "SKIPPED": ("dim", "skip")}


def add(root: typer.Typer) -> None:
    """Registers the command."""

    @command(
        root,
        "doctor",
        tenant=False,
        examples=[
            "convergence doctor",
            "convergence doctor --profile admin --output json",
            "GCP_PROJECT_ID=my-project-123 convergence doctor --operator",
        ],
    )
    def doctor(
        cli: Cli,
        operator: Annotated[
            bool,
            typer.Option("--operator", help="Also Google Cloud: settings, IAM, datasets and tables, the key; as you."),
        ] = False,
    ) -> None:
        """Find what is wrong, and say how to fix it.

        Exits 1 if anything is; a warning is not. --operator reads the platform's settings (GCP_PROJECT_ID,
        CONVERGENCE_KMS_KEY, ...) from the environment and .env, and asks Google Cloud with your own credentials.
        """
        from rich.text import Text

        from services.cli import cloud
        from services.cli import doctor as checks

        found = list(checks.examine(cli))
        if operator:
            found += cloud.examine()
        if cli.print.as_json:
            cli.print.json({"checks": [asdict(each) for each in found]})
        else:
            columns = [
                Column("", lambda each: Text(_MARKS[each.verdict][1], _MARKS[each.verdict][0])),
                Column("check", lambda each: f"{each.area}: {each.name}", fold=True),
                Column("found", lambda each: each.found, fold=True),
            ]
            cli.print.table(found, columns, empty="")
            for each in found:
                if each.fix:
                    cli.print.line("")
                    cli.print.line(f"{each.area}: {each.name}: {each.found}", _MARKS[each.verdict][0])
                    cli.print.line(f"  fix: {each.fix}")
        bad = sum(each.verdict == "FAIL" for each in found)
        if bad:
            raise Failure(f"{bad} of {len(found)} checks failed.")
