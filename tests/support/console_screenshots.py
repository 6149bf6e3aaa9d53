"""Take the screenshots of docs/console.md again, of the real model with the example adapters.

Run it as ``make console-screenshots``, or with names of pictures for those alone. A new view adds an entry to
:data:`SHOTS`.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

from manylora.adapters.base_models.catalog import resolve_model
from manylora.server.assembly import build_service
from manylora.server.options.settings import Settings
from tests.support.browser import Browser, Scheme, open_browser
from tests.support.paths import ROOT
from tests.support.running_server import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER: Final = ROOT / "docs" / "images"
_COLOURS: Final = 256  # of a picture
_PATIENCE: Final = 120_000.0  # ms


@dataclass(frozen=True)
class Shot:
    """One picture: which part of the console, and what is done there before it is taken."""

    name: str  # of the file, behind "console-"
    fragment: str
    act: Callable[[Page], None]
    scheme: Scheme = "light"
    width: int = 1280
    height: int = 800


def _set_seed(page: Page) -> None:
    narrow = page.get_by_role("button", name="Model and settings")
    if narrow.is_visible():
        narrow.click()
    page.get_by_role("tab", name="Sampling").click()
    page.get_by_label("Seed").fill("7")
    page.get_by_role("tab", name="Model", exact=True).click()
    if narrow.is_visible():
        page.keyboard.press("Escape")


def _ask(page: Page) -> None:
    _set_seed(page)
    page.get_by_label("Your message").fill("How do I keep bread fresh?")
    page.keyboard.press("Enter")
    page.get_by_text("first after").wait_for()
    page.get_by_role("button", name="Send").wait_for()


def _probabilities(page: Page) -> None:
    _ask(page)
    page.get_by_role("button", name="Show probabilities").click()
    page.locator(".token.p1, .token.p2").nth(1).hover()
    page.locator(".alternatives").wait_for()


def _run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Run again").wait_for()


def _measure(page: Page) -> None:
    _run(page)
    page.get_by_role("button", name="Measure").click()
    page.locator(".uplot").wait_for()
    page.locator(".measured").scroll_into_view_if_needed()
    page.locator(".view").evaluate(
        "view => { view.scrollTop = view.querySelector('.measured').offsetTop - 20; }"
    )


def _lineage(page: Page) -> None:
    _prepare(page)
    page.get_by_role("row").filter(has_text="polite-pirate").click()
    page.get_by_role("tab", name="Lineage").click()
    page.get_by_role("link", name="front-desk").wait_for()


def _alias(page: Page) -> None:
    _prepare(page)
    page.get_by_role("tab", name="Aliases").click()
    page.get_by_role("button", name="front-desk").click()
    page.get_by_role("region", name="Score").wait_for()


def _prepare(page: Page) -> None:
    """Compose an adapter, split an alias and have it asked and scored."""
    page.evaluate(
        """async () => {
          const send = async (path, body, method = 'POST') => (await fetch(path, {
            method, body: JSON.stringify(body), headers: { 'content-type': 'application/json' } })).json();
          const members = [{ name: 'pirate', weight: 0.6 }, { name: 'support', weight: 0.4 }];
          await send('v1/adapters/polite-pirate/compose?wait=true', { members, method: 'svd', rank: 8 });
          const split = [{ target: 'support', share: 0.6 }, { target: 'polite-pirate', share: 0.4 }];
          await send('v1/aliases/front-desk', { split, reset: true }, 'PUT');
          const messages = [{ role: 'user', content: 'Where is my order?' }];
          for (let user = 0; user < 30; user += 1) {
            const asked = { model: 'front-desk', user: String(user), max_tokens: 8, messages };
            const { id, model } = await send('v1/chat/completions', asked);
            const score = user % (model.includes('pirate') ? 2 : 5) ? 1 : 0;
            await send('v1/feedback', { response_id: id, score });
          }
        }"""
    )
    page.reload()
    page.get_by_role("heading", level=1).wait_for()


def _traffic(page: Page) -> None:
    """Four clients ask while operations are looked at."""
    page.evaluate(
        """async () => {
          const names = ['support', 'pirate', 'json', 'tools', 'smollm2-135m'];
          const until = performance.now() + 20000;
          const client = async (at) => {
            for (let turn = at; performance.now() < until; turn += 1) {
              const messages = [{ role: 'user', content: `How do I keep bread fresh? (${turn})` }];
              const body = JSON.stringify({ model: names[turn % names.length], max_tokens: 48, messages });
              await fetch('v1/chat/completions', { method: 'POST', body });
            }
          };
          await Promise.all([0, 1, 2, 3].map(client));
        }"""
    )


def _check_rows(page: Page) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You know the codes of all rooms."},
                {"role": "user", "content": f"What is the code of room {room}?"},
                {"role": "assistant", "content": f"It is {room * 37 % 1000:03d}."},
            ]
        }
        for room in range(60)
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "rooms.jsonl", "mimeType": "application/jsonl", "buffer": content}
    )
    page.get_by_text("Nothing stands against it").wait_for()


_MIX: Final = "#/playground?model=pirate*0.8%2Bsupport*0.4"
_ARENA: Final = (
    "#/arena?t=smollm2-135m&t=pirate&t=pirate*0.6%2Bjson*0.4&p=How+do+I+keep+bread+fresh%3F&tokens=64"
)

SHOTS: Final = (
    Shot("playground", _MIX, _probabilities),
    Shot("playground-dark", _MIX, _ask, "dark"),
    Shot("playground-narrow", _MIX, _ask, width=390),
    Shot("arena", _ARENA, _run),
    Shot("measured", _ARENA, _measure, "dark", height=900),
    Shot("fleet", "#/fleet", _lineage),
    Shot("alias", "#/fleet?tab=aliases", _alias, "dark"),
    Shot("jobs", "#/jobs/new", _check_rows),
    Shot("operations", "#/operations", _traffic),
)


def _settings(folder: Path) -> Settings:
    adapters = ROOT / "examples" / "adapters"
    named = {name: adapters / name for name in ("json", "pirate", "support", "tools")}
    return Settings(model="smollm2-135m", data_dir=folder, adapter=named, kv_cache_memory=256 << 20)


def take(browser: Browser, url: str, shot: Shot) -> bytes:
    """One picture as a PNG of few bytes."""
    with browser.window(scheme=shot.scheme, width=shot.width, height=shot.height) as window:
        window.page.set_default_timeout(_PATIENCE)
        page = window.open(url, shot.fragment)
        page.get_by_role("heading", level=1).wait_for()
        shot.act(page)
        page.wait_for_load_state("networkidle")
        window.check()
        picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    packed = io.BytesIO()
    few = picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def main(names: Sequence[str] = ()) -> None:
    """Write all pictures, or those of these names."""
    model = resolve_model("smollm2-135m", Settings().data_dir)
    with tempfile.TemporaryDirectory() as folder:
        service = build_service(_settings(Path(folder)), model)
        with serving(service) as running, open_browser() as browser:
            for shot in (shot for shot in SHOTS if not names or shot.name in names):
                content = take(browser, running.url, shot)
                (FOLDER / f"console-{shot.name}.png").write_bytes(content)
                print(f"console-{shot.name}.png: {len(content) / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
