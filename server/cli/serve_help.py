"""The help of commands with the options of ``serve``: an option takes one line of 80."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from typer.core import TyperArgument, TyperCommand

from manylora.adapters.options.option import default_text, flag_of, off_flag_of, option_of
from manylora.server.options.settings import CONFIG_VARIABLE, Settings
from manylora.server.options.types import OPERATION

_WHERE = """\
 Every option is also a variable (--max-num-seqs: MANYLORA_MAX_NUM_SEQS) and a
 key of the YAML file (max_num_seqs). Flags beat variables, these the file.
 Sizes are written as 512MiB or 2GiB. Defaults are in brackets. What ends in ...
 can be given several times."""


class ServeHelp(TyperCommand):
    """A typer command that prints its help from the fields of :class:`Settings`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help to click's ``formatter``."""
        console = Console(highlight=False, markup=False)
        with console.capture() as written:
            arguments = [str(p.metavar) for p in self.params if isinstance(p, TyperArgument)]
            usage = " ".join([ctx.command_path, *arguments, "[OPTIONS]"])
            console.print(f" Usage: {usage}\n\n {self.help}\n\n{_WHERE}\n")
            for panel, rows in groupby(_rows(), key=lambda row: row[0]):
                table = Table.grid(padding=(0, 2))
                for _, flag, meaning in rows:
                    table.add_row(flag, meaning)
                console.print(Panel(table, title=panel, title_align="left", border_style="dim"))
        formatter.write(written.get())


def _rows() -> Iterable[tuple[str, str, str]]:
    """Panel, flag and meaning of each option."""
    for name, field in Settings.model_fields.items():
        option, default, flag = option_of(field), default_text(field), flag_of(name)
        if option.switch:  # only the position that it is not in anyway
            shown = (off_flag_of(name), option.without) if field.default else (flag, option.meaning)
            yield option.panel, *shown
            continue
        value = f"{option.metavar}..." if option.repeatable else option.metavar
        bracketed = "" if default is None else f" [{default}]"
        yield option.panel, f"{flag} {value}", f"{option.meaning}{bracketed}"
    yield OPERATION, "--config FILE", f"YAML file with any of these options [{CONFIG_VARIABLE}]"
    yield OPERATION, "--help, -h", "Show this."
