"""Every route of an application, and the odd ways in which its requests can be spelled."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts

from manylora.server.api.access.scopes import KeyScope, declared_scope

_PARAMETER = re.compile(r"\{[^}]*\}")
_ENDS = (
    "%0a", "%0A", "%0d", "%0d%0a", "%00", "%09", "%0b", "%0c", "%1f", "%20", "%7f", "%85", "%c2%85", "%ff",
    "%e2%80%a8", ";x", ";", "%3b", "%3bx=1", ".", "%2e", "/.", "/..", "/%2e", "/%2e%2e", "%2f", "%2f%2f",
    "/", "//", "%5c", "%252e", "%252f", "%250a", "%2500", "%23", "%3f", "%3f/health", "?", "?/health",
    "?x=%0a", "/../health", "/%2e%2e/health", "%2f..%2fhealth", "/;/", "~", "%", "%a", "%u000a",
)  # fmt: skip
_OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override", "_method")
_ELSEWHERE = ("x-original-url", "x-rewrite-url", "x-forwarded-uri", "x-forwarded-prefix", "x-script-name")


@dataclass(frozen=True)
class Spelling:
    """One way to ask for a route."""

    method: str
    target: str  # of the request line
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What matters of an answer: its status, and the code of its error."""

    status: int
    code: str | None


def routes(app: FastAPI) -> list[RouteContext]:
    """All routes, those of included routers among them."""
    return list(iter_route_contexts(app.routes))


def requests_of(app: FastAPI) -> Iterator[tuple[str, str, KeyScope]]:
    """A method and a path for each route, and the scope it declares; what the path names does not exist."""
    for route in routes(app):
        scope = declared_scope(route.endpoint)
        assert route.path is not None
        assert scope is not None
        for method in sorted(route.methods or ()):
            yield method, _PARAMETER.sub("nothing", route.path), scope


def spellings(method: str, path: str) -> Iterator[Spelling]:
    """The odd spellings of a request, HEAD and OPTIONS among them."""
    for target in sorted(_targets(path)):
        yield Spelling(method, target)
    for other in ("HEAD", "OPTIONS", "TRACE", "PATCH"):
        yield Spelling(other, path)
        yield Spelling(other, f"{path}%0a")
    for name in _OVERRIDES:
        for value in ("GET", "DELETE"):
            yield Spelling(method, path, {name: value})
        yield Spelling(method, f"{path}?{name}=GET")
    for name in _ELSEWHERE:
        yield Spelling(method, path, {name: "/health"})
    yield Spelling(method, path, {"host": "x/health?"})
    yield Spelling(method, path, {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1"})


def _targets(path: str) -> set[str]:
    steps = path[1:].split("/")
    last = f"/{steps[-1]}"
    targets = {path + end for end in _ENDS}
    targets |= {f"http://other.example{path}", f"https://user@other.example:1{path}", f"HTTP://x{path}%0a"}
    targets |= {"/" + path, "//" + path, "/." + path, "/x/.." + path, "/%2e" + path, "/health/.." + path}
    targets |= {"%2f" + path[1:], "/%2f" + path[1:], "/health" + path, "/docs" + path}
    targets |= {path.upper(), path.title(), path.replace("/", "//"), path.replace("/", "/./")}
    targets |= {path[0] + path[1:].replace("/", "%2f"), path.replace("/", "/;x/"), path + "/.." + last}
    targets |= {path[0] + "".join(f"%{ord(letter):02x}" for letter in path[1:])}
    targets |= {path[0] + "".join(f"%25{ord(letter):02x}" for letter in path[1:])}
    return {target for target in targets if target.startswith(("/", "h", "H")) and target != path}


class Asker:
    """Sends requests with targets as they are, on one connection while the server keeps it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, spelling: Spelling, key: str | None) -> Told:
        """What is told of a request with ``key``, and with an empty JSON object where it may have a body."""
        status, body = self.fetch(spelling, key)
        return Told(status, _code(body))

    def fetch(self, spelling: Spelling, key: str | None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = b"{}" if spelling.method in {"POST", "PUT", "PATCH"} else None
        headers |= {"content-type": "application/json", **spelling.headers}
        self._connection.request(spelling.method, spelling.target, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def _code(body: bytes) -> str | None:
    try:
        told: Any = json.loads(body)
    except ValueError:
        return None
    return told["error"]["code"] if isinstance(told, dict) and "error" in told else None
