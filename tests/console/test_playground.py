"""The playground in a real browser, over a real server with tiny models."""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.browser import Browser, Window
from tests.support.hostile_texts import HOSTILE, check_harmless
from tests.support.playground import CHATS, Playground, answered_with
from tests.support.running_server import Running

if TYPE_CHECKING:
    pass


def test_a_chat_with_the_base_an_adapter_and_a_revision(playground: Playground, open_server: Running) -> None:
    with open_server.http() as http:
        revision = http.get("/v1/models/alpha").json()["revision"]
    for asked in ("tiny", "alpha", f"alpha@{revision}"):
        playground.pick(asked)
        playground.ask("Hello")
        assert playground.sent[-1]["model"] == asked
        assert asked in playground.last()
        assert re.search(r"\d+ tokens · first after [\d.]+ m?s", playground.last())
    roles = [message["role"] for message in playground.sent[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


def test_the_mixer_writes_the_model_and_asks_again(playground: Playground) -> None:
    page = playground.page
    for name in ("alpha", "beta"):
        adder = page.get_by_role("combobox", name="Add an adapter")
        adder.fill(name)
        adder.press("Enter")
    playground.ask("Hello")
    assert playground.sent[-1]["model"] == "alpha+beta"
    slider = page.get_by_label("Weight of beta", exact=True)
    slider.focus()
    for _ in range(6):
        slider.press("ArrowLeft")
    page.get_by_text("2 / 2").or_(page.get_by_text(re.compile(r"\d / [3-9]"))).first.wait_for()
    playground.wait()
    assert playground.sent[-1]["model"] == "alpha+beta*0.7"
    assert page.locator(".mix-string code").inner_text() == "alpha+beta*0.7"
    page.get_by_role("button", name="Copy the model string").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "alpha+beta*0.7"
    weight = page.get_by_label("Weight of alpha, as a number")
    weight.fill("-2")
    weight.press("Enter")
    playground.wait()
    assert playground.sent[-1]["model"] == "alpha*-2+beta*0.7"
    asked_before = len(playground.sent)
    page.get_by_label("Ask again when a slider is let go").uncheck()
    page.get_by_role("button", name="Take alpha out").click()
    assert page.locator(".mix-string code").inner_text() == "beta*0.7"
    assert len(playground.sent) == asked_before
    page.get_by_role("button", name="Take beta out").click()
    assert page.locator(".mix-string code").inner_text() == "tiny"


def test_alternatives_are_shown_and_gone_on_from(playground: Playground) -> None:
    page = playground.page
    playground.ask("Hello")
    page.get_by_role("button", name="Show probabilities").click()
    before = playground.tokens()
    page.locator(".token").nth(3).hover()
    card = page.get_by_role("group", name="Instead of")
    assert card.get_by_role("button").count() >= 8
    page.locator(".token").nth(3).click()
    others = card.locator("button:enabled")
    texts = others.locator("code").all_inner_texts()
    # Parts of characters all look alike.
    shown = next(text for text in texts if "\ufffd" not in text and text != before[3])
    others.nth(texts.index(shown)).click()
    page.get_by_text("2 / 2").wait_for()
    playground.wait()
    begun = playground.sent[-1]["messages"][-1]
    assert playground.sent[-1]["continue_final_message"] is True
    assert begun["role"] == "assistant"
    assert begun["content"].startswith("".join(before[:3]))
    after = playground.tokens()
    assert after[:3] == before[:3]
    assert after[3] != before[3]
    assert shown.strip("␣⏎⇥") in begun["content"]
    page.get_by_role("button", name="The version before").click()
    assert playground.tokens() == before


def test_tokens_by_keyboard(playground: Playground) -> None:
    page = playground.page
    playground.ask("Hello")
    page.get_by_role("button", name="Show probabilities").click()
    page.locator('.token[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.at") == "2"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className").startswith("alternative")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.at") == "2"


def test_any_turn_is_edited_and_branches(playground: Playground) -> None:
    page = playground.page
    playground.ask("First")
    playground.ask("Second")
    page.get_by_role("article", name="You").first.get_by_role("button", name="Edit").click()
    editor = page.get_by_label("Text of the turn")
    editor.fill("Other first")
    page.get_by_role("button", name="Ask", exact=True).click()
    playground.wait()
    assert [message["content"] for message in playground.sent[-1]["messages"]] == ["Other first"]
    page.get_by_role("button", name="The version before").first.click()
    page.get_by_text("Second", exact=True).wait_for()
    page.get_by_role("article", name="Assistant").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Text of the turn").fill("My own answer")
    page.get_by_role("button", name="Keep as a branch").click()
    playground.ask("Third")
    told = [(message["role"], message["content"]) for message in playground.sent[-1]["messages"]]
    assert told == [("user", "First"), ("assistant", "My own answer"), ("user", "Third")]


def test_what_models_write_does_nothing(playground: Playground) -> None:
    answered_with(playground.page, HOSTILE)
    playground.ask(HOSTILE)
    check_harmless(playground.page)
    assert playground.page.get_by_role("article", name="You").locator(".said").inner_text() == HOSTILE
    assert "<img src=x onerror=alert(1)>" in playground.last()  # shown as it was written


def test_a_request_for_programs(playground: Playground, open_server: Running) -> None:
    page = playground.page
    playground.pick("alpha*0.5")
    page.get_by_label("System prompt").fill('It\'s "short"\n')
    playground.ask("Hello")
    page.get_by_role("button", name="Show as curl or Python").click()
    words = shlex.split(page.locator("dialog pre").inner_text().replace("\\\n", " "))
    body = json.loads(words[words.index("-d") + 1])
    assert {**playground.sent[-1], "stream_options": None} == {**body, "stream_options": None}
    assert httpx.post(words[3], json={**body, "stream": False}, timeout=60).status_code == 200
    page.get_by_role("tab", name="Python").click()
    program = page.locator("dialog pre").inner_text()
    (call,) = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and "create" in ast.unparse(node.func)
    ]
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    assert given["messages"] == body["messages"]
    assert given["model"] == "alpha*0.5"


def test_tools_and_forms(playground: Playground) -> None:
    page = playground.page
    page.get_by_role("tab", name="Tools & form").click()
    page.get_by_label("Answers are").select_option("schema")
    page.get_by_label("JSON schema").fill("{")
    page.get_by_role("alert").get_by_text("JSON").first.wait_for()
    page.get_by_label("JSON schema").fill('{"enum": ["yes", "no"]}')
    page.get_by_label("Stop at").fill("END\\n")
    page.get_by_role("button", name="Add", exact=True).click()
    playground.ask("Hello")
    assert playground.sent[-1]["stop"] == ["END\n"]
    text = page.locator(".turn.assistant .markdown").inner_text()
    assert json.loads(text) in ("yes", "no")
    page.get_by_label("Answers are").select_option("text")
    page.get_by_role("button", name="Begin with an example").click()
    assert "get_weather" in page.get_by_label("Tools", exact=True).input_value()


def test_calls_of_tools_get_results(playground: Playground) -> None:
    page = playground.page
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": "'},
    }
    rest = {"index": 0, "function": {"arguments": '<img src=x>"}'}}
    chunks: list[dict[str, Any]] = [
        {
            "id": "c",
            "model": "tiny",
            "choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}],
        }
        for piece in (call, rest)
    ]
    chunks.append(
        {"id": "c", "model": "tiny", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    )
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHATS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    playground.ask("Look", until_end=False)
    page.get_by_label("Result of look").fill("nothing there")
    page.get_by_role("button", name="Give the results").click()
    page.get_by_text("nothing there").wait_for()
    page.get_by_label("Result of look").wait_for()
    told = playground.sent[-1]["messages"]
    assert told[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "<img src=x>"}'}
    assert told[2] == {"role": "tool", "tool_call_id": "call_1", "content": "nothing there"}
    assert page.locator("main img").count() == 0


def test_a_refusal_says_why(window: Window, playground: Playground) -> None:
    window.expected += ["404", "400"]
    playground.pick("nobody")
    playground.ask("Hello")
    playground.page.get_by_role("alert").get_by_text("nobody").wait_for()
    playground.pick("alpha*99")
    playground.page.get_by_role("button", name="Ask again").last.click()
    playground.page.get_by_role("alert").get_by_text("between -8 and 8").wait_for()


PROBABILITIES = (("sure ", 0.95), ("likely ", 0.7), ("so ", 0.4), ("rare ", 0.2), ("odd", 0.05))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_of_every_colour_can_be_read(browser: Browser, open_server: Running, scheme: str) -> None:
    tokens = [(text, math.log(share)) for text, share in PROBABILITIES]
    tokens += [("\n", -0.01), ("", -3.0), ("<|im_end|>", -2.0)]
    entries = [{"token": text, "logprob": logprob, "bytes": [*text.encode()]} for text, logprob in tokens]
    logprobs = {"content": [{**entry, "top_logprobs": entries[:4]} for entry in entries]}
    delta = {"content": "".join(text for text, _ in tokens)}
    chunk = {"id": "c", "model": "tiny", "choices": [{"index": 0, "delta": delta, "logprobs": logprobs}]}
    with browser.window(scheme="dark" if scheme == "dark" else "light") as window:
        page = window.open(open_server.url, "#/playground")
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        page.route(CHATS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
        page.get_by_label("Your message").fill("Hello")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Show probabilities").click()
        assert page.locator(".token").count() == len(tokens)
        page.locator(".token").nth(6).click()  # one without any text
        assert page.locator(".alternative").count() == 5
        assert window.axe() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_people_out(browser: Browser, open_server: Running, scheme: str, width: int) -> None:
    with browser.window(scheme="dark" if scheme == "dark" else "light", width=width) as window:
        page = window.open(open_server.url, "#/playground?model=alpha*0.5%2Bbeta")
        playground = Playground(page)
        page.get_by_label("Your message").wait_for()
        assert window.axe() == []
        playground.ask("Hello")
        page.get_by_role("button", name="Show probabilities").click()
        page.locator(".token").nth(3).hover()
        assert window.axe() == []
        if width < 900:
            page.get_by_role("button", name="Model and settings").click()
        for tab in ("Sampling", "Tools & form", "Model"):
            page.get_by_role("tab", name=tab, exact=tab == "Model").first.click()
            assert window.axe() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        window.check()
