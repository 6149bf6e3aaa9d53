"""The HTTP/1.1 protocol with a bound on request heads, which uvicorn's httptools protocol lacks."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from manylora.server.api.http.limits import MAX_HEAD_BYTES


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes connections whose request line and headers exceed the bound, before they are complete.

    Give it to uvicorn as ``http=``. What is buffered stays below the bound plus one read of the socket.
    """

    head_open = False  # a request has begun and its headers are not complete
    head_bytes = 0  # received since it began, up to one read more

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_open = True

    def on_headers_complete(self) -> None:
        self.head_open = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.head_bytes = self.head_bytes + len(data) if self.head_open else 0
        if self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too large")
