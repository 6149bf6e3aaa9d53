"""The Responses API by OpenAI's client: items, streams, what is remembered, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.responses import WEATHER, ask, bare, built, events_of
from tests.support.running_server import tiny_service
from tests.support.scripted import CALL, THOUGHT, Scripted, scripted, tool_service
from tests.support.tiny_models import tiny_model
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A base that calls tools, and an adapter that also thinks."""
    service = tool_service(tmp_path_factory.mktemp("server"))
    with pytest.MonkeyPatch.context() as patch, scripted(service, patch) as made:
        yield made


def test_a_text(server: Scripted) -> None:
    response = ask(server, "Hello there")
    assert response.output_text == "Hello there"
    assert response.status == "completed"
    assert response.model == "tiny"
    assert response.usage.output_tokens == len("Hello there") + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert ask(server, "").output[0].content[0].text == ""


@pytest.mark.parametrize("cut", [1, 9, 12, 20, 40, 400])
@pytest.mark.parametrize(
    ("model", "text"),
    [("tiny", "Hello"), ("tiny", f"So. {CALL}\n{CALL}"), ("thinking", THOUGHT + CALL), ("thinking", "Hi")],
)
def test_streams_come_to_whole_responses(server: Scripted, model: str, text: str, cut: int) -> None:
    body = {"model": model, "tools": [WEATHER], "max_output_tokens": cut}
    events = events_of(server, text, **body)
    with server.running.http() as http:
        whole = http.post("/v1/responses", json={"model": "tiny", "input": "Hi", **body}).json()
    last = events[-1]["response"]
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == f"response.{last['status']}"
    assert last["status"] == ("completed" if cut > len(text) else "incomplete")
    assert (last["incomplete_details"] is None) == (last["status"] == "completed")
    assert built(events) == last["output"]
    assert bare(last) == bare(whole)


def test_the_items_of_a_thinking_answer_that_calls(server: Scripted) -> None:
    response = ask(server, f"{THOUGHT}So. {CALL}", model="thinking", tools=[WEATHER])
    thought, message, call = response.output
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert thought.content[0].text.strip() == "Hm."
    assert message.content[0].text.strip() == "So."
    assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "Oslo"})
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_what_was_called_and_found_is_read_again(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(server, f"{THOUGHT}{CALL}", model="thinking", tools=[WEATHER])
    call = first.output[-1]
    found = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    by_id = ask(
        server, "Wet", model="thinking", input=[found], previous_response_id=first.id, tools=[WEATHER]
    )
    items = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in first.output), found]
    by_items = ask(server, "Wet", model="thinking", input=items, tools=[WEATHER])
    assert by_id.usage.input_tokens == by_items.usage.input_tokens > first.usage.input_tokens
    assert by_id.previous_response_id == first.id
    listed = server.running.client().responses.input_items.list(by_items.id, order="asc", limit=100)
    assert [item.type for item in listed.data] == [
        "message", "reasoning", "function_call", "function_call_output",
    ]  # fmt: skip


def test_instructions_are_not_carried_over(server: Scripted) -> None:
    first = ask(server, "Yes", instructions="Be brief." * 20)
    second = ask(server, "No", input="And?", previous_response_id=first.id)
    whole = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
    ]
    assert second.usage.input_tokens == ask(server, "No", input=whole).usage.input_tokens


def test_kept_listed_deleted(server: Scripted) -> None:
    client = server.running.client()
    first = ask(server, "Yes", metadata={"for": "test"})
    assert client.responses.retrieve(first.id) == first
    second = ask(server, "No", previous_response_id=first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        ask(server, "No", previous_response_id=first.id)
    assert ask(server, "So", previous_response_id=second.id).status == "completed"
    unkept = ask(server, "Yes", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(second.id)


def test_pages_of_items(server: Scripted) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    response = ask(server, "Yes", input=items)
    pages = server.running.client().responses.input_items.list(response.id, order="asc", limit=2)
    texts = [item.model_dump()["content"][0]["text"] for item in pages]
    assert texts == list("01234")


def test_counting(server: Scripted) -> None:
    body = {"model": "tiny", "input": "Hi", "tools": [WEATHER]}
    with server.running.http() as http:
        counted = http.post("/v1/responses/input_tokens", json=body).json()
        assert http.post("/v1/responses/compact", json=body).status_code == 404
    assert counted["input_tokens"] == ask(server, "Yes", **body).usage.input_tokens


def test_in_the_background(server: Scripted) -> None:
    client = server.running.client()
    begun = ask(server, "Yes", background=True)
    assert begun.status == "queued"
    wait_until(lambda: client.responses.retrieve(begun.id).status == "completed")
    assert client.responses.retrieve(begun.id).output_text == "Yes"
    endless = ask(server, "y" * 1500, background=True)
    cancelled = client.responses.cancel(endless.id)
    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(endless.id).status == "cancelled"
    server.running.wait_until_idle()


def test_the_oldest_turns_go_where_all_do_not_fit(server: Scripted) -> None:
    turns = [{"role": role, "content": f"{role} says " + "so " * 60} for role in ("user", "assistant")] * 8
    items = [{"role": "system", "content": "Be brief"}, *turns, {"role": "user", "content": "And now?"}]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "Yes", input=items)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    response = ask(server, "Yes", input=items, truncation="auto", max_output_tokens=64)
    assert 1000 < response.usage.input_tokens <= 2048 - 64
    with pytest.raises(openai.BadRequestError):
        ask(server, "Yes", input="so " * 1000, truncation="auto")


def test_probabilities(server: Scripted) -> None:
    response = ask(server, "Yes", top_logprobs=2, include=["message.output_text.logprobs"])
    logprobs = response.output[0].content[0].logprobs
    assert "".join(each.token for each in logprobs).startswith("Yes")
    assert all(len(each.top_logprobs) == 2 for each in logprobs)
    events = events_of(server, "Yes", top_logprobs=2)
    told = [each for event in events if event["type"].endswith("text.delta") for each in event["logprobs"]]
    assert [each["token"] for each in told] == [each.token for each in logprobs][: len(told)]


def test_json(server: Scripted) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    response = ask(server, '{"a": 1}', text={"format": form})
    assert json.loads(response.output_text) == {"a": 1}
    assert response.text.format.schema_ == schema


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"input": [{"id": f"msg_{'0' * 32}o0"}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": "x"}, {"type": "item_reference"}]}, "input[1].id"),
        ({"input": [{"type": "item_reference", "id": "x" * 129}]}, "input[0].id"),
        ({"input": [{"type": "item_reference", "id": 5}]}, "input[0].id"),
        ({"input": [{"type": "item_reference", "id": "x", "name": "y"}]}, "input[0].name"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": "x", "colour": 1}]}, "input[0].colour"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x", "temperature": 9}, "temperature"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "background": True, "store": False}, "background"),
        ({"input": "x", "background": True, "stream": True, "store": False}, "background"),
        ({"input": "x", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"input": "x", "model": "nobody"}, "model"),
        ({"input": "x", "messages": []}, "messages"),
    ],
)
def test_what_is_refused(server: Scripted, body: dict[str, Any], param: str) -> None:
    server.text, server.tokens = "Yes", None
    with server.running.http() as http:
        answer = http.post("/v1/responses", json={"model": "tiny", **body})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


def test_a_fault_in_a_stream_is_its_last_event(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    draw = server.running.service.core.draw_tokens

    def fails(logits: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise ValueError("broken")
        return draw(logits, batch)

    monkeypatch.setattr(server.running.service.core, "draw_tokens", fails)
    last = events_of(server, "Hello there")[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "generation_failed"
    with server.running.http() as http:
        assert http.post("/v1/responses", json={"model": "tiny", "input": "x"}).status_code == 500


def test_without_a_store(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    service = tiny_service(model, tmp_path / "data", response_store=0)
    with pytest.MonkeyPatch.context() as patch, scripted(service, patch) as served:
        response = ask(served, "Yes")
        assert response.model_extra is not None
        with served.running.http() as http:
            assert http.get(f"/v1/responses/{response.id}").status_code == httpx.codes.NOT_FOUND
        with pytest.raises(openai.BadRequestError, match="store"):
            ask(served, "Yes", background=True)
