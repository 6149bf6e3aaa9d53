"""A request to an application without a connection: what it reads, answers, and sees of its client."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from manylora.server.cluster.asgi_call import AsgiCall, RawRequest

REQUEST = RawRequest(
    "POST", "/x y", b"/x%20y", b"a=1", ((b"host", b"h"), (b"x", b"1"), (b"x", b"2")), b"body", ("1.2.3.4", 5)
)


async def messages(call: AsgiCall) -> list[list[Message]]:
    return [batch async for batch in call.batches()]


async def test_the_application_sees_the_request_as_it_came() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope, await receive()])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    (batch,) = await messages(AsgiCall(app, REQUEST, "/root"))
    assert [message["type"] for message in batch] == ["http.response.start", "http.response.body"]
    scope, body = seen
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("POST", "/x y", b"/x%20y")
    assert (scope["query_string"], scope["root_path"], scope["client"]) == (b"a=1", "/root", ("1.2.3.4", 5))
    assert scope["headers"] == [(b"host", b"h"), (b"x", b"1"), (b"x", b"2")]
    assert body == {"type": "http.request", "body": b"body", "more_body": False}


async def test_what_comes_while_nobody_reads_comes_together() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for number in range(10):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            if number == 4:
                await asyncio.sleep(0.01)

    found = await messages(AsgiCall(app, REQUEST))
    assert [len(batch) for batch in found] == [5, 5]
    assert b"".join(message["body"] for batch in found for message in batch) == b"0123456789"


async def test_an_application_waits_for_a_reader_who_is_slow() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            sent += 1

    total = 0
    async with aclosing(AsgiCall(app, REQUEST).batches()) as batches:
        async for batch in batches:
            total += len(batch)
            assert sent <= total  # the last one of a full batch is still being sent
            assert len(batch) <= 256
    assert total == 1000


async def test_who_stops_reading_is_a_client_that_hung_up() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert await receive() == {"type": "http.disconnect"}
        ended.set()

    async with aclosing(AsgiCall(app, REQUEST).batches()) as batches:
        assert len(await anext(batches)) == 1
    assert ended.is_set()


async def test_a_cancelled_reader_leaves_nothing_running() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()
        ended.set()

    task = asyncio.ensure_future(messages(AsgiCall(app, REQUEST)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_hanging_up_from_elsewhere_ends_the_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()

    call = AsgiCall(app, REQUEST)
    task = asyncio.ensure_future(messages(call))
    await asyncio.sleep(0.01)
    call.hang_up()
    assert await task == []


async def test_what_an_application_raises_is_raised_after_what_it_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("no")

    batches = AsgiCall(app, REQUEST).batches()
    assert len(await anext(batches)) == 1
    with pytest.raises(ValueError, match="no"):
        await anext(batches)
