"""``usage`` and ``costs``: what a tenant used of its plan, and what it spends; tables with charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli import charts
from services.cli.command import Cli, LimitOption, command
from services.cli.options import names
from services.cli.output import Column, at

_BAR = 24


class Metric(StrEnum):
    """The metrics of the contract."""

    BILLED = "billed"
    EFFECTIVE = "effective"


def add(root: typer.Typer) -> None:
    """Registers the commands."""

    @command(root, "usage", examples=["convergence usage", "convergence usage --tenant acme -o json"])
    def usage(cli: Cli) -> None:
        """Show what is used of each quota, and runs a day."""
        used = cli.api.call("tenant.GetUsage", tenant_id=cli.tenant)
        if cli.print.as_json:
            cli.print.json(used)
            return
        quotas = [(name, getattr(used, name)) for name in ("daily", "monthly", "concurrent")]
        columns = [
            Column("quota", lambda each: each[0]),
            Column("used", lambda each: each[1].used, right=True),
            Column("limit", lambda each: each[1].limit, right=True),
            Column("left", lambda each: each[1].remaining, right=True),
            Column("", lambda each: _gauge(cli, each[1])),
            Column("opens (UTC)", lambda each: at(each[1].reset_time) if each[1].HasField("reset_time") else ""),
        ]
        cli.print.table(quotas, columns, empty="")
        days = {day.date: day.used for day in used.history}
        if days:
            values = _every_day(days, Decimal)
            line = charts.sparkline(charts.fold(values, chart_width(cli)), unicode=cli.print.unicode)
            cli.print.line("")
            cli.print.line(f"runs a day, {min(days)} to {max(days)}")
            cli.print.line(line, "cyan")

    @command(
        root,
        "costs",
        examples=[
            "convergence costs",
            "convergence costs --by service,account --start-date 2025-11-01 --end-date 2025-11-30 --compare",
            "convergence costs --by day --provider aws --metric effective",
            "convergence costs --by tag:team --output json",
        ],
    )
    def costs(
        cli: Cli,
        by: Annotated[
            str,
            typer.Option(
                "--by",
                help="Up to five of provider, service, account, region, charge_category, currency, day, month, "
                "tag:KEY.",
            ),
        ] = "service",
        start_date: Annotated[
            str, typer.Option("--start-date", metavar="YYYY-MM-DD", help="Default: the first of this month.")
        ] = "",
        end_date: Annotated[
            str, typer.Option("--end-date", metavar="YYYY-MM-DD", help="Included; default: today.")
        ] = "",
        metric: Annotated[Metric, typer.Option("--metric", case_sensitive=False, help="Which cost.")] = Metric.BILLED,
        currency: Annotated[str, typer.Option("--currency", help="Only this currency.")] = "",
        provider: Annotated[str, typer.Option("--provider", help="Only this provider.")] = "",
        service: Annotated[str, typer.Option("--service", help="Only this service.")] = "",
        account: Annotated[str, typer.Option("--account", help="Only this account.")] = "",
        region: Annotated[str, typer.Option("--region", help="Only this region.")] = "",
        charge_category: Annotated[
            str, typer.Option("--charge-category", help="Only Usage, Purchase, Tax, Credit or Adjustment.")
        ] = "",
        tag: Annotated[str, typer.Option("--tag", metavar="KEY=VALUE", help="Only charges with this tag.")] = "",
        compare: Annotated[
            bool, typer.Option("--compare", help="Beside the window of the same length before.")
        ] = False,
        limit: LimitOption = 30,
    ) -> None:
        """Sum up costs, the largest first, and day by day.

        Sums are exact in JSON and rounded to cents in the table; currencies are never added up.
        """
        dimensions = names(by)
        asked = {
            "tenant_id": cli.tenant,
            "start_date": start_date or None,
            "end_date": end_date or None,
            "metric": metric,
            "currency": currency or None,
            "provider": provider or None,
            "service": service or None,
            "account": account or None,
            "region": region or None,
            "charge_category": charge_category or None,
            "tag": tag or None,
        }
        answer = cli.api.pages(
            "pipeline_executor.QueryCosts", "costs", limit=limit, group_by=dimensions, compare=compare, **asked
        )
        if cli.print.as_json:
            cli.print.json(answer)
            return
        for kept in answer.quarantined:
            cost = f"{money(kept.cost)} {kept.currency}".strip()
            cli.print.say(
                f"{kept.rows} rows of {kept.provider} ({cost}) are in quarantine and in no sum: table x_quarantine has "
                "the reasons; correct the source and run its pipeline again.",
                "yellow",
            )
        if not answer.costs:
            cli.print.say("No costs in these dates: `convergence runs list` shows what was brought.")
            return
        days = cli.api.pages("pipeline_executor.QueryCosts", "costs", limit=0, group_by=["day"], **asked)
        in_time = bool({"day", "month"} & set(dimensions))
        _show_costs(cli, answer.costs, dimensions, compare=compare, in_time=in_time)
        if answer.next_page_token:
            cli.print.say(f"There are more than {limit}: --limit 0 shows all. The totals are of all.", "dim")
        _show_totals(cli, days.costs)


def _show_costs(cli: Cli, costs: Sequence[Any], dimensions: Sequence[str], *, compare: bool, in_time: bool) -> None:
    highest: dict[str, Decimal] = defaultdict(Decimal)
    for each in costs:
        highest[each.currency] = max(highest[each.currency], Decimal(each.cost))
    columns = [Column(name, dimension(name)) for name in dimensions]
    columns += [
        Column("cost", lambda each: money(each.cost), right=True),
        Column("currency", lambda each: each.currency),
    ]
    if compare:
        columns += [
            Column("before", lambda each: money(each.previous_cost), right=True),
            Column("change", _change, right=True),
        ]
    columns.append(Column("", lambda each: _bar(cli, Decimal(each.cost), highest[each.currency]), style="cyan"))
    if in_time:
        costs = sorted(costs, key=lambda each: (each.currency, [each.dimensions.get(name, "") for name in dimensions]))
    cli.print.table(costs, columns, empty="")


def _show_totals(cli: Cli, days: Sequence[Any]) -> None:
    of: dict[str, dict[str, Decimal]] = defaultdict(dict)
    for each in days:
        of[each.currency][each.dimensions["day"]] = Decimal(each.cost)
    cli.print.line("")
    for currency, by_day in sorted(of.items()):
        total = f"{money(sum(by_day.values(), Decimal(0)))} {currency}"
        first, last = min(by_day), max(by_day)
        if len(by_day) == 1:
            cli.print.line(f"{total} on {first}", "bold")
            continue
        cli.print.line(f"{total} from {first} to {last}, day by day:", "bold")
        values = charts.fold(_every_day(by_day, Decimal), chart_width(cli))
        cli.print.line(charts.sparkline(values, unicode=cli.print.unicode), "cyan")


def money(amount: str | Decimal) -> str:
    """A decimal to the cent; smaller amounts that are not zero keep what says so."""
    if amount == "":
        return ""
    value = Decimal(amount)
    if value and abs(value) < Decimal("0.01"):
        return f"{value:.4f}" if abs(value) >= Decimal("0.0001") else f"{value:.1E}"
    return f"{value:,.2f}"


def _change(cost: Any) -> str:
    if cost.change == "":
        return ""
    change, before = Decimal(cost.change), Decimal(cost.previous_cost or "0")
    share = f" ({change / before:+.0%})" if before > 0 else ""
    sign = "+" if change > 0 else ""
    return f"{sign}{money(change)}{share}"


def dimension(name: str) -> Callable[[Any], str]:
    """What a group says for one of its dimensions."""
    return lambda each: each.dimensions.get(name, "") or "(none)"


def _bar(cli: Cli, value: Decimal, highest: Decimal) -> str:
    return charts.bar(value, highest, bar_width(cli), unicode=cli.print.unicode)


def _gauge(cli: Cli, quota: Any) -> Any:
    from rich.text import Text

    share = quota.used / quota.limit if quota.limit else 0
    style = "red" if share >= 1 else "yellow" if share >= 0.8 else "green"
    return Text(charts.gauge(quota.used, max(1, quota.limit), bar_width(cli), unicode=cli.print.unicode), style)


def bar_width(cli: Cli) -> int:
    """How long a bar beside a table may be."""
    return _BAR if cli.print.out.width >= 100 else max(6, cli.print.out.width // 8)


def chart_width(cli: Cli) -> int:
    """How long a line of one character a day may be."""
    return min(cli.print.out.width, 92)


def _every_day[N: (int, Decimal)](days: dict[str, N], zero: type[Any]) -> list[Any]:
    """The values of all days from the first to the last; a day without one is 0."""
    day, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
    values = []
    while day <= last:
        values.append(zero(days.get(day.isoformat(), 0)))
        day += timedelta(days=1)
    return values
