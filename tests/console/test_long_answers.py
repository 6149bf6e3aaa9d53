"""Answers in the playground that are long, stopped, or cut off."""

from __future__ import annotations

from tests.support.browser import Window
from tests.support.cable import cable_to
from tests.support.playground import Playground, never_ending, set_length
from tests.support.running_server import Running


def test_an_answer_is_stopped(playground: Playground, open_server: Running) -> None:
    page = playground.page
    set_length(page, 2048)
    never_ending(page)
    playground.ask("Hello", until_end=False)
    page.locator(".turn-foot").get_by_text("tokens").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped").wait_for()
    open_server.wait_until_idle()
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Stop").click()
    assert playground.sent[-1]["continue_final_message"] is True


def test_a_connection_that_breaks_in_mid_answer(window: Window, open_server: Running) -> None:
    window.expected += ["ERR_"]
    with cable_to(open_server.url) as cable:
        page = window.open(cable.url, "#/playground")
        playground = Playground(page)
        page.get_by_label("Your message").wait_for()
        set_length(page, 2048)
        never_ending(page)
        playground.ask("Hello", until_end=False)
        page.locator(".turn-foot").get_by_text("tokens").wait_for()
        cable.cut()
        page.get_by_text("The connection broke off before the answer was complete.").wait_for()
        kept = page.locator(".turn.assistant .markdown").inner_text()
        assert kept
        page.get_by_text("Not connected.").wait_for()
        open_server.wait_until_idle()
        cable.join(open_server.url)
        page.get_by_text("Not connected.").wait_for(state="detached")
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("button", name="Stop").click()
        assert playground.sent[-1]["messages"][-1]["role"] == "assistant"


def test_an_answer_of_two_thousand_tokens(window: Window, open_server: Running) -> None:
    page = window.open(open_server.url, "#/playground")
    playground = Playground(page)
    set_length(page, 2000)
    never_ending(page)
    page.get_by_role("button", name="Show probabilities").click()
    page.evaluate(
        """() => {
          window.longest = 0;
          let before = performance.now();
          const look = () => {
            const now = performance.now();
            window.longest = Math.max(window.longest, now - before);
            before = now;
            requestAnimationFrame(look);
          };
          requestAnimationFrame(look);
        }"""
    )
    page.set_default_timeout(120_000)
    playground.ask("Hello")
    assert "2,000 tokens" in playground.last()
    assert len(playground.tokens()) == 2000
    assert page.evaluate("window.longest") < 1500  # ms in which nothing could be done, on a busy machine
