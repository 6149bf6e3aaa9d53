"""Progress bars on the terminal, made in one place so that they look and behave alike."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


def progress_bars(
    *columns: ProgressColumn, console: Console | None = None, passing: bool = False
) -> Progress:
    """Bars for a ``with`` block, one for each task that is added to them.

    Args:
        columns: what stands right of a task's description and bar. Default: per cent and seconds.
        console: where they are drawn; stderr by default.
        passing: the bars go when the block ends, and are not shown where ``console`` is no terminal. By
            default they stay, and a file or pipe gets their last state as plain lines.
    """
    console = Console(stderr=True) if console is None else console
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(columns or (TaskProgressColumn(), TimeElapsedColumn())),
        console=console,
        transient=passing,
        disable=passing and not console.is_terminal,
    )


class BytesColumn(DownloadColumn):
    """How many bytes are done, of how many; nothing for a task that has no bytes to count."""

    def __init__(self) -> None:
        super().__init__(binary_units=True)

    def render(self, task: Task) -> Text:
        """The column's text for ``task``."""
        return Text() if task.total is None else super().render(task)
