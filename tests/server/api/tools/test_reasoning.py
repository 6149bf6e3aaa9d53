"""Reasoning apart from the answer, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted import Scripted, gathered
from tests.support.tool_requests import prompt, prompt_tokens, without_ids

pytestmark = pytest.mark.slow


THOUGHT = "<think>\nHm. Yes.\n</think>\n\nNo."


def test_reasoning_stands_apart(server: Scripted) -> None:
    answer = server.ask(THOUGHT, model="thinking")
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == (
        "No.",
        "Hm. Yes.",
        "Hm. Yes.",
    )
    within = len(THOUGHT) - len("\n\nNo.")
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": within}
    chunks = server.stream(THOUGHT, model="thinking")
    assert without_ids(gathered(chunks)[0]) == without_ids(answer["choices"][0])
    deltas = [entry["delta"] for chunk in chunks for entry in chunk["choices"]]
    assert sum("reasoning_content" in delta for delta in deltas) > 3


def test_reasoning_that_the_prompt_begins(server: Scripted) -> None:
    message = server.ask("Hm.\n</think>\n\nNo.", model="opened")["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("No.", "Hm.")
    off: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    message = server.ask("No.", model="opened", **off)["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("No.", None)


def test_reasoning_that_does_not_end(server: Scripted) -> None:
    (choice,) = server.ask("<think>\nHm. Yes.", model="thinking", max_tokens=12)["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("body", [{"separate_reasoning": False}, {"reasoning_format": "none"}])
def test_reasoning_that_is_to_stay_in_the_text(server: Scripted, body: dict[str, Any]) -> None:
    message = server.ask(THOUGHT, model="thinking", **body)["choices"][0]["message"]
    assert message["content"] == THOUGHT
    assert "reasoning_content" not in message


def test_reasoning_that_nobody_wants_to_hear(server: Scripted) -> None:
    answer = server.ask(THOUGHT, model="thinking", include_reasoning=False)
    assert answer["choices"][0]["message"]["content"] == "No."
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_what_switches_reasoning(server: Scripted) -> None:
    plain = prompt_tokens(server, model="thinking")
    more = len("<think>\n\n</think>\n\n")
    assert prompt_tokens(server, model="thinking", reasoning_effort="none") == plain + more
    off: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    assert prompt_tokens(server, model="thinking", **off) == plain + more
    assert prompt_tokens(server, model="thinking", reasoning_effort="low") == plain
    assert prompt_tokens(server, reasoning_effort="none") == prompt_tokens(server)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_comes_back_under_either_name(server: Scripted, field: str) -> None:
    turn = {"role": "assistant", "content": "No.", field: "Hm."}
    messages = [{"role": "user", "content": "Hi"}, turn]
    text = prompt(server, "thinking", messages=messages, add_generation_prompt=False)
    assert "<think>\nHm.\n</think>\n\nNo." in text
