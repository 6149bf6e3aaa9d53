"""Responses that run in the background are followed, by anybody who may see them and from any event on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import openai
import pytest

from tests.support.responses import WEATHER, ask, bare, built, events_of
from tests.support.scripted import CALL, THOUGHT, Scripted, scripted, tool_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A base that calls tools, and an adapter that also thinks."""
    service = tool_service(tmp_path_factory.mktemp("server"))
    with pytest.MonkeyPatch.context() as patch, scripted(service, patch) as made:
        yield made


def followed(server: Scripted, response_id: str, **params: Any) -> list[dict[str, Any]]:
    """The events of a response, and its end."""
    with server.running.http() as http:
        answer = http.get(f"/v1/responses/{response_id}", params={"stream": True, **params})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("model", "text"), [("tiny", "Hello"), ("thinking", f"{THOUGHT}So. {CALL}\n{CALL}")])
def test_followed_from_any_event_on(server: Scripted, model: str, text: str) -> None:
    body = {"model": model, "tools": [WEATHER]}
    events = events_of(server, text, background=True, **body)
    assert [event["type"] for event in events[:3]] == [
        "response.created", "response.queued", "response.in_progress",
    ]  # fmt: skip
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
    last = events[-1]["response"]
    assert built(deepcopy(events)) == last["output"]
    plain = events_of(server, text, **body)
    for ours, theirs in zip(events[3:], plain[2:], strict=True):
        differing = {"sequence_number": 0, "response": None}
        assert bare({**ours, **differing}) == bare({**theirs, **differing})
    wait_until(lambda: server.running.service.background.get(last["id"]) is None)
    assert followed(server, last["id"]) == events  # from what is kept
    for place in (0, 1, len(events) // 2, len(events) - 1, len(events), 10**12):
        assert followed(server, last["id"], starting_after=place) == events[place + 1 :]
    assert server.running.client().responses.retrieve(last["id"]).to_dict() == last


def test_by_the_clients_of_openai_while_it_runs(server: Scripted) -> None:
    """Whoever asked leaves after a few events; what is asked later goes on from there to the end."""
    client = server.running.client()
    server.text, server.tokens = "y" * 400, None
    stream = client.responses.create(model="tiny", input="Hi", background=True, stream=True)
    first = [next(stream) for _ in range(6)]
    stream.close()
    response_id = first[0].response.id  # type: ignore[union-attr]
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=first[-1].sequence_number))
    numbers = [event.sequence_number for event in [*first, *rest]]
    assert numbers == list(range(len(numbers)))
    final = rest[-1].response  # type: ignore[union-attr]
    assert final.status == "completed"
    assert final.output_text == "y" * 400
    text = [event.delta for event in [*first, *rest] if event.type == "response.output_text.delta"]
    assert "".join(text) == "y" * 400
    again = ask(server, "Yes", input="And?", previous_response_id=response_id)
    assert again.status == "completed"
    server.running.wait_until_idle()


def test_a_cancelled_response_ends_the_streams_of_all_who_follow(server: Scripted) -> None:
    client = server.running.client()
    server.text, server.tokens = "y" * 1500, None
    stream = client.responses.create(model="tiny", input="Hi", background=True, stream=True)
    created = next(stream)
    response_id = created.response.id  # type: ignore[union-attr]
    assert client.responses.cancel(response_id).status == "cancelled"
    told = [created, *stream]
    assert "response.completed" not in {event.type for event in told}
    assert len(followed(server, response_id)) >= len(told)
    assert client.responses.retrieve(response_id).status == "cancelled"
    client.responses.delete(response_id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response_id, stream=True)
    server.running.wait_until_idle()


def test_a_fault_is_the_last_event(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(logits: Any, batch: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(server.running.service.core, "draw_tokens", fails)
    events = events_of(server, "Hello", background=True)
    assert events[-1]["type"] == "response.failed"
    wait_until(lambda: server.running.service.background.get(events[0]["response"]["id"]) is None)
    assert followed(server, events[0]["response"]["id"]) == events


@pytest.mark.parametrize(
    ("background", "params", "param"),
    [
        (True, {"stream": True}, "stream"),
        (False, {"stream": True}, "stream"),
        (False, {"starting_after": 1}, "starting_after"),
        (False, {"stream": False, "starting_after": 1}, "starting_after"),
        (False, {"stream": True, "starting_after": -1}, "starting_after"),
        (False, {"stream": True, "starting_after": 1 << 70}, "starting_after"),
    ],
)
def test_what_can_not_be_followed(
    server: Scripted, background: bool, params: dict[str, Any], param: str
) -> None:
    response = ask(server, "Yes", background=background)
    with server.running.http() as http:
        answer = http.get(f"/v1/responses/{response.id}", params=params)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    server.running.wait_until_idle()


def test_items_by_their_ids(server: Scripted) -> None:
    """A conversation of references is read as the conversation itself; what is deleted can't be named."""
    first = ask(server, f"{THOUGHT}{CALL}", model="thinking", tools=[WEATHER])
    items = server.running.client().responses.input_items.list(first.id, order="asc").data
    ids = [items[0].id, *(item.id for item in first.output)]
    found = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "Rain"}
    whole = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in first.output), found]
    named = [{"type": "item_reference", "id": each} for each in ids[:-1]]
    body: dict[str, Any] = {"model": "thinking", "tools": [WEATHER]}
    by_items = ask(server, "Wet", input=whole, **body)
    by_ids = ask(server, "Wet", input=[*named, {"id": ids[-1]}, found], **body)
    assert by_ids.usage.input_tokens == by_items.usage.input_tokens
    listed = server.running.client().responses.input_items.list(by_ids.id, order="asc").data
    assert [item.id for item in listed][:-1] == ids
    with server.running.http() as http:
        counted = http.post("/v1/responses/input_tokens", json={**body, "input": [*named, found]})
        assert counted.status_code == 200
    server.running.client().responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="No item found"):
        ask(server, "Wet", input=[{"id": ids[0]}], **body)
    assert ask(server, "Wet", input=[{"id": listed[-1].id}], **body).status == "completed"


def test_items_of_too_many_responses(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manylora.server.api.http.limits.MAX_REFERRED_RESPONSES", 2)
    ids = [ask(server, "Yes").output[0].id for _ in range(3)]
    assert ask(server, "So", input=[{"id": each} for each in (ids[0], ids[1], ids[0])]).status == "completed"
    with pytest.raises(openai.BadRequestError, match="more than 2 responses"):
        ask(server, "So", input=[{"id": each} for each in ids])
