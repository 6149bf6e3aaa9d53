"""``manylora estimate serve``: what fits which card, without loading any weights and without a card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from manylora.adapters.errors import AdapterError
from manylora.adapters.options.values import parse_size
from manylora.server.cli.output import fail
from manylora.server.options.defaults import GPU_BATCH_TOKENS, GPU_SEQUENCES

if TYPE_CHECKING:
    from rich.table import Table

    from manylora.server.sizing.fits import Serving

_CARDS = ["16GiB", "24GiB", "48GiB", "80GiB"]
_FORMS = ("bf16", "int8", "nf4")
_DIVIDED_FORMS = ("bf16",)  # bases in few bits are not divided between cards


def estimate_serve(  # noqa: PLR0917 - typer makes a flag of each
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="smollm2-135m, a Hub id, or a directory with a config.json.")
    ] = "smollm2-135m",
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="Memory of a card, as 24GiB. Default: 16, 24, 48 and 80 GiB."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="As of serve. Default: the model's, at most 8192.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, metavar="N", help="As of serve.")] = GPU_SEQUENCES,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="As of serve.")
    ] = GPU_BATCH_TOKENS,
    tensor_parallel_size: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Cards that share the base, as of serve.")
    ] = 1,
    rank: Annotated[
        int,
        typer.Option("--rank", "--r", min=1, max=1024, help="Of adapters, which change all linear layers."),
    ] = 16,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="As of serve.")] = False,
) -> None:
    """Say which GPU a base fits, and how many tokens and adapters beside it. Nothing is loaded or run."""
    try:
        cards = [parse_size(card) for card in gpu or _CARDS]
    except ValueError as error:
        raise fail(f"--gpu: {error}") from error
    from manylora.adapters.base_models.directory import default_data_dir  # noqa: PLC0415
    from manylora.adapters.base_models.outline import resolve_outline, skeleton_of  # noqa: PLC0415  (torch)
    from manylora.server.model.parallel.parts.shape import share_shape  # noqa: PLC0415
    from manylora.server.model.parallel.parts.sharding import unsupported  # noqa: PLC0415
    from manylora.server.sizing.fits import Serving  # noqa: PLC0415
    from manylora.server.sizing.shape import BaseShape  # noqa: PLC0415
    from manylora.server.sizing.step import StepSize  # noqa: PLC0415

    try:
        config, skeleton = skeleton_of(resolve_outline(model, default_data_dir()))
    except AdapterError as error:
        raise fail(error) from error
    shape = BaseShape.of(config, skeleton)
    parameters = shape.parameters
    forms: tuple[str, ...] = _FORMS
    if tensor_parallel_size > 1:
        reason = unsupported(config, tensor_parallel_size)
        if reason is not None:
            raise fail(f"--tensor-parallel-size {tensor_parallel_size}: {reason}")
        shape, forms = share_shape(config, tensor_parallel_size), _DIVIDED_FORMS
    context = min(shape.context or 8192, 8192) if max_model_len is None else max_model_len
    size = StepSize(max_batch_tokens, max_num_seqs, context, rank, deterministic)
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    console.print(f"{model}: {parameters / 1e9:.2f}B parameters, contexts of {context} tokens")
    if tensor_parallel_size > 1:
        console.print(f"On {tensor_parallel_size} cards; sizes are those of each, counts those of all.")
    console.print(fits_table([Serving(shape, form, size, rank) for form in forms], cards))
    console.print(
        "Computed from the shapes of the model; what a step takes was compared with counted allocations,\n"
        "not measured on a card. Requests beyond what fits at once wait for room."
    )


def fits_table(servings: list[Serving], cards: list[int]) -> Table:
    """A row for each card and format."""
    from rich.table import Table  # noqa: PLC0415

    from manylora.server.sizing.division import gib  # noqa: PLC0415

    table = Table("GPU", "weights in", "weights", "steps", "tokens in KV cache", "adapters", "merged copies")
    for card in cards:
        for serving in servings:
            division = serving.on(card)
            row = [gib(card), serving.form, gib(serving.weights)]
            if division is None:
                table.add_row(*row, f"does not fit: {gib(serving.smallest())} would", style="dim")
                continue
            copies = division.merged // serving.shape.copy_bytes(serving.form)
            adapters = division.adapters // serving.adapter
            table.add_row(*row, gib(division.step), f"{division.tokens:,}", f"{adapters:,}", f"{copies}")
    return table
