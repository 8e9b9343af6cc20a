"""``compliance``: how many findings are open, by what, and what changed; a bar for each pass rate and its course."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

import typer

from services.cli import charts
from services.cli.command import Cli, LimitOption, command
from services.cli.commands.money import bar_width, chart_width, dimension
from services.cli.options import names
from services.cli.output import Column, word

_CHANGES = [
    Column("date", lambda each: each.date),
    Column("what", lambda each: word(each, "kind")),
    Column("status", lambda each: each.status),
    Column("severity", lambda each: each.severity),
    Column("provider", lambda each: each.provider),
    Column("account", lambda each: each.account),
    Column("resource", lambda each: each.resource, fold=True),
    Column("check", lambda each: each.title or each.check, fold=True),
    Column("standards", lambda each: ", ".join(each.standards), fold=True),
]


def add(root: typer.Typer) -> None:
    """Registers the command."""

    @command(
        root,
        "compliance",
        examples=[
            "convergence compliance",
            "convergence compliance --by provider,severity --standard 'CIS 1.4'",
            "convergence compliance --by day --start-date 2025-11-01",
            "convergence compliance --since 2025-11-17 --severity CRITICAL -o json",
        ],
    )
    def compliance(
        cli: Cli,
        by: Annotated[
            str,
            typer.Option("--by", help="Up to five of provider, severity, status, standard, account, resource, day."),
        ] = "standard",
        since: Annotated[
            str, typer.Option("--since", metavar="YYYY-MM-DD", help="List what changed since, instead of counting.")
        ] = "",
        start_date: Annotated[
            str,
            typer.Option("--start-date", metavar="YYYY-MM-DD", help="With --by day: the first (default: 29 before)."),
        ] = "",
        end_date: Annotated[
            str, typer.Option("--end-date", metavar="YYYY-MM-DD", help="The day that is counted, or the last of them.")
        ] = "",
        status: Annotated[str, typer.Option("--status", help="Only with this status, such as OPEN.")] = "",
        provider: Annotated[str, typer.Option("--provider", help="Only this provider.")] = "",
        severity: Annotated[str, typer.Option("--severity", help="Only this severity.")] = "",
        standard: Annotated[str, typer.Option("--standard", help="Only this standard.")] = "",
        account: Annotated[str, typer.Option("--account", help="Only this account.")] = "",
        resource: Annotated[str, typer.Option("--resource", help="Only this resource.")] = "",
        limit: LimitOption = 50,
    ) -> None:
        """Count compliance findings, or list what changed.

        The pass rate is of those that passed or are open. A finding of several standards counts in each.
        """
        asked = {
            "tenant_id": cli.tenant,
            "status": status or None,
            "provider": provider or None,
            "severity": severity or None,
            "standard": standard or None,
            "account": account or None,
            "resource": resource or None,
            "end_date": end_date or None,
        }
        if since:
            cli.list(
                "pipeline_executor.QueryCompliance",
                "changes",
                _CHANGES,
                empty="Nothing changed.",
                limit=limit,
                changed_since=since,
                **asked,
            )
            return
        dimensions = names(by)
        by_day = "day" in dimensions
        start = {"start_date": start_date or None}
        answer = cli.api.pages(
            "pipeline_executor.QueryCompliance", "compliance", limit=limit, group_by=dimensions, **start, **asked
        )
        if cli.print.as_json:
            cli.print.json(answer)
            return
        cli.print.table(answer.compliance, _columns(cli, dimensions), empty="No findings.")
        if answer.next_page_token:
            cli.print.say(f"There are more than {limit}: --limit 0 shows all.", "dim")
        if answer.compliance and not by_day:
            days = cli.api.pages("pipeline_executor.QueryCompliance", "compliance", limit=0, group_by=["day"], **asked)
            _show_course(cli, days.compliance)


def _columns(cli: Cli, dimensions: Sequence[str]) -> list[Column]:
    return [
        *(Column(name, dimension(name)) for name in dimensions),
        Column("open", lambda each: each.failed, right=True),
        Column("passed", lambda each: each.passed, right=True),
        Column("muted", lambda each: each.muted or "", right=True),
        Column("exempt", lambda each: each.exempt or "", right=True),
        Column("undecided", lambda each: each.undecided or "", right=True),
        Column("pass rate", lambda each: f"{Decimal(each.pass_rate):.1%}" if each.pass_rate else "", right=True),
        Column("", lambda each: _gauge(cli, each)),
    ]


def _show_course(cli: Cli, days: Sequence[Any]) -> None:
    rates = {each.dimensions["day"]: Decimal(each.pass_rate) for each in days if each.pass_rate}
    if not rates:
        return
    first, last = min(rates), max(rates)
    cli.print.line("")
    if first == last:
        cli.print.line(f"{rates[last]:.1%} pass on {last}", "bold")
        return
    cli.print.line(f"{rates[first]:.1%} passed on {first}, {rates[last]:.1%} on {last}:", "bold")
    values = [rates[day] for day in sorted(rates)][-chart_width(cli) :]
    cli.print.line(charts.sparkline(values, unicode=cli.print.unicode), "cyan")


def _gauge(cli: Cli, group: Any) -> Any:
    from rich.text import Text

    if not group.pass_rate:
        return ""
    rate = Decimal(group.pass_rate)
    style = "green" if rate >= Decimal("0.95") else "yellow" if rate >= Decimal("0.8") else "red"
    return Text(charts.gauge(rate, 1, bar_width(cli), unicode=cli.print.unicode), style)
