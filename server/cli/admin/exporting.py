"""``manylora adapters export``: have the server write a standalone model, and watch it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.server.cli.admin.session import Session, complain

if TYPE_CHECKING:
    from rich.progress import Progress

    from manylora.server.cli.admin.client import Client

_PAUSE = 0.25  # seconds between two looks


def export(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An adapter, a revision or a mix.", show_default=False)
    ],
    *,
    directory: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Under the server's --export-root.", show_default=False),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="bf16, fp16, fp32, or keep: the base's own.")
    ] = "keep",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one file, and of the memory that merging takes.")
    ] = "2GiB",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare its logits before it is handed over.")
    ] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is written.")] = True,
) -> None:
    """Have the server write the base with an adapter merged in, as a model of its own on its disk."""
    from manylora.server.cli.admin.client import Refused, Unusable, adapter_path  # noqa: PLC0415
    from manylora.server.cli.admin.lines import exported_line  # noqa: PLC0415
    from manylora.server.cli.admin.tables import progress_bars  # noqa: PLC0415
    from manylora.server.options.values import parse_size  # noqa: PLC0415

    with session.talk() as client, progress_bars() as progress:
        try:
            wish: dict[str, Any] = {"dtype": dtype, "verify": verify}
            wish["max_shard_size"] = parse_size(max_shard_size)
        except ValueError as error:
            raise Unusable(f"--max-shard-size: {error}") from None
        if directory is not None:
            wish["directory"] = directory
        path = adapter_path(name, "export")
        answer = client.post(path, wish, wait="false")
        if wait:
            answer = _wait(client, path, answer, progress)
        if answer["error"] is not None:
            raise Refused(answer["error"]["message"], 500, answer["error"]["code"])
    session.tell(answer, exported_line)


def _wait(client: Client, path: str, answer: Any, progress: Progress) -> Any:
    task = progress.add_task("writing", total=1.0)
    try:
        while answer["state"] not in {"ready", "failed"}:
            time.sleep(_PAUSE)
            answer = client.get(path)
            progress.update(task, completed=answer["progress"], description=answer["state"])
    except KeyboardInterrupt:
        complain(f"the server goes on writing; to cancel it: curl -X DELETE '{client.url}{path}'")
        raise
    progress.remove_task(task)
    return answer
