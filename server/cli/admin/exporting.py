"""``manylora adapters export``: have the server write a standalone model, and watch it."""

from __future__ import annotations

from typing import Annotated

import typer

from manylora.adapters.options.values import parse_size
from manylora.server.cli.admin.session import Session
from manylora.server.cli.output import complain
from manylora.server.client.errors import Unusable


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
    from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415
    from manylora.server.cli.admin.lines import exported_line  # noqa: PLC0415

    with session.talk() as client, progress_bars(passing=True) as bars:
        task = bars.add_task("writing", total=1.0, visible=wait)
        begun = False

        def moved(state: str, done: float) -> None:
            nonlocal begun
            begun = True
            bars.update(task, description=state, completed=done)

        try:
            answer = client.export(
                name,
                directory=directory,
                dtype=dtype,
                max_shard_bytes=_size(max_shard_size),
                verify=verify,
                wait=wait,
                progress=moved,
            )
        except KeyboardInterrupt:
            if begun:
                url = client.export_url(name)
                complain(f"the server goes on writing; to cancel it: curl -X DELETE '{url}'")
            raise
    session.tell(answer, exported_line)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise Unusable(f"--max-shard-size: {error}") from None
