"""Reading a streamed HTTP response with little work: the client shares its cores with the server."""

from __future__ import annotations

from httptools import HttpParserError, HttpResponseParser

_DONE = b"[DONE]"


class BadResponse(Exception):
    """The bytes are not an HTTP response of a kind a streaming endpoint sends."""


class ResponseReader:
    """One HTTP/1.1 response: its status, then its body, chunked or until the end of the connection."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._parser = HttpResponseParser(self)
        self._parts: list[bytes] = []  # of the body, from the bytes that are being fed

    def feed(self, data: bytes) -> bytes:
        """The part of the body that ``data`` brings.

        Raises:
            BadResponse: ``data`` is no part of an HTTP response.
        """
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            raise BadResponse(f"not an HTTP response: {error}: {data[:80]!r}") from None
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of the head."""
        self.status = self._parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        """Called by the parser with each part of the body."""
        self._parts.append(part)


class EventReader:
    """Cuts server-sent events into their data: one ``data:`` line each, as OpenAI-style servers send them."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that ``data`` completes; ``[DONE]`` and comments are left out."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        events = (line[5:].strip() for line in lines if line.startswith(b"data:"))
        return [event for event in events if event != _DONE]
