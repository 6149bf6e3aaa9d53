"""The client's side of an answer that a replica makes: what it has had of it, and how it ends."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from manylora.server.api.access.scopes import OPEN
from manylora.server.api.http.error_answers import ErrorAnswer, error_answer
from manylora.server.api.http.event_stream import fault_events, is_last
from manylora.server.errors import ServerError, ServerStopping

REPLICA_HEADER = "x-manylora-replica"
_LOST = "The replica that was to answer has ended; ask again"
_NONE = "There is no replica to answer; ask again later"


class AnswerEnd:
    """Passes an answer on, and completes it where its replica can't."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._head: Message | None = None
        self._said_last = False
        self.complete = False

    @property
    def begun(self) -> bool:
        """Whether the client has had something of the answer."""
        return self._head is not None

    async def send(self, message: Message, replica: str | None) -> None:
        """Pass a message of the replica on."""
        if message["type"] == "http.response.start":
            self._head = message = _named(message, replica)
        elif message["type"] == "http.response.body":
            self._said_last = self._said_last or is_last(bytes(message.get("body", b"")))
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def send_whole(self, head: Message, body: bytes, replica: str | None) -> None:
        """Send an answer with another body than its replica's own."""
        kept = [(name, value) for name, value in head["headers"] if name.lower() != b"content-length"]
        headers = [*kept, (b"content-length", str(len(body)).encode())]
        await self.send({**head, "headers": headers}, replica)
        await self.send({"type": "http.response.body", "body": body}, replica)

    async def refuse(self, error: ServerError) -> None:
        """Answer with an error; nothing has been sent yet."""
        await self._respond(error_answer(error, OPEN))

    async def unavailable(self) -> None:
        """Nobody has taken the request."""
        await self.refuse(ServerStopping(_NONE))

    async def lost(self) -> None:
        """The replica is gone: an error, or the last events of a stream.

        Raises:
            ConnectionError: something else has begun, which nothing but the end of the connection can end.
        """
        answer = error_answer(ServerStopping(_LOST), OPEN)
        if self._head is None:
            await self._respond(answer)
        elif not self.complete:
            kind = Headers(raw=list(self._head["headers"])).get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise ConnectionError(_LOST)
            last = b"" if self._said_last else fault_events(answer, self._scope)
            await self.send({"type": "http.response.body", "body": last, "more_body": False}, None)

    async def _respond(self, answer: ErrorAnswer) -> None:
        response: Response = answer.response(self._scope)

        async def send(message: Message) -> None:
            await self.send(message, None)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        await response(self._scope, receive, send)


def _named(head: Message, replica: str | None) -> Message:
    """The head of an answer with its replica's name. Ray's proxy adds the request's id itself."""
    headers = [(name, value) for name, value in head["headers"] if name.lower() != b"x-request-id"]
    if replica is not None:
        headers.append((REPLICA_HEADER.encode(), replica.encode()))
    return {**head, "headers": headers}
