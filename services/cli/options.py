"""What options hold, read: pairs, files, times, names of pipelines. What is wrong is said before anything is asked."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer

from services.cli.failures import Exit, Failure

_SPAN = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def span(text: str) -> timedelta:
    """A time such as ``90d``, ``12h``, ``30m``, ``45s``."""
    found = _SPAN.fullmatch(text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no time: write 90d, 12h, 30m or 45s")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def pipeline_fields(text: str) -> dict[str, str]:
    """``provider/domain/template`` as the fields of a request."""
    parts = text.split("/")
    if len(parts) != 3 or not all(parts):
        raise typer.BadParameter(f"{text!r} is not PROVIDER/DOMAIN/TEMPLATE, such as gcp/cost/billing")
    return dict(zip(("provider", "domain", "template"), parts, strict=True))


def names(text: str) -> list[str]:
    """``a,b,c``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def pairs(given: Sequence[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` texts."""
    found = {}
    for pair in given or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        found[name] = value
    return found


def parameters(given: Sequence[str] | None) -> dict[str, Any] | None:
    """``NAME=VALUE`` texts as a template takes them: JSON where it is JSON, ``@FILE`` for what a file holds."""
    found: dict[str, Any] = {}
    for name, value in pairs(given).items():
        text = read_text(value[1:]) if value.startswith("@") else value
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found or None


def source(given: Sequence[str] | None) -> dict[str, Any] | None:
    """``NAME=VALUE`` texts, or one file of JSON."""
    if given and len(given) == 1 and "=" not in given[0]:
        return read_object(given[0])
    return dict(pairs(given)) or None


def read_object(file: str) -> dict[str, Any]:
    """The JSON object in a file (``-``: standard input); what is wrong with it is said without quoting it."""
    try:
        body = json.loads(read_text(file))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Failure(f"{_named(file)} is not a JSON object.", exit_code=Exit.USAGE)
    return body


def read_text(file: str) -> str:
    """The text of a file (``-``: standard input)."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except OSError as exc:
        raise Failure(f"{file} cannot be read: {exc.strerror}.", exit_code=Exit.USAGE) from None
    except UnicodeDecodeError:
        raise Failure(f"{_named(file)} is not UTF-8.", exit_code=Exit.USAGE) from None


def _named(file: str) -> str:
    return "Standard input" if file == "-" else file
