"""A small HTTP server that speaks those endpoints of the Hugging Face Hub that adapters are fetched by.

It stands in for the Hub, which tests do not reach: what it answers was written after the Hub's
documentation and client, not recorded from it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """A repository of the Hub at one commit, which is known as main, v1 and by its hash."""

    files: dict[str, bytes]
    revisions: frozenset[str] = frozenset({"main", "v1", "feature/x", COMMIT})
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # what it says where that isn't the truth
    elsewhere: str | None = None  # where it sends downloads to, as the Hub does to its storage


@dataclass
class FakeHub:
    """The repositories of a fake Hub, and what it was asked for."""

    endpoint: str
    repositories: dict[str, Repository]
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)  # Authorization, in any request


@contextmanager
def running_hub(**repositories: Repository) -> Iterator[FakeHub]:
    """A server with the repositories org/<name>."""
    hub = FakeHub("", {f"org/{name}": repository for name, repository in repositories.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.tokens.add(self.headers["Authorization"])
            path = urlsplit(self.path).path
            hub.asked.append(unquote(path))
            parts = [unquote(part) for part in path.strip("/").split("/")]
            api = parts[:2] == ["api", "models"]
            owner, name, *rest = parts[2:] if api else parts
            repository = hub.repositories.get(f"{owner}/{name}")
            revision = rest[1] if len(rest) > 1 else "main"
            if repository is None:
                self._refuse(404, "RepoNotFound")
            elif repository.gated:
                self._refuse(403, "GatedRepo")
            elif revision not in repository.revisions:
                self._refuse(404, "RevisionNotFound")
            elif api:
                self._answer(json.dumps(_describe(f"{owner}/{name}", repository)).encode())
            elif repository.elsewhere is not None:
                self._refuse(302, "", Location=repository.elsewhere + path)
            elif "/".join(rest[2:]) in repository.files:
                self._answer(repository.files["/".join(rest[2:])])
            else:
                self._refuse(404, "EntryNotFound")

        def _answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def _refuse(self, status: int, code: str, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: a test says what it needs to."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _describe(name: str, repository: Repository) -> dict[str, object]:
    siblings = [
        {"rfilename": path, "size": repository.sizes.get(path, len(content))}
        for path, content in repository.files.items()
    ]
    return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
