"""``manylora adapters add``: publish a directory, an archive or a URL, and watch it being loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from manylora.server.cli.admin.session import Session

if TYPE_CHECKING:
    from rich.progress import Progress

    from manylora.server.client.publishing import Publishing


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
    subfolder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Of SOURCE, where the adapter is: checkpoint-400.")
    ] = "",
    server_path: Annotated[
        bool, typer.Option("--server-path", help="SOURCE is a directory on the server's machine.")
    ] = False,
) -> None:
    """Publish an adapter, or a new revision of one, under NAME."""
    from rich.progress import TimeElapsedColumn  # noqa: PLC0415

    from manylora.adapters.progress_bars import BytesColumn, progress_bars  # noqa: PLC0415
    from manylora.server.cli.admin.lines import published_line  # noqa: PLC0415
    from manylora.server.client.publishing import given_at  # noqa: PLC0415

    with session.talk() as client, progress_bars(BytesColumn(), TimeElapsedColumn(), passing=True) as bars:
        given_at(
            source, on_server=server_path, subfolder=subfolder
        )  # what is not there is told before the server is asked
        before = client.find(name)  # also tells whether a server is there, before much is sent
        answer = client.add(
            name,
            source,
            tags=tag or (),
            replace=replace,
            wait=wait,
            on_server=server_path,
            subfolder=subfolder,
            progress=_shown_in(bars),
        )
    session.tell(answer, lambda found: published_line(before, found))


def _shown_in(bars: Progress) -> Publishing:
    """One bar for what is sent, one for what the server then loads."""
    tasks = {stage: bars.add_task(stage, total=None, visible=False) for stage in ("sending", "loading")}

    def moved(stage: str, done: int, total: int | None) -> None:
        moving = total if stage == "sending" or done != total else None  # all is there: it is being checked
        bars.update(tasks[stage], completed=done, total=moving, visible=True)

    return moved
