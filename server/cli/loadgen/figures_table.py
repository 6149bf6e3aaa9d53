"""Figures of load as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from manylora.server.cli.loadgen.figures import Figures


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


_COLUMNS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("workload", lambda f: f.workload),
    ("system", lambda f: f.system),
    ("output tok/s", lambda f: f"{f.output_tokens_per_second:.1f}"),
    ("TTFT p50/p99 ms", lambda f: f"{_ms(f.ttft_p50)} / {_ms(f.ttft_p99)}"),
    ("inter-token p50/p99 ms", lambda f: f"{_ms(f.inter_token_p50)} / {_ms(f.inter_token_p99)}"),
    ("latency p50/p99 s", lambda f: f"{f.latency_p50:.2f} / {f.latency_p99:.2f}"),
    ("errors", lambda f: str(f.errors)),
)


def wide_console(*, stderr: bool) -> Console:
    """A console that is wide enough for the table even where it is no terminal."""
    out = Console(stderr=stderr)
    return out if out.is_terminal else Console(stderr=stderr, width=120)


def show_table(rows: Sequence[Figures], out: Console) -> None:
    """Print figures as a table, workload by workload; a single system goes without saying."""
    columns = [c for c in _COLUMNS if c[0] != "system" or len({row.system for row in rows}) > 1]
    grid = Table()
    for title, _ in columns:
        grid.add_column(title, justify="left" if title in {"workload", "system"} else "right", no_wrap=True)
    previous: str | None = None
    for row in rows:
        if previous not in (None, row.workload):
            grid.add_section()
        previous = row.workload
        grid.add_row(*(cell(row) for _, cell in columns))
    out.print(grid)
