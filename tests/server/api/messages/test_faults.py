"""Faults on Anthropic's routes: its shape, its names of fields, its statuses."""

from __future__ import annotations

from typing import Any

import pytest

from manylora.server.api.http.anthropic import MESSAGE_STOP, anthropic_error
from manylora.server.api.http.event_stream import encode_named
from tests.server.api.messages.conftest import HI, WEATHER, ask, events_of
from tests.support.scripted import Scripted

pytestmark = pytest.mark.slow

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
CALL = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": user(5)}, "messages[0].content[0].type"),
        ({"messages": user(IMAGE)}, "messages[0].content[0].type"),
        ({"messages": user({"type": "document", "source": {}})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "search_result"})}, "messages[0].content[0].type"),
        ({"messages": user(CALL)}, "messages[0].content[0].type"),
        ({"messages": user({"type": "text"})}, "messages[0].content[0].text"),
        ({"messages": user({"type": "text", "text": 5})}, "messages[0].content[0].text"),
        ({"messages": user({"type": "tool_result"})}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": user({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]})},
            "messages[0].content[0].content[0].type",
        ),
        (
            {"messages": user({"type": "tool_result", "tool_use_id": "t", "is_error": "yes"})},
            "messages[0].content[0].is_error",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{**CALL, "input": "{}"}]}]},
            "messages[1].content[0].input",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{**CALL, "id": "x" * 999}]}]},
            "messages[1].content[0].id",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": [CALL]}]}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "content": ""}]}, "messages"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"system": 5}, "system"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER] * 999}, "tools"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto", "name": "weather"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"stop_sequences": ["x"] * 999}, "stop_sequences"),
        ({"stop_sequences": ["x" * 999]}, "stop_sequences[0]"),
        ({"stop": "x"}, "stop"),
        ({"temperature": 9}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"min_tokens": 2048, "max_tokens": 4}, "min_tokens"),
        ({"metadata": {"user_id": "x" * 999}}, "metadata.user_id"),
        ({"metadata": {"colour": "x"}}, "metadata.colour"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "disabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"speed": "fast"}, "speed"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"input": "x"}, "input"),
    ],
)
def test_what_is_refused(server: Scripted, body: dict[str, Any], param: str) -> None:
    told = ask(server, "Yes", status=400, **body)
    assert told.keys() == {"type", "error", "request_id"}
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"].keys() == {"type", "message", "param", "code"}
    assert told["error"]["param"] == param
    assert isinstance(told["error"]["message"], str)


def test_bodies_that_are_none(server: Scripted) -> None:
    with server.running.http() as http:
        for content in (b"", b"[]", b"{", b'{"temperature": NaN}', b"\xff"):
            answer = http.post("/v1/messages", content=content)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_is_not_there(server: Scripted) -> None:
    unknown = ask(server, "Yes", model="nobody", status=404)
    assert unknown["error"]["type"] == "not_found_error"
    assert "nobody" in unknown["error"]["message"]
    with server.running.http() as http:
        for method, path, status in (
            ("GET", "/v1/messages", 405),
            ("POST", "/v1/messages/batches", 404),
            ("GET", "/v1/messages/", 405),
        ):
            answer = http.request(method, path)
            assert (answer.status_code, answer.json()["type"]) == (status, "error")
            assert answer.json()["request_id"] == answer.headers["request-id"]
        other = http.get("/v1/messagesx")
        assert other.json()["error"]["code"] == "not_found"
        assert "request-id" not in other.headers
        counted = http.post("/v1/messages/count_tokens", json={"model": "nobody", "messages": HI})
        assert counted.json()["error"]["type"] == "not_found_error"


def test_every_status_has_a_type() -> None:
    types = [anthropic_error(status, {}, {"type": "http"})["error"]["type"] for status in range(400, 512)]
    assert set(types) == {
        "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
        "timeout_error", "conflict_error", "request_too_large", "rate_limit_error", "api_error",
    }  # fmt: skip


def test_the_last_event_is_known_by_its_bytes() -> None:
    """A server that stops looks for them, so as not to add a fault behind them."""
    assert encode_named([{"type": "message_stop"}]) == MESSAGE_STOP


def test_a_fault_in_a_stream_is_its_last_event(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    draw = server.running.service.core.draw_tokens

    def fails(logits: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise ValueError("broken")
        return draw(logits, batch)

    monkeypatch.setattr(server.running.service.core, "draw_tokens", fails)
    first, *_, last = events_of(server, "Hello there")
    assert first["type"] == "message_start"
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert last["request_id"]
    assert ask(server, "Hello there", status=500)["error"]["type"] == "api_error"
