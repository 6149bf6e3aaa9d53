"""``manylora compose`` and ``manylora merge``: several adapters into one, or into the base.

Only what the help needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.adapters.errors import AdapterError, MixError
from manylora.adapters.mix import check_weight
from manylora.adapters.options.values import parse_size
from manylora.server.cli.admin.lines import size
from manylora.server.cli.output import fail
from manylora.server.errors import ConfigError, ServerError
from manylora.server.signals import leaving_by_exception

if TYPE_CHECKING:
    from rich.table import Table

    from manylora.adapters.base_models.stored import StoredModel
    from manylora.adapters.merge.compose import Composition
    from manylora.adapters.merge.export import Exported

_WEIGHTED = re.compile(r"(?P<path>.+)\*(?P<weight>-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?)")

AdapterPaths = Annotated[
    list[str],
    typer.Option(
        "--adapter", metavar="PATH[*WEIGHT]", help="A PEFT directory, as ./support*0.7. Repeatable."
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="smollm2-135m (the default), a Hub id, or a directory."),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Written whole or not at all; must not exist.")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where models are kept.", show_default=False),
]


def compose(
    *,
    adapter: AdapterPaths,
    out: Out,
    base: Base = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="linear (the exact sum), svd, ties, dare_linear, dare_ties or magnitude_prune.",
        ),
    ] = "linear",
    rank: Annotated[
        int | None, typer.Option(metavar="RANK", help="Of the result; for all methods but linear.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Of each member's weights that ties, dare and prune keep: 0.5."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="SEED", help="Of what DARE drops: 0.")] = None,
    sign_method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="How ties elects signs: total or frequency.")
    ] = None,
    per_module: Annotated[bool, typer.Option("--per-module", help="A line for every module.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Compose adapters into a new one that plain PEFT loads."""
    try:
        from manylora.adapters.merge.compose import compose as compose_members  # noqa: PLC0415  (brings torch)
        from manylora.adapters.merge.compose import save  # noqa: PLC0415
        from manylora.adapters.merge.directory import check_absent  # noqa: PLC0415
        from manylora.adapters.merge.members import read_members  # noqa: PLC0415
        from manylora.adapters.merge.recipe import recipe_of  # noqa: PLC0415
        from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415

        check_absent(out)
        recipe = recipe_of(method, rank=rank, density=density, seed=seed, sign_method=sign_method)
        name, stored = _open_base(base, data_dir)
        described = stored.describe(name)
        members = read_members(map(_split, adapter), described)
        with progress_bars() as bars:
            task = bars.add_task("Composing", total=None)
            composition = compose_members(
                members, recipe, described, lambda done, count: bars.update(task, completed=done, total=count)
            )
        with leaving_by_exception():
            save(composition, out)
    except (ServerError, AdapterError) as error:
        raise fail(error) from error
    _print(composition_table(composition, per_module), f"{out}: rank {composition.rank}")


def merge(
    *,
    adapter: AdapterPaths,
    out: Out,
    base: Base = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Of the result: bf16, fp16, fp32, or keep: the base's own.")
    ] = "keep",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one file, and of the memory that merging takes.")
    ] = "2GiB",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Load it with transformers and compare its logits.")
    ] = True,
    data_dir: DataDir = None,
) -> None:
    """Merge adapters into their base: a standalone model for transformers."""
    try:
        from manylora.adapters.merge.directory import check_absent  # noqa: PLC0415
        from manylora.adapters.merge.export import export  # noqa: PLC0415  (brings torch)
        from manylora.adapters.merge.export_plan import plan_export  # noqa: PLC0415
        from manylora.adapters.merge.members import read_members  # noqa: PLC0415
        from manylora.adapters.merge.survival import weak_warning  # noqa: PLC0415
        from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415
        from manylora.server.memory_budget import verification_dtype  # noqa: PLC0415

        check_absent(out)
        name, stored = _open_base(base, data_dir)
        members = read_members(map(_split, adapter), stored.describe(name))
        plan = plan_export(stored, name, members, _dtype(dtype), _size(max_shard_size))
        with leaving_by_exception(), progress_bars() as bars:
            task = bars.add_task(f"Writing {size(plan.nbytes)}", total=plan.nbytes)
            exported = export(
                plan,
                out,
                compute_dtype=verification_dtype(plan.parameters, plan.loaded_bytes) if verify else None,
                progress=lambda done, _: bars.update(task, completed=done),
            )
    except (ServerError, AdapterError) as error:
        raise fail(error) from error
    files = "1 file" if exported.shards == 1 else f"{exported.shards} files"
    _print(export_table(exported), f"{out}: {size(exported.nbytes)} in {files}")
    warning = weak_warning(exported.effect_kept)
    if warning is not None:
        typer.echo(f"warning: {warning}", err=True)


def _split(spec: str) -> tuple[Path, float]:
    match = _WEIGHTED.fullmatch(spec)
    if match is None:
        if "*" in spec and not Path(spec).exists():
            raise MixError(f"--adapter {spec}: after '*' comes a weight such as 0.5, without a plus sign")
        return Path(spec).expanduser(), 1.0
    return Path(match["path"]).expanduser(), check_weight(float(match["weight"]), repr(match["path"]))


def _open_base(base: str | None, data_dir: Path | None) -> tuple[str, StoredModel]:
    """The base's name and its files, fetched if need be."""
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  (brings torch)

    from manylora.adapters.base_models.catalog import resolve_model  # noqa: PLC0415
    from manylora.adapters.base_models.stored import StoredModel  # noqa: PLC0415
    from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415
    from manylora.server.options.loading import load_settings  # noqa: PLC0415

    disable_progress_bar()
    flags = {"model": base, "data_dir": data_dir}
    settings = load_settings({name: value for name, value in flags.items() if value is not None})
    return settings.model, StoredModel(resolve_model(settings.model, settings.data_dir, progress_bars()))


def _dtype(name: str) -> Any:
    from manylora.adapters.merge.export_plan import DTYPES  # noqa: PLC0415  (brings torch)

    if name not in (*DTYPES, "keep"):
        raise ConfigError(f"--dtype {name}: must be keep, {', '.join(DTYPES)}")
    return DTYPES.get(name)


def _size(text: str) -> int:
    try:
        found = parse_size(text)
    except ValueError as error:
        raise ConfigError(f"--max-shard-size: {error}") from None
    if not found:
        raise ConfigError("--max-shard-size 0: a file holds at least one tensor")
    return found


def composition_table(composition: Composition, per_module: bool) -> Table:
    """A table of ranks and lost energy: of every module, or of those of one kind together; the total last."""
    from rich.table import Table  # noqa: PLC0415

    from manylora.adapters.merge.lowrank import NO_ENERGY  # noqa: PLC0415

    groups: dict[str, list[Any]] = {}
    for name, module in composition.modules.items():
        groups.setdefault(name if per_module else name.rpartition(".")[2], []).append(module)
    table = Table("module", "count", "rank", "energy lost")
    for name, modules in groups.items():
        ranks = sorted({module.factors.rank for module in modules})
        shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        energy = sum((module.energy for module in modules), NO_ENERGY)
        table.add_row(name, f"{len(modules)}", shown, f"{energy.share_lost:.3%}")
    lost = (
        "none: the sum is exact"
        if composition.recipe.method == "linear"
        else f"{composition.energy.share_lost:.3%}"
    )
    table.add_row("all", f"{len(composition.modules)}", f"{composition.rank}", lost)
    return table


def export_table(exported: Exported) -> Table:
    """A table of how far merged weights are from the unmerged adapters."""
    from rich.table import Table  # noqa: PLC0415

    table = Table("merged against unmerged", "")
    table.add_row("change of the weights that is left", f"{exported.effect_kept:.1%} after rounding")
    found = exported.verification
    if found is None:
        table.add_row("not compared", "--no-verify")
        return table
    table.add_row(
        "difference of logits", f"{found.error:.2g} of their spread (rounding may cost {found.limit:.2g})"
    )
    table.add_row("the adapters' own effect", f"{found.effect:.2g}")
    table.add_row("same likeliest token", f"{found.same_top:.1%} of {found.rows} rows")
    table.add_row("computed in", str(found.compute_dtype).removeprefix("torch."))
    return table


def _print(table: Table, line: str) -> None:
    from rich.console import Console  # noqa: PLC0415

    Console(highlight=False).print(table)
    typer.echo(line)
