"""Tables of options, for the pages that are generated from the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby


def option_tables(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A heading and a table in Markdown for each run of ``rows`` that have the same panel.

    Args:
        head: titles of the columns.
        rows: (panel, cells).
    """
    top = f"{_line(head)}|{'---|' * len(head)}\n"
    return "".join(
        f"\n## {panel}\n\n{top}" + "".join(_line(cells) for _, cells in members)
        for panel, members in groupby(rows, key=lambda row: row[0])
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
