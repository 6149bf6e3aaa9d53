"""The end of an answer whose replica is gone: an error, or the last event of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Message

from manylora.server.cluster.answer_end import AnswerEnd
from manylora.server.cluster.incoming import Hung, read_request
from manylora.server.errors import BodyTooLarge

STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


class Client:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])


def end_of(path: str = "/v1/chat/completions") -> tuple[Client, AnswerEnd]:
    client = Client()
    scope = {"type": "http", "path": path, "method": "POST", "headers": []}
    return client, AnswerEnd(scope, client.send)


def head(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


async def test_an_answer_is_passed_on_with_its_replicas_name() -> None:
    client, end = end_of()
    await end.send(head((b"x-request-id", b"1"), (b"a", b"b")), "one")
    await end.send({"type": "http.response.body", "body": b"x", "more_body": True}, "one")
    assert not end.complete
    await end.send({"type": "http.response.body", "body": b"y"}, "one")
    assert end.complete
    assert client.headers == {b"a": b"b", b"x-manylora-replica": b"one"}  # Ray adds the request's id
    assert client.body == b"xy"


async def test_an_answer_that_had_not_begun_becomes_an_error() -> None:
    client, end = end_of()
    await end.lost()
    assert client.messages[0]["status"] == 503
    assert json.loads(client.body)["error"]["code"] == "server_stopping"
    assert client.headers[b"retry-after"] == b"1"


async def test_nobody_to_answer_is_an_error_of_the_apis_own_shape() -> None:
    client, end = end_of("/v1/messages")
    await end.unavailable()
    assert json.loads(client.body)["type"] == "error"


async def test_a_stream_ends_with_an_error_event() -> None:
    client, end = end_of()
    await end.send(head(STREAM), "one")
    await end.send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}, "one")
    await end.lost()
    events = client.body.split(b"\n\n")
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "server_stopping"
    assert events[2:] == [b"data: [DONE]", b""]
    assert client.messages[-1]["more_body"] is False


async def test_a_stream_that_had_said_its_last_is_only_closed() -> None:
    client, end = end_of()
    await end.send(head(STREAM), "one")
    await end.send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True}, "one")
    await end.lost()
    assert client.body == b"data: [DONE]\n\n"
    assert end.complete


async def test_half_of_something_else_can_only_be_cut() -> None:
    _, end = end_of()
    await end.send(head((b"content-type", b"application/json")), "one")
    with pytest.raises(ConnectionError):
        await end.lost()


async def test_a_complete_answer_has_no_other_end() -> None:
    client, end = end_of()
    await end.send_whole(head((b"content-length", b"3")), b"other", "one")
    await end.lost()
    assert client.headers[b"content-length"] == b"5"
    assert client.body == b"other"


SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/v1/é",
    "raw_path": b"/v1/%C3%A9",
    "query_string": b"q",
    "headers": [(b"a", b"b")],
    "client": ("::1", 9),
}


def receiving(*messages: Message) -> Any:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


async def test_a_request_is_read_completely() -> None:
    parts: list[Message] = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c"},
    ]
    request = await read_request(SCOPE, receiving(*parts), 3)
    assert (request.body, request.raw_path, request.client) == (b"abc", b"/v1/%C3%A9", ("::1", 9))
    with pytest.raises(BodyTooLarge):
        await read_request(SCOPE, receiving(*parts), 2)


async def test_a_client_that_goes_before_its_request_is_complete() -> None:
    parts: list[Message] = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.disconnect"},
    ]
    with pytest.raises(Hung):
        await read_request(SCOPE, receiving(*parts), 9)
