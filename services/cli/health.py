"""What the gateway says over plain HTTP, before any key: its health, its clock, and the description of its API."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from services.cli.failures import Exit, Failure
from services.cli.profiles import Profile

_SECONDS = 10.0
_VERBS = frozenset({"get", "post", "patch", "put", "delete"})


def gateway_health(profile: Profile) -> dict[str, str]:
    """``status`` (SERVING or NOT_SERVING) and the gateway's ``date``; exits 6 if it does not answer."""
    code, headers, _ = get(profile, "/health")
    return {"status": "SERVING" if code == 200 else "NOT_SERVING", "date": headers.get("date", "")}


def described_paths(profile: Profile) -> set[str] | None:
    """Verb and path of every call that the gateway describes at ``/openapi.json``; None if it describes none."""
    code, _, body = get(profile, "/openapi.json")
    try:
        paths = json.loads(body)["paths"] if code == 200 else None
        return paths and {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs if verb in _VERBS}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def get(profile: Profile, path: str) -> tuple[int, dict[str, Any], bytes]:
    """Status, headers (lower case) and body of a GET without a key."""
    address = profile.address  # refuses what is not encrypted
    context = ssl.create_default_context(cafile=profile.ca_file or None) if address.tls else None
    handlers: list[Any] = [urllib.request.HTTPSHandler(context=context)]
    if not address.tls:
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(profile.url.rstrip("/") + path, timeout=_SECONDS) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, b""
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Failure(
            f"No answer from {profile.url}.",
            exit_code=Exit.UNAVAILABLE,
            lines=[str(reason)],
            advice="Is the address right, and does it run? For the local stack: `make up`.",
        ) from None
