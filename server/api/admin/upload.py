"""An uploaded adapter: received into a directory of its own, then moved or unpacked to be checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fastapi import Request

from manylora.adapters.disk import full_disk_told
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import (
    CONFIG_NAME,
    KEPT_NAMES,
    WEIGHTS_NAME,
    folder_and_name,
    place_in,
)
from manylora.adapters.format.foreign.file_names import (
    files_of_adapter,
    foreign_weights,
    may_be_weights,
)
from manylora.adapters.sources.archives import unpack
from manylora.adapters.sources.folders import check_subfolder, check_weights, choose, clean_path
from manylora.adapters.sources.policy import SourcePolicy
from manylora.server.api.admin.publish_request import UPLOADED, FetchProgress, PublishRequest
from manylora.server.api.http.multipart import Form, receive_form
from manylora.server.errors import RequestError
from manylora.server.service import Service

_FIELDS = ("tags", "subfolder")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


async def receive_upload(request: Request, service: Service, subfolder: str = "") -> PublishRequest:
    """Receive a form with the files of an adapter or one archive of them, ``tags`` and ``subfolder``.

    Whatever goes wrong, also a client that leaves half way, nothing stays on disk.

    Raises:
        RequestError: not a well-formed form, without files, or with a field that means nothing.
        BodyTooLarge: more bytes than an upload may have.
        ClientDisconnect: the client left.
        DiskFull: there is no room for it.
    """
    kept = ExitStack()
    try:
        directory = await asyncio.to_thread(kept.enter_context, service.store.temporary())
        with full_disk_told("there is no room for the upload"):
            form = await receive_form(request.stream(), request.headers["content-type"], directory)
        tags = _tags(form)
        folder = check_subfolder(_subfolder(form, subfolder))
        if not form.files:
            raise RequestError("The form has no file", "files")
    except BaseException:
        kept.close()
        raise
    files = form.files
    names = [_basename(name) for name, _ in files]

    progress = FetchProgress()
    progress.nbytes = progress.total = sum(path.stat().st_size for _, path in files)

    def fetch(into: Path) -> None:
        with kept:
            _place(files, into, service.sources, folder)

    return PublishRequest(_source(names), "files", tags, fetch, kept.close, progress)


def _tags(form: Form) -> tuple[str, ...] | None:
    """The tags in the form: None if it says nothing of tags; an empty one stands for no tags."""
    for name, _ in form.fields:
        if name not in _FIELDS:
            raise RequestError(
                f"Unrecognized field of the form: {shown(name)}", name[:100], "unknown_parameter"
            )
    tags = [value for name, value in form.fields if name == "tags"]
    return tuple(filter(None, tags)) if tags else None


def _subfolder(form: Form, asked: str) -> str:
    """The subfolder that the form or the query asks for.

    Raises:
        RequestError: they ask for different ones.
    """
    named = {value for name, value in form.fields if name == "subfolder" and value} | ({asked} - {""})
    if len(named) > 1:
        raise RequestError("The request names more than one subfolder", "subfolder")
    return next(iter(named), "")


def _basename(name: str) -> str:
    """The name of a file in its adapter, whichever system the path comes from."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]  # some senders double backslashes
    return folder_and_name("/".join(parts))[1]


def _source(names: Sequence[str]) -> str:
    return f"{UPLOADED}{names[0]}" if is_archive(names) else UPLOADED


def is_archive(names: Sequence[str]) -> bool:
    """Whether an upload of these files is one archive rather than the files of an adapter."""
    return len(names) == 1 and names[0] not in KEPT_NAMES and not may_be_weights(names[0])


def _place(files: Sequence[tuple[str, Path]], into: Path, policy: SourcePolicy, subfolder: str) -> None:
    """Put the files that an adapter consists of into ``into``; others are left behind.

    Raises:
        ArtifactError: two files have the same name, the weights are a pickle, or an archive can't be used.
    """
    names = [_basename(name) for name, _ in files]
    if is_archive(names):
        with files[0][1].open("rb") as archive:
            unpack(archive, into, policy, subfolder)
        return
    if subfolder:
        files = _in_folder(files, subfolder)
        names = [_basename(name) for name, _ in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArtifactError([f"the upload has two files called {shown(name)}" for name in twice])
    archives = sorted(name for name in names if name.endswith(_ARCHIVES))
    complete = {CONFIG_NAME, WEIGHTS_NAME} <= set(names) or bool(foreign_weights(names))
    if archives and not complete:
        raise ArtifactError(
            [f"the upload has the archive {shown(archives[0])} beside other files: send it alone"]
        )
    check_weights(names)
    received = dict(zip(names, (path for _, path in files), strict=True))
    for name in files_of_adapter(names):
        received[name].rename(place_in(into, name))


def _in_folder(files: Sequence[tuple[str, Path]], subfolder: str) -> list[tuple[str, Path]]:
    """The files whose sender named them in that folder: "checkpoint-200/adapter_config.json"."""
    folders: dict[str, list[tuple[str, Path]]] = {}
    for name, path in files:
        folder, _ = folder_and_name(clean_path(name) or "")
        folders.setdefault(folder, []).append((name, path))
    found = {folder: [_basename(name) for name, _ in each] for folder, each in folders.items()}
    return folders[choose(found, subfolder)]
