"""``manylora build-kernels``: the CPU kernels before the first start, for this machine or for any.

Only what the help needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.server.cli.output import fail
from manylora.server.errors import ConfigError

if TYPE_CHECKING:
    from manylora.server.kernels.cpu.build import Variant


def build_kernels(
    *,
    target: Annotated[
        list[str],
        typer.Option(metavar="LEVEL", help="native, all, amx, avx512-bf16, avx2 or portable. Repeatable."),
    ] = ["native"],  # noqa: B006  (typer reads the default, nobody changes it)
) -> None:
    """Compile the CPU kernels into the installed package, where every start looks first.

    A server started where nothing was built compiles for its own CPU, once. An image that is to run on
    other machines, or without a compiler, wants --target all.
    """
    try:
        _build(target)
    except ConfigError as error:
        raise fail(error) from error


def _build(targets: Sequence[str]) -> None:
    from manylora.server.kernels.cpu.build import (  # noqa: PLC0415
        KernelBuildError,
        build,
        compilable_variants,
        file_name,
        usable_variants,
    )
    from manylora.server.kernels.cpu.library import AHEAD_OF_TIME  # noqa: PLC0415

    usable = usable_variants()
    current = {file_name(variant) for variant in compilable_variants()}
    try:
        for variant in _chosen(targets):
            start = time.monotonic()
            (AHEAD_OF_TIME / file_name(variant)).unlink(missing_ok=True)
            path = build(variant, AHEAD_OF_TIME)
            note = _loaded(path) if variant in usable else "not tried: this CPU lacks it"
            typer.echo(f"{variant.name}  {time.monotonic() - start:.1f} s  {path}  ({note})")
        for path in AHEAD_OF_TIME.iterdir():
            if path.name not in current:  # of other sources, or a lock
                path.unlink()
    except (KernelBuildError, ImportError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"the kernels can't be written: {error}") from error


def _chosen(targets: Sequence[str]) -> list[Variant]:
    from manylora.server.kernels.cpu.build import compilable_variants, usable_variants  # noqa: PLC0415

    levels = {variant.name: [variant] for variant in compilable_variants()}
    levels |= {"all": list(compilable_variants()), "native": [usable_variants()[0]]}
    unknown = [target for target in targets if target not in levels]
    if unknown:
        raise ConfigError(f"--target {unknown[0]}: on this machine it is one of {', '.join(levels)}")
    wanted = [variant for target in targets for variant in levels[target]]
    return list(dict.fromkeys(wanted))


def _loaded(path: Path) -> str:
    from manylora.server.kernels.cpu import abi  # noqa: PLC0415

    abi.load(path)
    return "loads"
