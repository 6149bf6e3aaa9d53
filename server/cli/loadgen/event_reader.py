"""Reading a streamed HTTP response with little work: the client shares its cores with the server."""

from __future__ import annotations

_DONE = b"[DONE]"


class BadResponse(Exception):
    """The bytes are not an HTTP response of a kind a streaming endpoint sends."""


class Unchunker:
    """Takes chunked transfer encoding (RFC 9112, section 7.1) off a byte stream."""

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0  # bytes of the current chunk still to come, its closing CRLF included

    def feed(self, data: bytes) -> bytes:
        """The payload that ``data`` completes."""
        buffer = self._buffer + data
        out: list[bytes] = []
        while buffer:
            if self._left == 0:
                head, found, rest = buffer.partition(b"\r\n")
                if not found:
                    break
                self._left, buffer = int(head.split(b";")[0], 16) + 2, rest
                continue
            part = buffer[: self._left]
            out.append(part[: max(0, min(len(part), self._left - 2))])
            self._left -= len(part)
            buffer = buffer[len(part) :]
        self._buffer = buffer
        return b"".join(out)


class EventReader:
    """Cuts server-sent events into their data: one ``data:`` line each, as OpenAI-style servers send them."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that ``data`` completes; ``[DONE]`` and comments are left out."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        events = (line[5:].strip() for line in lines if line.startswith(b"data:"))
        return [event for event in events if event != _DONE]


class ResponseReader:
    """One HTTP/1.1 response: its status, then its body, chunked or until the end of the connection."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._head = b""
        self._unchunker: Unchunker | None = None

    def feed(self, data: bytes) -> bytes:
        """The part of the body that ``data`` brings."""
        if self.status is None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return b""
            self._read_head(head)
        return data if self._unchunker is None else self._unchunker.feed(data)

    def _read_head(self, head: bytes) -> None:
        first, *fields = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise BadResponse(f"not an HTTP response: {first[:80]!r}")
        self.status = int(words[1])
        if any(field.lower().startswith(b"transfer-encoding:") and b"chunked" in field for field in fields):
            self._unchunker = Unchunker()
