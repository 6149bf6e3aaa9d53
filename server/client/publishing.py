"""Publishes an adapter on a server, and waits for work that goes on there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manylora.server.client.connection import Answer, Connection, adapter_path
from manylora.server.client.errors import Refused
from manylora.server.client.local_adapter import local_files

# Called as a publication goes on: what is being done, bytes done, and bytes in all where that is known.
Publishing = Callable[[Literal["sending", "loading"], int, int | None], None]
# Called as a server works: the state that its answer names, and the share that is done.
Working = Callable[[str, float], None]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two looks at what a server is doing


@dataclass(frozen=True)
class Given:
    """What is to be published: files of this machine, or a source that the server reads."""

    files: tuple[Path, ...] = ()
    source: str = ""
    subfolder: str = ""  # of the source, or of the archive that is the only file


def given_at(source: str | Path, *, on_server: bool, subfolder: str = "") -> Given:
    """What a text or path names to be published; only files of this machine are looked at.

    Raises:
        Unusable: it is no URL, and no adapter on this machine.
    """
    if on_server or (isinstance(source, str) and "://" in source):
        return Given(source=str(source), subfolder=subfolder)
    path = Path(source)
    if path.is_file():
        return Given(files=local_files(path), subfolder=subfolder)
    return Given(files=local_files(path / subfolder))


def publish(
    connection: Connection,
    name: str,
    given: Given,
    *,
    tags: Sequence[str],
    replace: bool,
    progress: Publishing,
) -> Answer:
    """Begin to publish an adapter; returns it as it is when the server has answered."""
    path, form = adapter_path(name), ({"tags": list(tags)} if tags else {})
    asked = {"replace": None if replace else False, "subfolder": given.subfolder or None}  # None: its default
    answer: Answer
    if given.source:
        answer = connection.put(path, {"source": given.source, **form}, **asked)
    else:
        progress("sending", 0, None)
        answer = connection.upload(
            path, given.files, form, lambda done, total: progress("sending", done, total), **asked
        )
    return answer


def published(connection: Connection, name: str, answer: Answer, progress: Publishing) -> Answer:
    """The adapter once nothing is being published under its name; ``answer`` is how it was."""
    progress("loading", 0, None)
    pause = _FIRST_PAUSE
    while _is_loading(answer):
        time.sleep(pause)
        pause = _longer(pause)
        answer = connection.get(adapter_path(name))
        publication = answer["publication"] or {}
        if publication.get("total_bytes"):
            progress("loading", publication["received_bytes"], publication["total_bytes"])
    return answer


def check_published(name: str, answer: Answer) -> Answer:
    """``answer`` if the latest publication under ``name`` has not failed.

    Raises:
        Refused: it has; one fault a line.
    """
    publication = answer["publication"]
    if publication is not None and publication["error"] is not None:
        faults = publication["error"]["message"].replace("; ", "\n")
        raise Refused(f"{name} can't be served:\n{faults}", 422, publication["error"]["code"])
    return answer


def ended(connection: Connection, path: str, answer: Answer, progress: Working) -> Answer:
    """A merge or an export once it is ready or has failed; ``answer`` is how it was."""
    pause = _FIRST_PAUSE
    while answer["state"] not in {"ready", "failed"}:
        time.sleep(pause)
        pause = _longer(pause)
        answer = connection.get(path)
        progress(answer["state"], answer["progress"])
    return answer


def _longer(pause: float) -> float:
    return min(_LONGEST_PAUSE, 1.3 * pause)


def _is_loading(answer: Answer) -> bool:
    """Whether the adapter is being loaded; a server that did not begin that knows only the name's state."""
    publication = answer["publication"]
    return bool((answer if publication is None else publication)["state"] == "loading")
