"""The fine-tuning jobs of a running server, as methods of one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from manylora.server.client.connection import Answer, Connection

_PATH = "/v1/fine_tuning/jobs"
ENDED = ("succeeded", "failed", "cancelled")  # states that don't change any more


class JobClient:
    """Makes and follows jobs. Its methods raise what those of the client do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upload(self, path: Path) -> str:
        """The id of a new file with the rows at ``path``."""
        answer: Answer = self._connection.post_file("/v1/files", path, {"purpose": "fine-tune"})
        return str(answer["id"])

    def create(self, body: Mapping[str, Any], *, dry_run: bool = False) -> Answer:
        """A new job, by the fields of its route; with ``dry_run`` what it would take."""
        made: Answer = self._connection.post(_PATH, body, dry_run=dry_run or None)
        return made

    def list(self) -> Iterator[Answer]:
        """Jobs, the newest first, fetched a page at a time as they are wanted."""
        return self._connection.pages(_PATH)

    def show(self, job: str) -> Answer:
        """One job."""
        found: Answer = self._connection.get(_path(job))
        return found

    def change(self, job: str, how: str) -> Answer:
        """Cancel, pause or resume a job."""
        changed: Answer = self._connection.post(f"{_path(job)}/{how}")
        return changed

    def events(self, job: str) -> Iterator[Answer]:
        """What happened to a job so far, the newest first."""
        return self._connection.pages(f"{_path(job)}/events")

    def follow(self, job: str) -> Iterator[Answer]:
        """What happened to a job, the oldest first, and what happens until it ends."""
        return self._connection.follow(f"{_path(job)}/events")


def _path(job: str) -> str:
    return f"{_PATH}/{quote(job, safe='')}"
