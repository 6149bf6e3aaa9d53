"""``manylora adapters add``: publish a directory, an archive or a URL, and watch it being loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.adapters.format.files import CONFIG_NAME, KEPT_NAMES, WEIGHTS_NAME
from manylora.server.cli.admin.session import Session

if TYPE_CHECKING:
    from rich.progress import Progress

    from manylora.server.cli.admin.client import Client

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two looks at an adapter that is being loaded


@dataclass(frozen=True)
class Given:
    """What the user wants to publish: files of this machine, or a source that the server reads."""

    files: tuple[Path, ...] = ()
    source: str = ""


def add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A PEFT directory or a .tar, .tar.gz or .zip of one, or hf://…, s3://…, file://….",
            show_default=False,
        ),
    ],
    *,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Repeatable.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace/--no-replace", help="Whether NAME may serve already.")
    ] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it serves, or at once.")] = True,
    server_path: Annotated[
        bool, typer.Option("--server-path", help="SOURCE is a directory on the server's machine.")
    ] = False,
) -> None:
    """Publish an adapter, or a new revision of one, under NAME."""
    from manylora.server.cli.admin.client import Refused, adapter_path  # noqa: PLC0415
    from manylora.server.cli.admin.lines import published_line  # noqa: PLC0415
    from manylora.server.cli.admin.tables import progress_bars  # noqa: PLC0415

    with session.talk() as client, progress_bars() as progress:
        given = Given(source=source) if server_path or "://" in source else local_files(Path(source))
        before = _before(client, name)  # also tells whether a server is there, before much is sent
        answer = _send(
            client, adapter_path(name), given, tags=list(tag or []), replace=replace, progress=progress
        )
        if wait:
            answer = _wait(client, adapter_path(name), answer, progress)
        publication = answer["publication"]
        if publication is not None and publication["error"] is not None:
            faults = publication["error"]["message"].replace("; ", "\n")
            raise Refused(f"{name} can't be served:\n{faults}", 422, publication["error"]["code"])
    session.tell(answer, lambda found: published_line(before, found))


def local_files(path: Path) -> Given:
    """The files to send of an adapter on this machine.

    Raises:
        Unusable: there is no adapter there.
    """
    from manylora.server.cli.admin.client import Unusable  # noqa: PLC0415

    if path.is_file():
        if not path.name.endswith(_ARCHIVES):
            raise Unusable(f"{path} is neither a directory nor a {', '.join(_ARCHIVES)} file")
        return Given((path,))
    if not path.is_dir():
        raise Unusable(f"{path}: no such directory (for one on the server's machine: --server-path)")
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (path / name).is_file()]
    if missing:
        raise Unusable(f"{path} is not a PEFT adapter in safetensors: it has no {' and no '.join(missing)}")
    return Given(tuple(path / name for name in KEPT_NAMES if (path / name).is_file()))


def _before(client: Client, name: str) -> Any:
    from manylora.server.cli.admin.client import Refused, adapter_path  # noqa: PLC0415

    try:
        return client.get(adapter_path(name))
    except Refused as refusal:
        if refusal.status == 404:
            return None
        raise


def _send(
    client: Client, path: str, given: Given, *, tags: list[str], replace: bool, progress: Progress
) -> Any:
    asked = None if replace else False  # the server's default is to replace
    if not given.files:
        body = {"source": given.source} | ({"tags": tags} if tags else {})
        return client.put(path, body, replace=asked)
    task = progress.add_task("sending", total=None)

    def moved(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return client.upload(path, given.files, {"tags": tags} if tags else {}, moved, replace=asked)


def _wait(client: Client, path: str, answer: Any, progress: Progress) -> Any:
    """Ask until the server is done with the publication, and return the last answer."""
    task = progress.add_task("loading", total=None)
    pause = _FIRST_PAUSE
    while _is_loading(answer):
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, 1.3 * pause)
        answer = client.get(path)
        publication = answer["publication"] or {}
        if publication.get("total_bytes"):
            done, total = publication["received_bytes"], publication["total_bytes"]
            progress.update(task, completed=done, total=total if done < total else None)
    progress.remove_task(task)
    return answer


def _is_loading(answer: Any) -> bool:
    """Whether the adapter is being loaded; a server that did not begin that knows only the name's state."""
    publication = answer["publication"]
    return bool((answer if publication is None else publication)["state"] == "loading")
