"""The arena in a real browser, over a real server with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.console.assets import Console
from tests.support.browser import Browser, Window, body_of
from tests.support.hostile_texts import HOSTILE
from tests.support.running_server import Running

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request


def open_arena(window: Window, server: Running, *targets: str, **fields: str) -> Page:
    """The arena with everything set up by its URL."""
    asked = {"p": "Hello", "tokens": "24", **fields}
    query = urlencode([*(("t", target) for target in targets), *asked.items()])
    page = window.open(server.url, f"#/arena?{query}")
    page.get_by_role("button", name="Run").wait_for()
    return page


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Run again").wait_for()


def told(server: Running, adapter: str) -> tuple[int, float | None]:
    """How many scores an adapter has at the server, and their mean."""
    with server.http() as http:
        traffic = http.get(f"/v1/adapters/{adapter}").json()["traffic"]
    return traffic["scores"], traffic["mean_score"]


def test_answers_side_by_side_and_what_differs(window: Window, open_server: Running) -> None:
    page = open_arena(window, open_server, "tiny", "tiny", "alpha*2")
    run(page)
    columns = page.get_by_role("region", name="Prompt 1").get_by_role("article")
    assert columns.count() == 3
    assert columns.nth(1).locator("mark").count() == 0  # the same model, greedily
    assert columns.nth(2).locator("mark").count() > 0
    assert columns.nth(0).locator(".said").inner_text() == columns.nth(1).locator(".said").inner_text()
    page.get_by_label("Mark words that the baseline does not have").uncheck()
    assert page.locator("mark").count() == 0


def test_thumbs_are_counted_by_the_server(window: Window, open_server: Running) -> None:
    page = open_arena(window, open_server, "tiny", "alpha")
    run(page)
    before, _ = told(open_server, "alpha")
    page.get_by_role("button", name="alpha is good").click()
    page.get_by_text("Your votes are counted.").wait_for()
    assert told(open_server, "alpha")[0] == before + 1
    page.get_by_role("button", name="alpha is bad").click()  # changes the vote
    page.get_by_role("list", name="Mean scores").get_by_text("0.00").wait_for()
    assert told(open_server, "alpha")[0] == before + 1


def test_blind_votes(window: Window, open_server: Running) -> None:
    page = open_arena(window, open_server, "alpha", "beta", blind="1")
    sent: list[dict[str, Any]] = []

    def note(asked: Request) -> None:
        if asked.url.endswith("/v1/feedback"):
            sent.append(body_of(asked))

    page.on("request", note)
    run(page)
    shown = page.get_by_role("region", name="Prompt 1")
    assert "alpha" not in shown.inner_text()
    assert "beta" not in shown.inner_text()
    assert page.get_by_role("button", name="Report").is_disabled()  # which would tell
    first = {name: told(open_server, name)[0] for name in ("alpha", "beta")}
    page.get_by_role("button", name="A is best").click()
    page.get_by_text("Your votes are counted.").wait_for()
    assert {name: told(open_server, name)[0] for name in first} == {name: n + 1 for name, n in first.items()}
    assert sorted(each["score"] for each in sent) == [0, 1]
    winner = page.locator(".column.best .model-chip").inner_text()
    assert winner in first
    rank = page.get_by_role("list", name="Mean scores").get_by_role("listitem").first.inner_text()
    assert rank.split() == [winner, "1.00", "1", "vote"]


def test_measuring_and_the_report(
    window: Window, browser: Browser, open_server: Running, tmp_path: Path
) -> None:
    page = open_arena(window, open_server, "tiny", "tiny", "alpha", p=HOSTILE, system="<b>sys</b>")
    run(page)
    page.get_by_role("button", name="Measure").click()
    measured = page.get_by_role("region", name="Measured differences")
    measured.get_by_text("Compared with tiny").wait_for()
    rows = measured.locator(".numbers tr")
    assert rows.count() == 4
    assert "equal up to rounding" in rows.nth(2).inner_text()
    assert "different" in rows.nth(3).inner_text()
    measured.locator(".uplot").wait_for()
    strip = measured.get_by_role("group", name="Divergence of alpha").first
    strip.focus()
    page.keyboard.press("ArrowRight")
    measured.get_by_text("Token 0").wait_for()
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Report").click()
    file = tmp_path / "report.html"
    downloaded.value.save_as(file)
    assert file.read_text().count("<html") == 1
    with browser.window() as other:
        asked: list[str] = []
        other.page.on("request", lambda request: asked.append(request.url))
        other.faults.clear()
        other.page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        assert other.page.locator("script, img, iframe, form, a").count() == 0
        assert HOSTILE[:30] in other.page.locator(".asked").nth(1).inner_text()
        assert other.page.locator("polyline").count() == 2
        other.page.get_by_text("equal up to rounding").first.wait_for()


def test_prompts_from_a_file_and_the_url_that_has_them(
    window: Window, open_server: Running, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    lines = ["A question", json.dumps({"messages": [*turns, {"role": "user", "content": "Three"}]})]
    lines += [json.dumps({"prompt": "B"}), json.dumps({"messages": turns}), "", *["more"] * 20]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines))
    page = open_arena(window, open_server, "tiny")
    page.get_by_label("File with prompts").set_input_files(file)
    page.get_by_text("16 prompts; 8 more are left out.").wait_for()
    page.reload()
    page.get_by_text("16 prompts").wait_for()
    prompts = page.get_by_role("list", name="Prompts").get_by_role("listitem").all_inner_texts()
    assert prompts[:4] == ["A question", "user: One\nassistant: Two\nuser: Three", "B", "One"]
    assert len(prompts) == 16
    for bad, fault in (("{oops", "Line 1"), ("\n", "no prompts"), ('\n{"x": 1}', "Line 2")):
        file.write_text(bad)
        page.get_by_label("File with prompts").set_input_files(file)
        page.get_by_text(fault).last.wait_for()
    page.get_by_role("button", name="Write one instead").click()
    assert page.get_by_label("Prompt", exact=True).input_value() == ""


def test_the_arena_is_as_it_was_when_one_comes_back(window: Window, open_server: Running) -> None:
    page = open_arena(window, open_server, "tiny", "alpha", p="Once more")
    run(page)
    page.get_by_role("link", name="Server").click()
    page.get_by_role("heading", name="Server", level=1).wait_for()
    page.get_by_role("link", name="Arena").click()
    page.get_by_role("region", name="Prompt 1").get_by_text("Once more").wait_for()
    assert "p=Once+more" in page.url
    page.get_by_role("link", name="Arena").click()  # the same, without anything of it in the URL
    assert page.get_by_label("Prompt", exact=True).input_value() == "Once more"


def test_eight_targets_and_a_stop(window: Window, open_server: Running) -> None:
    mixes = [f"alpha*{weight}" for weight in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    page = open_arena(window, open_server, "tiny", "beta@merged", *mixes)
    window.expected += ["404"]  # there is no such copy: the others answer all the same
    assert page.get_by_role("combobox", name="Add a target").count() == 0
    run(page)
    columns = page.get_by_role("region", name="Prompt 1").get_by_role("article")
    assert columns.count() == 8
    assert columns.get_by_role("alert").count() == 1
    assert columns.get_by_text("first after").count() == 7
    page.get_by_role("button", name="Run again").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Run again").wait_for()
    open_server.wait_until_idle()


WORDS = st.lists(st.sampled_from(["a", "b", "c", " ", "\n", ".", "é", "<b>"]), max_size=14).map("".join)


def test_marked_words_are_those_that_differ(window: Window, open_server: Running) -> None:
    """Pieces make up the answer, and what is not marked stands in the baseline in this order."""
    page = window.open(open_server.url)
    module = f"{open_server.url}/console/{Console().version}/views/arena/differences.js"
    page.evaluate("(url) => import(url).then((found) => { window.differences = found.differences; })", module)

    @settings(max_examples=60, deadline=None)
    @given(WORDS, WORDS)
    def check(baseline: str, answer: str) -> None:
        pieces = page.evaluate("([one, other]) => differences(one, other)", [baseline, answer])
        assert "".join(piece["text"] for piece in pieces) == answer
        rest = iter(baseline)
        assert all(letter in rest for piece in pieces if not piece["differs"] for letter in piece["text"])
        if baseline == answer:
            assert not any(piece["differs"] for piece in pieces)

    check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_people_out(browser: Browser, open_server: Running, scheme: str, width: int) -> None:
    with browser.window(scheme="dark" if scheme == "dark" else "light", width=width) as window:
        page = open_arena(window, open_server, "tiny", "alpha", "beta")
        page.get_by_text("How they answer").click()
        run(page)
        page.get_by_role("button", name="alpha is good").click()
        page.get_by_role("button", name="Measure").click()
        page.locator(".uplot").wait_for()
        assert window.axe() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        window.check()
