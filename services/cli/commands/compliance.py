"""``compliance``: how many findings are open, by what; tables with a bar for each pass rate."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import typer

from services.cli import charts
from services.cli.command import Cli, LimitOption, command
from services.cli.commands.money import bar_width, dimension
from services.cli.options import names
from services.cli.output import Column


def add(root: typer.Typer) -> None:
    """Registers the command."""

    @command(
        root,
        "compliance",
        examples=[
            "convergence compliance",
            "convergence compliance --by provider,severity --standard 'CIS 1.4'",
            "convergence compliance --by account --severity CRITICAL -o json",
        ],
    )
    def compliance(
        cli: Cli,
        by: Annotated[
            str,
            typer.Option("--by", help="Up to five of provider, severity, status, standard, account, resource, day."),
        ] = "standard",
        provider: Annotated[str, typer.Option("--provider", help="Only this provider.")] = "",
        severity: Annotated[str, typer.Option("--severity", help="Only this severity.")] = "",
        standard: Annotated[str, typer.Option("--standard", help="Only this standard.")] = "",
        account: Annotated[str, typer.Option("--account", help="Only this account.")] = "",
        limit: LimitOption = 50,
    ) -> None:
        """Count compliance findings, the most open first.

        The pass rate is of those that passed or are open.
        """
        dimensions = names(by)
        answer = cli.api.pages(
            "pipeline_executor.QueryCompliance",
            "compliance",
            limit=limit,
            tenant_id=cli.tenant,
            group_by=dimensions,
            provider=provider or None,
            severity=severity or None,
            standard=standard or None,
            account=account or None,
        )
        if cli.print.as_json:
            cli.print.json(answer)
            return
        columns = [
            *(Column(name, dimension(name)) for name in dimensions),
            Column("open", lambda each: each.failed, right=True),
            Column("passed", lambda each: each.passed, right=True),
            Column("muted", lambda each: each.muted, right=True),
            Column("pass rate", lambda each: f"{Decimal(each.pass_rate):.1%}" if each.pass_rate else "", right=True),
            Column("", lambda each: _gauge(cli, each)),
        ]
        empty = "No findings: `convergence templates` lists the pipelines that bring them."
        cli.print.table(answer.compliance, columns, empty=empty)
        if answer.next_page_token:
            cli.print.say(f"There are more than {limit}: --limit 0 shows all.", "dim")


def _gauge(cli: Cli, group: Any) -> Any:
    from rich.text import Text

    if not group.pass_rate:
        return ""
    rate = Decimal(group.pass_rate)
    style = "green" if rate >= Decimal("0.95") else "yellow" if rate >= Decimal("0.8") else "red"
    return Text(charts.gauge(rate, 1, bar_width(cli), unicode=cli.print.unicode), style)
