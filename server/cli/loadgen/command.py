"""``manylora bench``: put load on a running server and tell how fast it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.server.cli.admin.session import Session, with_session
from manylora.server.cli.output import REFUSED, fail
from manylora.server.client.errors import Unusable

if TYPE_CHECKING:
    from manylora.server.cli.loadgen.figures import Figures

_Workloads = Annotated[
    list[str] | None,
    typer.Option(
        "--workload",
        "-w",
        metavar="KIND[:ADAPTERS][@CLIENTS]",
        help="Kinds: base, distinct, uniform, zipf, identical, mix. Repeatable. "
        "Default: base, and distinct if there are adapters.",
        show_default=False,
    ),
]
_Models = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME", help="Repeatable. Default: all listed.", show_default=False),
]
_Rate = Annotated[
    float | None,
    typer.Option(min=0.001, metavar="NUMBER", help="Open loop: requests a second.", show_default=False),
]
_Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the figures (PNG or SVG).", show_default=False)
]


@with_session
def bench(
    session: Session,
    *,
    workload: _Workloads = None,
    adapter: _Models = None,
    prompt_tokens: Annotated[int, typer.Option(min=16, metavar="COUNT", help="About so many.")] = 173,
    shared_tokens: Annotated[
        int, typer.Option(min=0, metavar="COUNT", help="Of each prompt, common to all.")
    ] = 0,
    output_tokens: Annotated[int, typer.Option(min=1, metavar="COUNT", help="Of every answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, metavar="COUNT", help="Requests a client.")] = 3,
    rate: _Rate = None,
    plot: _Plot = None,
) -> None:
    """Measure a running server under load: tokens a second, time to first token, time between tokens.

    Works with servers that stream /v1/completions and know ignore_eos. Each client warms up with one request.
    """
    # The help does not need these: they bring rich.
    from manylora.server.cli.loadgen.figures_table import show_table, wide_console  # noqa: PLC0415
    from manylora.server.cli.loadgen.generated_prompts import PromptShape  # noqa: PLC0415
    from manylora.server.cli.loadgen.load import Load  # noqa: PLC0415
    from manylora.server.cli.loadgen.measuring import Target, measure  # noqa: PLC0415
    from manylora.server.cli.loadgen.workload import parse_workload  # noqa: PLC0415

    shape = PromptShape(prompt_tokens, shared_tokens)
    with session.talk() as client:
        base, listed = _served(client.models())
        names = listed if adapter is None else adapter
        try:
            workloads = [parse_workload(text) for text in workload or _default(len(names))]
        except ValueError as error:
            raise Unusable(str(error)) from None
        needed = max(item.adapters for item in workloads)
        if needed > len(names):
            raise Unusable(f"{needed} adapters are asked for, there are {len(names)}")
    loads = [Load(item, shape, output_tokens, rounds, rate) for item in workloads]
    rows = asyncio.run(measure(Target(session.url, session.key, base, names), loads))
    if plot is not None:
        _draw(rows, plot)
    if session.as_json:
        for row in rows:
            session.tell(asdict(row), str)
    else:
        show_table(rows, wide_console(stderr=False))
    if any(row.errors for row in rows):
        raise typer.Exit(REFUSED)


def _served(models: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The base model's name, and those of what is served on top of it."""
    base = next((model["id"] for model in models if not model.get("parent")), models[0]["id"])
    return base, [model["id"] for model in models if model.get("parent")]


def _default(adapters: int) -> list[str]:
    clients = min(adapters, 8) or 8
    return [f"base@{clients}", *([f"distinct:{clients}"] if adapters else [])]


def _draw(rows: Sequence[Figures], path: Path) -> None:
    try:
        from manylora.server.cli.loadgen.throughput_plot import draw_figures  # noqa: PLC0415
    except ImportError:
        raise fail("--plot needs matplotlib: pip install 'manylora[bench]'") from None
    try:
        draw_figures(rows, path)
    except (OSError, ValueError) as error:
        raise fail(f"{path} can't be written: {error}") from None
