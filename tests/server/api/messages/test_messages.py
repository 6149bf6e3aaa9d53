"""Anthropic's Messages API: whole and streamed, tools, thinking, mixes, what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic_core import from_json

from tests.server.api.messages.conftest import HI, WEATHER, ask, body_of, built, events_of
from tests.support.scripted import CALL, THOUGHT, Scripted

pytestmark = pytest.mark.slow


def bare(message: dict[str, Any]) -> dict[str, Any]:
    """A message without ids, and with all its tokens of input in one count."""
    usage = dict(message["usage"])
    total = sum(
        usage.pop(name) for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    content = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**message, "id": None, "content": content, "usage": {**usage, "input": total}}


def test_a_text(server: Scripted) -> None:
    message = ask(server, "Hello there")
    assert message["content"] == [{"type": "text", "text": "Hello there", "citations": None}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny")
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["id"].startswith("msg_")
    assert message["usage"]["output_tokens"] == len("Hello there") + 1
    assert ask(server, "")["content"] == []


@pytest.mark.parametrize("cut", [1, 12, 20, 33, 60, 75, 400])
@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("tiny", "Hello"),
        ("plain", f"So. {CALL}\n{CALL}"),
        ("thinking", f"{THOUGHT}So. {CALL}"),
        ("thinking", "Hi"),
    ],
)
def test_streams_come_to_whole_messages(server: Scripted, model: str, text: str, cut: int) -> None:
    body: dict[str, Any] = {"model": model, "tools": [WEATHER], "max_tokens": cut}
    message = built(events_of(server, text, **body))
    for block in message["content"]:
        if block["type"] == "tool_use":
            block["input"] = from_json(block["input"], allow_partial=True) if block["input"] else {}
    assert bare(message) == bare(ask(server, text, **body))
    assert (message["stop_reason"] == "max_tokens") == (cut <= len(text))


def test_the_blocks_of_a_thinking_answer_that_calls(server: Scripted) -> None:
    message = ask(server, f"{THOUGHT}So. {CALL}", model="thinking", tools=[WEATHER])
    thought, text, call = message["content"]
    assert (thought["type"], thought["thinking"].strip(), bool(thought["signature"])) == (
        "thinking", "Hm.", True,
    )  # fmt: skip
    assert text["text"].strip() == "So."
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"place": "Oslo"})
    assert call["id"].startswith("toolu_")
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] > 0


def test_a_cut_call_has_what_is_complete_of_its_input(server: Scripted) -> None:
    cut = CALL.index("slo")
    message = ask(server, CALL, tools=[WEATHER], max_tokens=cut)
    assert [(block["name"], block["input"]) for block in message["content"]] == [("weather", {})]
    assert message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ({"type": "auto"}, 2),
        ({"type": "any"}, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1),
        ({"type": "any", "disable_parallel_tool_use": True}, 1),
        ({"type": "tool", "name": "weather"}, 1),
        ({"type": "none"}, 0),
    ],
)
def test_tool_choice(server: Scripted, choice: dict[str, Any], calls: int) -> None:
    message = ask(server, f"{CALL}\n{CALL}", tools=[WEATHER], tool_choice=choice)
    assert [block["type"] for block in message["content"]].count("tool_use") == calls
    assert message["stop_reason"] == ("tool_use" if calls else "end_turn")


def test_stop_sequences(server: Scripted) -> None:
    message = ask(server, "One. Two. Three.", stop_sequences=["zzz", " Two", ""])
    assert message["content"][0]["text"] == "One."
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " Two")
    streamed = built(events_of(server, "One. Two. Three.", stop_sequences=[" Two"]))
    assert bare(streamed) == bare(message)


def test_max_tokens_are_as_many_as_fit(server: Scripted) -> None:
    """Coding tools ask for tens of thousands of any model."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "so " * 640}], "max_tokens": 64_000}
    endless = "y" * 300
    message = ask(server, endless, **body)
    assert message["stop_reason"] == "model_context_window_exceeded"
    counts = message["usage"]
    total = counts["input_tokens"] + counts["cache_read_input_tokens"] + counts["output_tokens"]
    assert total == 2048
    assert ask(server, "Yes", max_tokens=64_000)["stop_reason"] == "end_turn"
    assert built(events_of(server, endless, **body))["stop_reason"] == message["stop_reason"]


def test_a_last_turn_of_the_assistant_is_gone_on_with(server: Scripted) -> None:
    turns = [*HI, {"role": "assistant", "content": "The answer is"}]
    message = ask(server, " 42", messages=turns)
    assert message["content"][0]["text"] == " 42"
    chat = server.ask(" 42", messages=turns, continue_final_message=True)
    assert bare(message)["usage"]["input"] == chat["usage"]["prompt_tokens"]


def test_thinking(server: Scripted) -> None:
    def tokens(**body: Any) -> int:
        return int(bare(ask(server, "Hi", model="thinking", **body))["usage"]["input"])

    on, off = {"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}
    assert tokens(thinking=on) == tokens() == tokens(thinking={"type": "adaptive"}) < tokens(thinking=off)
    shown = ask(server, f"{THOUGHT}So.", model="thinking", thinking={**on, "display": "omitted"})
    assert [block["type"] for block in shown["content"]] == ["text"]
    for kind in ("disabled", "adaptive"):
        assert ask(server, "Hi", thinking={"type": kind})["content"][0]["text"] == "Hi"
    refused = ask(server, "Hi", thinking=on, status=400)
    assert "'thinking' is not supported" in refused["error"]["message"]


def test_a_format(server: Scripted) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = {"format": {"type": "json_schema", "schema": schema}}
    assert json.loads(ask(server, '{"a": 1}', output_config=config)["content"][0]["text"]) == {"a": 1}


def test_turns_with_tools_are_those_of_chats(server: Scripted) -> None:
    """What is read is the same to the token, and so is what comes from the cache."""
    first = ask(server, f"{THOUGHT}So. {CALL}", model="thinking", tools=[WEATHER])
    call = first["content"][-1]
    found = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "Rain"}]}
    turns = [
        *HI,
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [found, {"type": "text", "text": "And?"}]},
    ]
    body: dict[str, Any] = {"model": "thinking", "tools": [WEATHER], "messages": turns, "system": [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    ]}  # fmt: skip
    message = ask(server, "Wet", **body)
    function = {"name": "weather", "arguments": json.dumps(call["input"])}
    chat = server.ask(
        "Wet",
        model="thinking",
        tools=[{"type": "function", "function": {
            "name": "weather", "description": WEATHER["description"], "parameters": WEATHER["input_schema"],
        }}],
        messages=[
            {"role": "system", "content": "Be brief."},
            *HI,
            {
                "role": "assistant",
                "content": "So.",
                "reasoning_content": "Hm.",
                "tool_calls": [{"id": call["id"], "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call["id"], "content": "Rain"},
            {"role": "user", "content": "And?"},
        ],
    )  # fmt: skip
    assert bare(message)["usage"]["input"] == chat["usage"]["prompt_tokens"]
    cached = chat["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    again = ask(server, "Wet", **body)["usage"]
    assert (again["cache_read_input_tokens"], again["input_tokens"]) == (
        cached, chat["usage"]["prompt_tokens"] - cached,
    )  # fmt: skip
    with server.running.http() as http:
        counted = http.post("/v1/messages/count_tokens", json=body)
    assert counted.json() == {"input_tokens": chat["usage"]["prompt_tokens"]}


def test_what_does_not_fit_is_counted(server: Scripted) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "so " * 1000}]}
    with server.running.http() as http:
        counted = http.post("/v1/messages/count_tokens", json=body).json()
    assert counted["input_tokens"] > 3000
    refused = ask(server, "Hi", **body, status=400)
    assert refused["error"]["message"].startswith("prompt is too long: ")


def test_adapters_and_mixes(server: Scripted) -> None:
    assert ask(server, "Hi", model="plain")["model"].startswith("plain@")
    entries = [{"name": "plain", "weight": 0.5}, {"name": "thinking", "weight": 0.25}]
    mixed = ask(server, f"{THOUGHT}Hi", adapters=entries)
    assert mixed["model"] == ask(server, "Hi", model="plain*0.5+thinking*0.25")["model"]
    assert [block["type"] for block in mixed["content"]] == ["thinking", "text"]


def test_fields_that_clients_send(server: Scripted) -> None:
    """Those of coding tools, which ask for the beta of everything."""
    body = body_of(
        metadata={"user_id": "user_1_account__session_2"},
        service_tier="auto",
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        tools=[{**WEATHER, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}],
        top_k=5,
        temperature=1,
    )
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,oauth-2025-04-20"}
    server.text, server.tokens = "Hi", None
    with server.running.http() as http:
        answer = http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "x-manylora-ignored-fields" not in answer.headers


def test_what_a_template_has_no_place_for_is_named_in_our_words(server: Scripted) -> None:
    body = body_of(
        messages=[
            *HI,
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]},
            *HI,
        ],
        thinking={"type": "disabled"},
    )
    server.text, server.tokens = "Hi", None
    with server.running.http() as http:
        answer = http.post("/v1/messages", json=body)
    assert answer.headers["x-manylora-ignored-fields"] == "messages, thinking.type"
