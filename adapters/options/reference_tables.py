"""Tables of options in Markdown, for the reference pages that are generated from the code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from manylora.adapters.options.option import Option, flag_of, off_flag_of, option_of

Cells = Callable[[str, FieldInfo, Option], Sequence[str]]  # of the field of this name


def option_tables(model: type[BaseModel], columns: Sequence[str], cells: Cells) -> str:
    """A heading and a table for each panel of ``model``, a row for each field.

    Args:
        model: an options model.
        columns: titles of the columns.
        cells: the cells of a field's row.
    """
    top = f"{_line(columns)}|{'---|' * len(columns)}\n"
    fields = ((name, field, option_of(field)) for name, field in model.model_fields.items())
    return "".join(
        f"\n## {panel}\n\n{top}" + "".join(_line(cells(*member)) for member in members)
        for panel, members in groupby(fields, key=lambda member: member[2].panel)
    )


def flag_cell(name: str, option: Option) -> str:
    """The flag of a field with its value, and the one that turns it off."""
    spelled = f"`{flag_of(name)} {option.metavar}".rstrip() + "`"
    return f"{spelled}, `{off_flag_of(name)}`" if option.switch else spelled


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
