"""Measure servers side by side under multi-adapter loads; docs/performance-log.md says how and why.

    python -m bench.run --workload distinct:32 --workload base@32 --system manylora --system llama.cpp

The last line printed is the result as one line of JSON; it is also kept in ``bench/results``.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench import machine, peers, report
from bench.adapters import write_adapters
from bench.measure import Plan, measure
from bench.systems import ALL_KINDS, System, SystemFailed, manylora, parse_system
from manylora.server.cli.loadgen.figures import Figures
from manylora.server.cli.loadgen.figures_table import show_table, wide_console
from manylora.server.cli.loadgen.generated_prompts import PromptShape
from manylora.server.cli.loadgen.load import Load
from manylora.server.cli.loadgen.throughput_plot import draw_figures
from manylora.server.cli.loadgen.workload import Workload, parse_workload

RESULTS = Path(__file__).parent / "results"


def build(
    name: str, base: Path, adapters: Sequence[Path], clients: int, scratch: Path, *, device: str = "auto"
) -> System:
    """The system called ``name``: ours, a peer, or else ``NAME=URL`` or ``NAME=COMMAND``.

    Raises:
        SystemFailed: the peer is not installed.
        ValueError: the name is none of these.
    """
    match name:
        case "manylora" | "manylora-nf4" | "manylora-int8":
            quantize = name.partition("-")[2] or None
            return manylora(base, adapters, scratch / name, clients, device=device, quantize=quantize)
        case "vllm":
            return peers.vllm(base, adapters, clients)
        case "vllm-base":
            return peers.vllm(base, (), clients)
        case "llama.cpp" | "llama.cpp-Q4_0" | "llama.cpp-Q8_0":
            return peers.llama_cpp(base, adapters, clients, quantize=name.partition("-")[2] or None)
    return parse_system(name)


def _workload(text: str) -> Workload:
    try:
        return parse_workload(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def resolve_base(name: str) -> Path:
    """A directory as it is; any other name as the server resolves it."""
    if Path(name).is_dir():
        return Path(name)
    # A URL of another's server needs none of these.
    from manylora.adapters.base_models.catalog import resolve_model  # noqa: PLC0415
    from manylora.adapters.base_models.directory import default_data_dir  # noqa: PLC0415

    return resolve_model(name, default_data_dir())


def run(
    base: Path,
    systems: Sequence[str],
    loads: tuple[Load, ...],
    *,
    repeat: int,
    ranks: Sequence[int],
    dtype: str,
    device: str,
) -> list[Figures]:
    """Write the adapters, start the systems, measure, print the table."""
    console = wide_console(stderr=True)
    count = max(load.workload.adapters for load in loads)
    clients = max(load.workload.clients for load in loads)
    adapters = write_adapters(base, peers.cache() / "adapters", count=count, ranks=ranks, dtype=dtype)
    plan = Plan(loads, repeat, datetime.now(UTC).isoformat(), peers.cache() / "logs")
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        built = [build(name, base, adapters, clients, Path(scratch), device=device) for name in systems]
        rows = asyncio.run(measure(built, plan, console))
    show_table(rows, console)
    return rows


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    workload: Annotated[
        list[str] | None,
        typer.Option(help="KIND[:ADAPTERS][@CLIENTS]; kinds: " + ", ".join(sorted(ALL_KINDS))),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="manylora (default), manylora-nf4, manylora-int8, vllm, vllm-base, llama.cpp, "
            "llama.cpp-Q4_0, llama.cpp-Q8_0, NAME=URL, or NAME=COMMAND with {port}."
        ),
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(help="Ranks of the adapters, in turn. Default: 16.")
    ] = None,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the adapters.")] = "bf16",
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="That manylora runs on. auto: a GPU if there is one."),
    ] = "auto",
    prompt_tokens: Annotated[int, typer.Option(min=16)] = 173,
    shared_tokens: Annotated[int, typer.Option(min=0, help="Of each prompt, common to all.")] = 0,
    output_tokens: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Requests a client.")] = 3,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Open loop: requests a second, Poisson.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many runs.")] = 3,
    label: Annotated[str, typer.Option(help="Name of the result file.")] = "run",
    plot: Annotated[Path | None, typer.Option(help="Draw the figures, PNG or SVG.")] = None,
) -> None:
    """Measure servers side by side."""
    shape = PromptShape(prompt_tokens, shared_tokens)
    workloads = [_workload(text) for text in workload or ("distinct:32",)]
    loads = tuple(Load(item, shape, output_tokens, rounds, rate) for item in workloads)
    started = datetime.now(UTC)
    try:
        rows = run(
            resolve_base(base),
            system or ["manylora"],
            loads,
            repeat=repeat,
            ranks=rank or [16],
            dtype=dtype,
            device=device,
        )
    except (SystemFailed, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        raise typer.Exit(143) from None  # SIGTERM
    options: dict[str, object] = {
        "prompt_tokens": prompt_tokens,
        "shared_tokens": shared_tokens,
        "output_tokens": output_tokens,
    }
    options |= {"rounds": rounds, "repeat": repeat, "rate": rate, "ranks": rank or [16], "dtype": dtype}
    options["device"] = device
    about = {
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        **machine.setting(),
        "base": base,
        "options": options,
    }
    line = report.json_line("http", about, rows)
    report.save(line, RESULTS, f"{started:%Y%m%d-%H%M%S}-{label}")
    if plot is not None:
        draw_figures(rows, plot)
    print(line)


if __name__ == "__main__":
    typer.run(main)
