"""A connection to a server that a test can cut, as when a network, or a server, goes away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Cable:
    """Passes on what is sent to its own port, to a server that may be another one later."""

    def __init__(self, server: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._server: str | None = server
        self._ends: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and let none be made."""
        with self._lock:
            self._server, ends = None, self._ends
            self._ends = set()
        for end in ends:
            _end(end)

    def join(self, server: str) -> None:
        """From now on connections lead to ``server``."""
        with self._lock:
            self._server = server

    def close(self) -> None:
        """End everything."""
        self.cut()
        _end(self._listener)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        with self._lock:
            address = None if self._server is None else urlsplit(self._server)
            if address is not None:
                server = socket.create_connection((address.hostname, address.port))
                self._ends |= {client, server}
        if address is None:
            _end(client)
            return
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
    _end(sink)
    _end(source)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def cable_to(server: str) -> Iterator[Cable]:
    """A cable to ``server`` until the block ends."""
    cable = Cable(server)
    try:
        yield cable
    finally:
        cable.close()
