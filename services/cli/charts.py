"""Charts made of characters: bars and sparklines. Pure text; the caller colours it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = "▁▂▃▄▅▆▇█"

type Number = Decimal | int | float


def bar(value: Number, highest: Number, width: int, *, unicode: bool = True) -> str:
    """A bar as long as ``value``'s share of ``highest``; nothing for a share that is not positive."""
    if value <= 0 or highest <= 0:
        return ""
    eighths = max(1, min(width * 8, round(Decimal(value) / Decimal(highest) * width * 8)))
    if not unicode:
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def gauge(used: Number, limit: Number, width: int, *, unicode: bool = True) -> str:
    """A bar in a frame of ``width``: how much of a limit is used."""
    full = bar(min(used, limit), limit, width, unicode=unicode)
    return full + ("░" if unicode else ".") * (width - len(full))


def sparkline(values: Sequence[Number], *, unicode: bool = True) -> str:
    """One character a value, from the lowest (never above 0) to the highest of them."""
    if not values:
        return ""
    levels = _LEVELS if unicode else "_.-=+*%#"
    low, high = min(0, *values), max(values)
    span = Decimal(high) - Decimal(low)
    if not span:
        return levels[0] * len(values)
    return "".join(levels[min(7, int((Decimal(value) - Decimal(low)) / span * 8))] for value in values)


def fold(values: Sequence[Number], width: int) -> list[Decimal]:
    """The same values as at most ``width`` sums of neighbours, so that a long time fits a narrow terminal."""
    if len(values) <= width:
        return [Decimal(value) for value in values]
    size = -(-len(values) // width)
    return [sum((Decimal(value) for value in values[at : at + size]), Decimal(0)) for at in range(0, len(values), size)]
