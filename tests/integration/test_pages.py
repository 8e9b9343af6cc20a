"""The two pages that the gateway serves, in a real Chromium, before stand-in services: the API reference, the console.

Nothing that a page should not do goes unseen (``support/browser.py``). ``PICTURES=1`` (``make pictures``) saves the
README's pictures anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from libs import errors
from tests.support import console
from tests.support.browser import opened, picture, running
from tests.support.gateway import ADMIN_KEY, StandIns, running_gateway
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(900)
WIDE = {"viewport": {"width": 1180, "height": 900}}
NARROW = {"viewport": {"width": 375, "height": 800}}
NOVEMBER = (date(2025, 11, 1), date(2025, 11, 30))


@pytest.fixture(scope="module")
def running_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIns]:
    with running_gateway(tmp_path_factory.mktemp("pages"), port=free_port(), rate_burst=100_000) as stand_ins:
        yield stand_ins


@pytest.fixture
def edge(running_edge: StandIns) -> Iterator[StandIns]:
    running_edge.reset()
    running_edge.answers.update(console.ANSWERS)
    yield running_edge
    running_edge.reset()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running() as found:
        yield found


def sign_in(page: Page, key: str = "runner-key") -> None:
    page.clock.set_fixed_time(console.NOW)
    page.goto("/console")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def shown(page: Page) -> None:
    """Waits until every part is there."""
    expect(page.locator("section.part")).to_have_count(5)
    expect(page.locator("[aria-busy]")).to_have_count(0)


def kept(page: Page) -> str:
    """All that the browser keeps for the page's origin."""
    stored: dict[str, Any] = page.evaluate("({local: {...localStorage}, session: {...sessionStorage}})")
    return json.dumps([stored, page.context.cookies(), page.url, page.content()])


def flaws(page: Page) -> list[str]:
    """What axe finds wrong for people who cannot see the page, or not well, or use no mouse."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]


def dollars(amount: Any) -> str:
    return f"${amount:,.2f}"


# --- the console ---


def test_it_shows_what_was_spent_to_the_cent(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, edge.base_url, **WIDE) as seen:
        page = seen.page
        sign_in(page)
        shown(page)
        expect(page.locator(".headline strong")).to_have_text(dollars(console.total(*NOVEMBER)))
        expect(page.locator(".headline")).to_contain_text("the month before")
        services = page.get_by_role("table", name="Costs by service").locator("tbody tr")
        expect(services).to_have_count(10)
        ec2 = services.filter(has_text="AmazonEC2")
        expect(ec2.locator("td").nth(1)).to_have_text(dollars(console.total(*NOVEMBER, service="AmazonEC2")))
        # What a tenant's provider calls a thing is text, whatever it looks like.
        expect(services.filter(has_text="<b>Key Vault</b>")).to_have_count(1)
        page.get_by_text("By day, as a table").first.click()
        days = page.get_by_role("table", name="Cost by day and service").locator("tbody tr")
        expect(days).to_have_count(30)
        first = console.total(date(2025, 11, 1), date(2025, 11, 1))
        expect(days.first.locator("td").last).to_have_text(dollars(first))
        page.get_by_text("By day, as a table").first.click()
        # The canvas says by pointer and by arrow keys what the table says.
        chart = page.get_by_role("img", name=re.compile("^Cost by day and service"))
        chart.press("ArrowRight")
        expect(page.locator(".tip strong").first).to_have_text(f"Nov 1 · {dollars(first)}")
        chart.press("Escape")
        page.get_by_label("Month", exact=True).select_option("2025-10")
        october = console.total(date(2025, 10, 1), date(2025, 10, 31))
        expect(page.locator(".headline strong")).to_have_text(dollars(october))
        page.get_by_label("Month", exact=True).select_option("2025-11")
        expect(page.locator(".headline strong")).to_have_text(dollars(console.total(*NOVEMBER)))
        picture(page, "console", tmp_path)
        assert flaws(page) == []
        asked = {call.caller.key_id for call in edge.calls}
        assert asked == {"key_runner"} and all("runner-key" not in url for url in seen.asked)


def test_it_shows_compliance_runs_schedules_and_quotas(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, edge.base_url, **WIDE) as seen:
        page = seen.page
        sign_in(page)
        shown(page)
        worst = page.get_by_role("table", name="Pass rate by standard").locator("tbody tr").first
        expect(worst).to_contain_text("PCI DSS 4.0")
        expect(worst).to_contain_text("71.9 %")
        failed = page.get_by_role("button", name=re.compile("failed"))
        failed.focus()
        failed.press("Enter")
        expect(failed).to_have_attribute("aria-expanded", "true")
        expect(page.locator(".why")).to_contain_text("QUALITY_FAILED")
        steps = page.get_by_role("table", name=re.compile("^Steps of run"))
        expect(steps.locator("tbody tr")).to_have_count(5)
        expect(steps.locator("tbody tr").nth(3)).to_contain_text("failed")
        expect(page.get_by_role("table", name="Schedules")).to_contain_text("in 20 h 0 min")
        expect(page.locator("#quotas")).to_contain_text("634 of 750 runs")
        failed.scroll_into_view_if_needed()
        page.locator("#runs").screenshot(path=tmp_path / "runs.png")
        page.locator("#quotas").scroll_into_view_if_needed()
        page.locator("#quotas").screenshot(path=tmp_path / "quotas.png")
        assert flaws(page) == []


def test_a_run_that_goes_on_is_followed_to_its_end(edge: StandIns, browser: Browser) -> None:
    with opened(browser, edge.base_url, **WIDE) as seen:
        sign_in(seen.page)
        shown(seen.page)
        live = seen.page.locator(".runs > li").first
        expect(live.locator(".chip").first).to_have_text("running")
        live.get_by_role("button").first.click()
        expect(live.locator(".chip").first).to_have_text("completed")
        expect(live).to_contain_text("18,431 rows")
        assert any(url.endswith(":watch") for url in seen.asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen_and_the_dark(edge: StandIns, browser: Browser, tmp_path: Path, scheme: Any) -> None:
    with opened(browser, edge.base_url, color_scheme=scheme, **NARROW) as seen:
        page = seen.page
        sign_in(page)
        shown(page)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= NARROW["viewport"]["width"]
        assert flaws(page) == []
        if scheme == "light":
            picture(page, "console-narrow", tmp_path)
        else:
            page.set_viewport_size(WIDE["viewport"])  # type: ignore[arg-type]
            page.wait_for_timeout(200)
            assert flaws(page) == []
            picture(page, "console-dark", tmp_path)


def test_an_empty_tenant_is_told_what_comes_next(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    edge.answers.clear()
    edge.answers.update(console.EMPTY)
    edge.answers["PipelineService/QueryCompliance"] = _raise(errors.Unimplemented("NOT_IMPLEMENTED", "Not yet."))
    with opened(browser, edge.base_url, allowed=1, **WIDE) as seen:
        page = seen.page
        sign_in(page)
        shown(page)
        for text in ("No costs yet.", "Compliance is not served here yet.", "No runs yet.", "Nothing is scheduled."):
            expect(page.get_by_text(text)).to_be_visible()
        expect(page.locator("#quotas")).to_contain_text("0 of 6 runs")
        assert flaws(page) == []
        page.screenshot(path=tmp_path / "console-empty.png")


def test_a_part_that_fails_says_why_and_can_be_asked_again(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    trouble = _raise(errors.Aborted("TABLE_BUSY", "The costs are being replaced right now. Try again."))
    edge.answers |= {"PipelineService/QueryCosts": trouble, "TenantService/GetUsage": trouble}
    with opened(browser, edge.base_url, allowed=2, **WIDE) as seen:
        page = seen.page
        sign_in(page)
        shown(page)
        failure = page.locator("#costs").get_by_role("alert")
        expect(failure).to_contain_text("being replaced right now")
        said = page.locator("#costs code").inner_text()
        assert said in (edge.directory / "envoy.log").read_text()
        assert flaws(page) == []
        page.screenshot(path=tmp_path / "console-error.png")
        edge.answers |= console.ANSWERS
        failure.get_by_role("button", name="Try again").click()
        expect(page.locator(".headline strong")).to_have_text(dollars(console.total(*NOVEMBER)))


def test_a_key_is_kept_in_memory_only(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, edge.base_url, allowed=1, **WIDE) as seen:
        page = seen.page
        page.goto("/console")
        expect(page.get_by_label("API key")).to_be_focused()
        page.screenshot(path=tmp_path / "console-door.png")
        assert flaws(page) == []
        sign_in(page, "nobody")
        expect(page.get_by_role("alert")).to_contain_text("not known")
        expect(page.get_by_label("API key")).to_have_value("")
        page.get_by_label("API key").fill("schlüssel")
        page.get_by_role("button", name="Sign in").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not an API key")
        sign_in(page)
        shown(page)
        assert "runner-key" not in kept(page)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.locator("section.part")).to_have_count(0)
        sign_in(page)
        shown(page)
        page.reload()
        expect(page.get_by_label("API key")).to_have_value("")
        assert "runner-key" not in kept(page)


def test_a_key_that_is_taken_back_ends_the_session(edge: StandIns, browser: Browser) -> None:
    with opened(browser, edge.base_url, allowed=5, **WIDE) as seen:
        sign_in(seen.page)
        shown(seen.page)
        edge.authz_status = 401
        seen.page.get_by_role("button", name="Refresh").click()
        expect(seen.page.get_by_role("alert")).to_contain_text("no longer known")
        expect(seen.page.locator("section.part")).to_have_count(0)


def test_the_platform_admin_chooses_a_tenant(edge: StandIns, browser: Browser) -> None:
    with opened(browser, edge.base_url, **WIDE) as seen:
        sign_in(seen.page, ADMIN_KEY)
        shown(seen.page)
        seen.page.get_by_label("Tenant").select_option("other_co")
        expect(seen.page.locator("h1")).to_have_text("Convergence console of other_co")
        shown(seen.page)
        assert edge.calls[-1].request.tenant_id == "other_co"


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def answer(_request: Any) -> Any:
        raise error

    return answer


# --- the API reference ---


def test_the_reference_shows_every_path_and_tries_one(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, edge.base_url, **WIDE) as seen:
        page = seen.page
        page.goto("/docs")
        described = page.request.get("/openapi.json").json()
        wanted = sum(len(verbs) for verbs in described["paths"].values())
        expect(page.locator(".opblock")).to_have_count(wanted)
        page.screenshot(path=tmp_path / "reference-top.png")
        page.get_by_role("button", name="Authorize").first.click()
        page.get_by_label("Value:").fill("runner-key")
        page.locator(".auth-btn-wrapper").get_by_role("button", name="Apply credentials").click()
        page.locator(".auth-btn-wrapper").get_by_role("button", name="Close").click()
        block = page.locator("#operations-Tenants-TenantService_GetCaller")
        block.locator(".opblock-summary-control").click()
        block.get_by_role("button", name="Execute").click()
        answer = block.locator(".live-responses-table .response")
        expect(answer).to_contain_text("200")
        expect(answer).to_contain_text('"api_key_id": "key_runner"')
        expect(answer).to_contain_text("x-request-id")
        assert edge.calls[-1].caller.key_id == "key_runner"
        block.scroll_into_view_if_needed()
        picture(page, "reference", tmp_path)
        assert "runner-key" not in json.dumps(page.evaluate("({...localStorage, ...sessionStorage})"))


def test_the_reference_follows_the_dark(edge: StandIns, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, edge.base_url, color_scheme="dark", **WIDE) as seen:
        seen.page.goto("/docs#/Pipelines/PipelineService_RunPipeline")
        expect(seen.page.locator(".opblock.is-open")).to_have_count(1)
        expect(seen.page.locator("html")).to_have_class(re.compile("dark-mode"))
        seen.page.screenshot(path=tmp_path / "reference-dark.png")
