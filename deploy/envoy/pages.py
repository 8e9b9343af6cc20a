"""What the gateway serves by itself, without a key: the API reference, its description, the console, and their assets.

``render`` puts these routes before all others. Envoy reads each file once, when it starts, and answers from memory.
The two libraries (Swagger UI, uPlot) are files of installed packages, pinned by hash in the lock; none of the packages'
Python runs. A page may load from here only and holds no inline script: the policy says so, tests see that it is kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_CONSOLE = _HERE.parents[1] / "services" / "console"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@dataclass(frozen=True, slots=True)
class Page:
    """One path and the file that answers it; a library's file changes with its release only."""

    path: str
    file: Path
    library: bool = False


def pages() -> Iterator[Page]:
    """Every path that is a file. Raises ``ModuleNotFoundError`` where a library's package is not installed."""
    yield Page("/openapi.json", _HERE / "openapi.json")
    yield Page("/docs", _HERE / "docs" / "index.html")
    yield from (Page(f"/docs/{file.name}", file) for file in _assets(_HERE / "docs"))
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        yield Page(f"/docs/{name}", _installed("fastapi_offline") / "static" / name, library=True)
    yield Page("/console", _CONSOLE / "index.html")
    yield from (Page(f"/console/{file.name}", file) for file in _assets(_CONSOLE))
    for name in ("uplot.iife.min.js", "uplot.min.css"):
        yield Page(f"/console/{name}", _installed("youplot") / "vendor" / name, library=True)


def routes() -> list[dict[str, Any]]:
    """Envoy's routes to the pages."""
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return [
        {
            "match": {"path": page.path},
            "direct_response": {"status": 200, "body": {"filename": str(page.file)}},
            "response_headers_to_add": [
                {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
                for name, value in _headers(page).items()
            ],
            "typed_per_filter_config": {
                "envoy.filters.http.ext_authz": off,
                "envoy.filters.http.grpc_json_transcoder": off,
            },
        }
        for page in pages()
    ]


def _headers(page: Page) -> dict[str, str]:
    return {
        "content-type": _TYPES[page.file.suffix],
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "public, max-age=86400" if page.library else "no-cache",
    }


def _assets(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix in _TYPES and file.name != "index.html"]


def _installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the gateway serves files of the package {package}, which is not installed")
    return Path(spec.submodule_search_locations[0])
