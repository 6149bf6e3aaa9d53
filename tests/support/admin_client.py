"""The administrative API as a test asks it: uploads, archives, and what there is afterwards."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx

from tests.support.adapters import write_adapter
from tests.support.running_server import PATIENCE, Running


@dataclass(frozen=True)
class Admin:
    """The administrative API of ``server``."""

    server: Running
    key: str | None = None

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to any request; a ``path`` without ``/v1`` is one below ``/v1/adapters``."""
        url = path if path.startswith("/v1") else f"/v1/adapters{path}"
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        with self.server.http(headers=headers) as http:
            return http.request(method, url, **options)

    def get(self, path: str = "", **query: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, name: str, action: str, **body: Any) -> httpx.Response:
        """The answer to an action on an adapter, with a JSON body if there are fields for one."""
        return (
            self.ask("POST", f"/{name}/{action}", json=body)
            if body
            else self.ask("POST", f"/{name}/{action}")
        )

    def names(self, **query: Any) -> list[str]:
        """Names of the listed adapters."""
        return [adapter["id"] for adapter in self.get(**query)["data"]]

    def upload(
        self,
        name: str,
        *files: Path,
        tags: Iterable[str] = (),
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> httpx.Response:
        """Send a directory's files, or these files."""
        paths = [path for given in files for path in (sorted(given.iterdir()) if given.is_dir() else [given])]
        parts = [("files", (path.name, path.read_bytes())) for path in paths]
        return self.ask(
            "PUT", f"/{name}", files=parts, data={"tags": list(tags)}, params=query, headers=headers or {}
        )

    def fetch(self, name: str, source: str, *, tags: list[str] | None = None, **query: Any) -> httpx.Response:
        """Have the server fetch a source."""
        body = {"source": source} if tags is None else {"source": source, "tags": tags}
        return self.ask("PUT", f"/{name}", json=body, params=query)

    def settled(self, name: str) -> Any:
        """The adapter once nothing is being published under its name."""
        deadline = monotonic() + PATIENCE
        while True:
            found = self.get(f"/{name}")
            if found["publication"] is None or found["publication"]["state"] != "loading":
                return found
            assert monotonic() < deadline, found
            sleep(0.001)  # of a test's own thread; the server has to get on with it

    def forget_all(self) -> None:
        """Delete every alias and adapter."""
        for alias in self.ask("GET", "/v1/aliases").json()["data"]:
            assert self.ask("DELETE", f"/v1/aliases/{alias['id']}").status_code == 200
        for name in self.names():
            assert self.ask("DELETE", f"/{name}").status_code == 200


def publish(admin: Admin, directory: Path, model: Path, name: str, *, seed: int = 0, **options: Any) -> Any:
    """Publish a new random adapter for ``model``; what the server says of it."""
    tags = options.pop("tags", ())
    path = write_adapter(directory / f"{name}-{seed}", model, seed=seed, **options)
    answer = admin.upload(name, path, tags=tags, wait="true")
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def completion(admin: Admin, model: str) -> str:
    """The first tokens that ``model`` generates, greedily."""
    client = admin.server.client()
    return client.completions.create(model=model, prompt="Hello", temperature=0, max_tokens=8).choices[0].text


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and parameter of an error, which must have all its four fields."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


def zipped(directory: Path, *, folder: str = "") -> bytes:
    """The files of a directory as a zip, perhaps in a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(directory.iterdir()):
            archive.write(path, f"{folder}{path.name}")
    return buffer.getvalue()


def tarred(directory: Path, *, folder: str = "", mode: str = "w:gz") -> bytes:
    """The files of a directory as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for path in sorted(directory.iterdir()):
            archive.add(path, f"{folder}{path.name}")
    return buffer.getvalue()
