"""JSON over HTTP with one server: requests, paged lists, uploads and streamed events."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from manylora.server.client.errors import Refused, Unreachable, Unusable
from manylora.server.client.local_adapter import name_sent

Answer = dict[str, Any]  # a JSON object that the server sent; docs/api.md tells its fields
Query = str | int | float | bool | None  # a query parameter; None is left out

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0  # of silence; longer calls add their own deadline
_BINARY = "application/octet-stream"


class _Counted(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, moved: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._moved(len(data))
        return data


class Connection:
    """A server's HTTP interface: every method returns the JSON of the answer.

    Each may raise :class:`Unreachable`, and :class:`Refused` when the answer is an error.
    """

    def __init__(self, url: str, key: str | None) -> None:
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

    def close(self) -> None:
        """Close the connections to the server."""
        self._http.close()

    def get(self, path: str, **query: Query) -> Any:
        """The answer to GET."""
        return self._ask("GET", path, params=given(query))

    def post(self, path: str, body: Mapping[str, Any] | None = None, **query: Query) -> Any:
        """The answer to POST; without a body an empty one is sent."""
        return self._ask("POST", path, json={} if body is None else body, params=given(query))

    def put(self, path: str, body: Mapping[str, Any], **query: Query) -> Any:
        """The answer to PUT."""
        return self._ask("PUT", path, json=body, params=given(query))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to PATCH."""
        return self._ask("PATCH", path, json=body)

    def delete(self, path: str, *, patience: float = 0.0, **query: Query) -> Any:
        """The answer to DELETE, which may take ``patience`` seconds more than usual to come."""
        timeout = httpx.Timeout(_ANSWER_SECONDS + patience, connect=_CONNECT_SECONDS)
        return self._ask("DELETE", path, params=given(query), timeout=timeout)

    def pages(self, path: str, **query: Query) -> Iterator[Answer]:
        """Every item of a paged list; the next page is asked for when its first item is wanted."""
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
        sent: Callable[[int, int], None],
        **query: Query,
    ) -> Any:
        """The answer to PUT of ``files`` as a form, sent straight from the disk.

        Args:
            path: of the route.
            files: sent under their names.
            fields: of the form, beside the files.
            sent: called with bytes sent so far and bytes in total.
            query: parameters.
        """
        total = sum(file.stat().st_size for file in files)
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            sent(done, total)

        with ExitStack() as stack:
            parts = [
                ("files", (name_sent(file), stack.enter_context(_Counted(file, moved)), _BINARY))
                for file in files
            ]
            data = {name: list(values) for name, values in fields.items()}
            return self._ask("PUT", path, files=parts, data=data, params=given(query))

    def post_file(self, path: str, file: Path, fields: Mapping[str, str]) -> Any:
        """The answer to POST of one file as a form with ``fields``, sent straight from the disk."""
        with file.open("rb") as opened:
            return self._ask("POST", path, files=[("file", (file.name, opened, _BINARY))], data=dict(fields))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Answer]:
        """The events of a streamed answer to POST, as they come; one with an error is raised."""
        yield from self._events("POST", path, json={**body, "stream": True})

    def follow(self, path: str) -> Iterator[Answer]:
        """The same of a streamed answer to GET."""
        yield from self._events("GET", path, params={"stream": True})

    def _events(self, method: str, path: str, **options: Any) -> Iterator[Answer]:
        with (
            self._reaching(),
            self._http.stream(method, path, **options) as answer,
        ):
            if not answer.is_success:
                answer.read()
                _read(answer, self.url)
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _event(line[6:], answer.status_code, self.url)

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
    """The path of an alias's routes."""
    return f"/v1/aliases/{quote(name, safe='')}"


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a mapping that are not None."""
    return {name: value for name, value in values.items() if value is not None}


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


def _event(data: str, status: int, url: str) -> Answer:
    try:
        event = json.loads(data)
        if "error" in event:
            raise Refused(str(event["error"]["message"]), status, event["error"]["code"])
        return dict(event)
    except (ValueError, LookupError, TypeError):
        raise _stranger(url, status) from None


def _stranger(url: str, status: int) -> Unreachable:
    return Unreachable(f"{url} is not a manylora server, or a proxy stands before it: it answered {status}")
