"""The frame in a real browser: keys, connections that break, narrow screens, and what it costs to open."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import Browser, Window
from tests.support.cable import cable_to
from tests.support.running_server import Running

if TYPE_CHECKING:
    from playwright.sync_api import Route

MOST_BYTES = 250_000  # over the wire, until the first view is there
MOST_MS = 300  # until something is painted


def test_it_opens(window: Window, open_server: Running) -> None:
    page = window.open(open_server.url, "#/server")
    page.get_by_role("heading", name="Server", level=1).wait_for()
    page.get_by_text("tiny", exact=True).wait_for()
    assert page.get_by_role("navigation", name="Views").get_by_role("link").count() >= 2
    assert page.title() == "Server · manylora"


def test_where_there_is_no_view(window: Window, open_server: Running) -> None:
    page = window.open(open_server.url, "#/<img src=x onerror=alert(1)>/%E0%A4%A")
    page.get_by_role("heading", name="There is no").wait_for()
    assert page.locator("main img").count() == 0
    page.get_by_role("link", name="To the beginning").click()
    page.get_by_role("heading", level=1).wait_for()


def test_a_key_is_asked_for_and_a_wrong_one_refused(window: Window, keyed_server: Running) -> None:
    page = window.open(keyed_server.url, "#/server")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    field = dialog.get_by_label("API key")
    assert field.evaluate("element => element === document.activeElement")
    assert page.locator(".view").count() == 0
    for _ in range(3):
        page.keyboard.press("Escape")
    field.fill("wrong")
    field.press("Enter")
    dialog.get_by_text("This key opens nothing here.").wait_for()
    field.fill("user-key")
    dialog.get_by_role("button", name="Open").click()
    page.get_by_role("heading", name="Server", level=1).wait_for()
    assert dialog.count() == 0
    told = page.locator(".facts").last.inner_text().splitlines()
    assert told[:4] == ["Ask for answers", "yes", "Manage adapters", "no"]
    stored = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length, location.href]")
    assert stored[:3] == ["", 0, 0]
    assert "user-key" not in stored[3]
    page.reload()  # in memory only: gone
    page.get_by_role("dialog").wait_for()


def test_a_key_is_kept_for_the_tab_if_that_is_asked_for(window: Window, keyed_server: Running) -> None:
    page = window.open(keyed_server.url, "#/server")
    page.get_by_label("API key").fill("the-admin-key")
    page.get_by_label("Keep it until this tab is closed").check()
    page.get_by_role("button", name="Open").click()
    page.get_by_role("heading", name="Server", level=1).wait_for()
    page.reload()
    page.get_by_role("heading", name="Server", level=1).wait_for()
    page.get_by_role("button", name="Forget key").click()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("[document.cookie, sessionStorage.length]") == ["", 0]


def test_what_is_copied_has_no_key_in_it(window: Window, keyed_server: Running) -> None:
    page = window.open(keyed_server.url, "#/server")
    page.get_by_label("API key").fill("the-admin-key")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("tiny", exact=True).wait_for()
    page.get_by_text("Show as curl").first.click()
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"curl '{keyed_server.url}/version'")
    assert "$MANYLORA_API_KEY" in copied
    assert "the-admin-key" not in page.content()


def test_the_server_goes_away_and_comes_back(
    window: Window, open_server: Running, keyed_server: Running
) -> None:
    window.expected += ["console", "ERR_", "401"]
    with cable_to(open_server.url) as cable:
        page = window.open(cable.url, "#/server")
        page.get_by_text("tiny", exact=True).wait_for()
        cable.cut()
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.get_by_text("Not connected.").wait_for()
        assert page.get_by_text("tiny", exact=True).is_visible()  # what was read stays
        cable.join(open_server.url)
        page.get_by_text("Not connected.").wait_for(state="detached")
        cable.cut()
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.get_by_text("Not connected.").wait_for()
        cable.join(keyed_server.url)  # started anew, with keys
        page.get_by_role("button", name="Try now").click()
        page.get_by_role("dialog", name="This server asks for a key").wait_for()


def test_it_opens_while_the_server_is_away(window: Window, open_server: Running) -> None:
    window.expected += ["ERR_"]
    with cable_to(open_server.url) as cable:
        page = window.page
        page.route("**/v1/access", lambda route: route.abort())
        page.goto(f"{cable.url}/console#/server")
        page.get_by_text("Not connected.").wait_for()
        page.unroute("**/v1/access")
        page.get_by_role("heading", name="Server", level=1).wait_for()


def test_behind_a_proxy_that_takes_a_prefix_off(window: Window, open_server: Running) -> None:
    page = window.page
    asked: list[str] = []

    def forward(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(response=route.fetch(url=route.request.url.replace("/llm/", "/", 1)))

    page.route(f"{open_server.url}/llm/**", forward)
    window.open(f"{open_server.url}/llm", "#/server")
    page.get_by_text("tiny", exact=True).wait_for()
    page.locator("pre", has_text=re.compile(f"^{open_server.url}/llm/v1$")).wait_for()
    assert f"{open_server.url}/llm/version" in asked
    page.get_by_role("link", name="Playground").click()
    page.get_by_label("Your message").fill("Hello")
    page.keyboard.press("Enter")
    page.get_by_text("first after").wait_for()


def test_by_keyboard_alone(window: Window, open_server: Running) -> None:
    page = window.open(open_server.url, "#/server")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_text("Show as curl").first.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copy").first.wait_for()
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_people_out(browser: Browser, keyed_server: Running, scheme: str, width: int) -> None:
    with browser.window(scheme="dark" if scheme == "dark" else "light", width=width) as window:
        page = window.open(keyed_server.url, "#/server")
        page.get_by_role("dialog").wait_for()
        assert window.axe() == []
        page.get_by_label("API key").fill("the-admin-key")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("Show as curl").first.wait_for()
        assert window.axe() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def opened(browser: Browser, server: Running) -> tuple[float, float]:
    """Bytes over the wire, and ms until something was painted, of a browser that has nothing cached."""
    sizes = []

    def note(told: dict[str, float]) -> None:
        sizes.append(told["encodedDataLength"])

    with browser.window() as window:
        network = window.page.context.new_cdp_session(window.page)
        network.send("Network.enable")
        network.on("Network.loadingFinished", note)
        page = window.open(server.url)
        page.get_by_role("heading", level=1).first.wait_for()
        page.wait_for_load_state("networkidle")
        painted: float = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert len(sizes) > 20
    return sum(sizes), painted


def test_it_is_small_and_quick(browser: Browser, open_server: Running) -> None:
    found = [opened(browser, open_server) for _ in range(5)]  # the first finds everything cold
    assert max(size for size, _ in found) < MOST_BYTES
    assert min(painted for _, painted in found) < MOST_MS, found
