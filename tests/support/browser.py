"""A real Chromium for tests of pages: found on PATH, or installed by Debian's packages where the tests run as root.

Playwright drives it and brings none of its own. ``page()`` hands out a fresh profile and fails on what the page should
not do: errors of its scripts, violations of its policy, questions to anybody but its gateway.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without these it asks its maker's servers for this and that at every start.
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--force-color-profile=srgb", "--font-render-hinting=none"),
)
_WAIT_MS = 30_000
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"


def executable() -> str:
    """The path of a Chromium; installs it if it can, else the test fails (in CI) or is skipped, saying what to do."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-liberation"]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, check=False, capture_output=True, timeout=600)
        if found := shutil.which("chromium"):
            return found
    missing = "a Chromium is needed on PATH: install the package chromium (Debian: apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def running() -> Iterator[Browser]:
    """One headless browser."""
    expect.set_options(timeout=_WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(_ARGUMENTS), timeout=120_000)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page with what went wrong on it, and every address it asked."""

    page: Page
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, base_url: str, *, allowed: int = 0, **context: Any) -> Iterator[Opened]:
    """A page in a profile of its own; at its end nothing may have gone wrong on it.

    ``allowed``: how many answers of the API may be errors, which Chromium reports like a defect of the page.
    """
    profile = browser.new_context(base_url=base_url, reduced_motion="reduce", **context)
    profile.set_default_timeout(_WAIT_MS)
    profile.add_init_script(
        "document.addEventListener('securitypolicyviolation',"
        " (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`))"
    )
    seen = Opened(profile.new_page())
    seen.page.on("pageerror", lambda error: seen.problems.append(str(error)))
    seen.page.on("console", lambda line: seen.problems.append(line.text) if line.type == "error" else None)
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    try:
        yield seen
        refused = [problem for problem in seen.problems if problem.startswith("Failed to load resource")]
        others = [problem for problem in seen.problems if problem not in refused]
        assert others == [] and len(refused) <= allowed, seen.problems
        outside = [url for url in seen.asked if not url.startswith((base_url, "data:"))]
        assert outside == [], outside
    finally:
        profile.close()


def picture(page: Page, name: str, folder: Path) -> Path:
    """Saves what the page looks like; with ``PICTURES=1`` also where the README shows it from."""
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    if os.environ.get("PICTURES"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, PICTURES / path.name)
    return path
