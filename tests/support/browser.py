"""A real browser for tests of the console: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import ConsoleMessage, Page, Request, Response

AXE: Final = ROOT / "build" / "console" / "node_modules" / "axe-core" / "axe.min.js"
"""Finds what keeps people out; ``make console-test`` fetches it."""

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_PATIENCE: Final = 20_000.0  # ms after which something that should be seen is not

# What runs before the page: notes what the policy refused.
_BEFORE: Final = """
window.refused = [];
document.addEventListener('securitypolicyviolation', (event) => {
  refused.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""

Scheme = Literal["light", "dark"]


def why_none() -> str:
    """Why no browser can be driven here; empty if one can."""
    if find_spec("playwright") is None:
        return "Playwright is not installed"
    return "" if _executable() else "there is no chromium"


def _executable() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


@dataclass
class Window:
    """One page in a context of its own, and what went wrong in it."""

    page: Page
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of faults that a test brings about

    def open(self, server: str, fragment: str = "") -> Page:
        """The console of a server, once it shows a view or asks for a key."""
        self.page.goto(f"{server}/console{fragment}")
        self.page.wait_for_selector("h1, dialog[open]")
        return self.page

    def open_with_key(self, server: str, key: str, fragment: str) -> Page:
        """The console of a server that asks for a key, once it was given ``key`` for this tab."""
        page = self.open(server, fragment)
        page.get_by_label("API key").fill(key)
        page.get_by_label("Keep it until this tab is closed").check()
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for(state="detached")
        return page

    def check(self) -> None:
        """Nothing was logged, thrown, or refused by the policy, and nobody else was asked."""
        refused = self.page.evaluate("window.refused ?? []")
        told = [fault for fault in self.faults if not any(part in fault for part in self.expected)]
        assert (told, refused) == ([], [])

    def axe(self) -> list[dict[str, Any]]:
        """What axe-core finds that is serious, in short."""
        assert AXE.is_file(), "axe-core is not there: make console-test fetches it"
        self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = self.page.evaluate("axe.run(document).then((told) => told.violations)")
        return [
            {"id": each["id"], "where": [node["target"] for node in each["nodes"]][:5]}
            for each in found
            if each["impact"] in {"serious", "critical"}
        ]

    def watch(self) -> None:
        """Begin to note what goes wrong."""
        self.page.on("console", self._logged)
        self.page.on("pageerror", lambda error: self.faults.append(f"thrown: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"logged: {message.text}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"answered: {response.status} {response.url}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.faults.append(f"asked: {request.url}")


def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that a page sent."""
    sent = request.post_data_json
    assert isinstance(sent, dict)
    return sent


class Browser:
    """A browser whose windows share nothing."""

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium

    @contextmanager
    def window(self, *, scheme: Scheme = "light", width: int = 1280, height: int = 800) -> Iterator[Window]:
        """A new window."""
        context = self._chromium.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": height},
            locale="en-GB",
            timezone_id="UTC",
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(_PATIENCE)
        context.add_init_script(_BEFORE)
        try:
            window = Window(context.new_page())
            window.watch()
            yield window
        finally:
            context.close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser until the block ends."""
    from playwright.sync_api import sync_playwright

    executable = _executable()
    assert executable is not None
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=Path(executable), args=[*_ARGUMENTS])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
