"""A client of the administrative API, for the command line. Imports nothing slow but httpx.

ClientError
├── Unreachable   nothing answers at the URL, or what answers is no manylora server
├── Refused       the server said no; its message, status and code
└── Unusable      what was given locally can't be sent
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

Progress = Callable[[int, int], None]  # bytes sent so far, bytes in total

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0  # of silence; longer calls add their own deadline


class ClientError(Exception):
    """Base of what can go wrong. ``str()`` is for the user."""


class Unreachable(ClientError):
    """Nobody answers there."""


class Refused(ClientError):
    """The server answered with an error."""

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unusable(ClientError):
    """A path or value of the user's can't be used."""


class _Counted(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, moved: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._moved(len(data))
        return data


class Client:
    """Speaks to the server at ``url``; use it in a ``with`` block."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """``url`` may end in /v1, as OpenAI's clients have it.

        Raises:
            Unusable: ``url`` is not the URL of an HTTP server.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        timeout = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        if not self.url.startswith(("http://", "https://")):
            raise Unusable(f"{url!r} is not an http:// or https:// URL")
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise Unusable(f"{url!r} is not a URL: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int | bool | None) -> Any:
        return self._ask("GET", path, params=_given(query))

    def post(self, path: str, body: Mapping[str, Any] | None = None, **query: str | int | bool | None) -> Any:
        return self._ask("POST", path, json={} if body is None else body, params=_given(query))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, as they come; one with an error is raised."""
        with (
            self._reaching(),
            self._http.stream("POST", path, json={**body, "stream": True}) as answer,
        ):
            if not answer.is_success:
                answer.read()
                _read(answer, self.url)
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _event(line[6:], answer.status_code, self.url)

    def put(self, path: str, body: Mapping[str, Any], **query: str | int | bool | None) -> Any:
        return self._ask("PUT", path, json=body, params=_given(query))

    def delete(self, path: str, *, patience: float = 0.0, **query: float | None) -> Any:
        """``patience``: seconds beyond the usual that the server may take to answer."""
        timeout = httpx.Timeout(_ANSWER_SECONDS + patience, connect=_CONNECT_SECONDS)
        return self._ask("DELETE", path, params=_given(query), timeout=timeout)

    def pages(self, path: str, **query: str | int | bool | None) -> Iterator[dict[str, Any]]:
        """Every item of a paged list."""
        after: str | None = None
        while True:
            page = self.get(path, **query, after=after)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]

    def upload(
        self,
        path: str,
        files: Sequence[Path],
        fields: Mapping[str, Sequence[str]],
        progress: Progress,
        **query: str | int | bool | None,
    ) -> Any:
        """Send ``files`` as a form, straight from the disk."""
        total = sum(file.stat().st_size for file in files)
        sent = 0

        def moved(count: int) -> None:
            nonlocal sent
            sent += count
            progress(sent, total)

        with ExitStack() as stack:
            parts = [
                ("files", (file.name, stack.enter_context(_Counted(file, moved)), "application/octet-stream"))
                for file in files
            ]
            data = {name: list(values) for name, values in fields.items()}
            return self._ask("PUT", path, files=parts, data=data, params=_given(query))

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        with self._reaching():
            answer = self._http.request(method, path, **options)
        return _read(answer, self.url)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """What goes wrong on the way to the server, as an error of ours."""
        try:
            yield
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url} does not answer") from None
        except httpx.ConnectError as error:
            raise Unreachable(
                f"no server at {self.url} ({_reason(error)}): start one with 'manylora serve', or give --url"
            ) from None
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} broke off: {_reason(error)}") from None


def adapter_path(name: str, action: str = "") -> str:
    """The path of an adapter's routes. ``name`` is quoted whole: the server says what is wrong with it."""
    return f"/v1/adapters/{quote(name, safe='')}" + (f"/{action}" if action else "")


def alias_path(name: str) -> str:
    return f"/v1/aliases/{quote(name, safe='')}"


def _given(query: Mapping[str, str | int | float | bool | None]) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in query.items() if value is not None}


def _reason(error: Exception) -> str:
    """The system's words without its number: ``[Errno 111] Connection refused``."""
    text = str(error)
    return text.partition("] ")[2] if text.startswith("[Errno") else text or type(error).__name__


def _read(answer: httpx.Response, url: str) -> Any:
    try:
        value = answer.json()
        if answer.is_success:
            return value
        error = value["error"]
        raise Refused(str(error["message"]), answer.status_code, error["code"])
    except (ValueError, LookupError, TypeError):
        raise _stranger(url, answer.status_code) from None


def _event(data: str, status: int, url: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
        if "error" in event:
            raise Refused(str(event["error"]["message"]), status, event["error"]["code"])
        return dict(event)
    except (ValueError, LookupError, TypeError):
        raise _stranger(url, status) from None


def _stranger(url: str, status: int) -> Unreachable:
    return Unreachable(f"{url} is not a manylora server, or a proxy stands before it: it answered {status}")
