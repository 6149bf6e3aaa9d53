"""The console over the real model and its example adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.server.assembly import build_service
from manylora.server.options.settings import Settings
from tests.support.browser import Window
from tests.support.paths import ROOT
from tests.support.running_server import Running, serving

EXAMPLES = ROOT / "examples" / "adapters"
PIRATES = re.compile(r"arr|matey|ahoy|captain|sail", re.IGNORECASE)


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory, real_model_dir: Path) -> Iterator[Running]:
    named = {name: EXAMPLES / name for name in ("json", "pirate")}
    options: dict[str, Any] = {"adapter": named, "data_dir": tmp_path_factory.mktemp("data")}
    options["kv_cache_memory"] = 128 << 20
    with serving(build_service(Settings(model="smollm2-135m", **options), real_model_dir)) as running:
        yield running


def test_a_pirate_talks_like_one(window: Window, real_server: Running) -> None:
    window.page.set_default_timeout(60_000)
    page = window.open(real_server.url, "#/playground?model=pirate&prompt=How do I keep bread fresh?")
    page.get_by_role("tab", name="Sampling").click()
    for label, value in (("Temperature", "0"), ("Longest answer", "40")):
        field = page.get_by_label(f"{label}, as a number")
        field.fill(value)
        field.press("Enter")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("first after").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    assert PIRATES.search(page.locator(".turn.assistant .markdown").inner_text())


def test_the_arena_measures_what_an_adapter_does(window: Window, real_server: Running) -> None:
    window.page.set_default_timeout(60_000)
    targets = "t=smollm2-135m&t=smollm2-135m&t=pirate"
    page = window.open(real_server.url, f"#/arena?{targets}&p=How do I keep bread fresh?&tokens=32")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Run again").wait_for()
    answers = page.locator(".column .said").all_inner_texts()
    assert answers[0] == answers[1]
    assert PIRATES.search(answers[2])
    assert not PIRATES.search(answers[0])
    page.get_by_role("button", name="Measure").click()
    rows = page.locator(".numbers tr")
    rows.nth(3).wait_for()
    assert "equal up to rounding" in rows.nth(2).inner_text()
    assert "different" in rows.nth(3).inner_text()
