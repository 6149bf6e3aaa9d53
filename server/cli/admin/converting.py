"""``manylora adapters convert``: from the files of one tool to those of another, without a server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.adapters.errors import AdapterError, ArtifactError
from manylora.server.cli.output import REFUSED, fail
from manylora.server.cli.plain_text import plain
from manylora.server.errors import ConfigError, ServerError
from manylora.server.options.loading import load_settings

if TYPE_CHECKING:  # brings torch, which the help does not need
    from manylora.adapters.format.base import BaseModel
    from manylora.adapters.format.foreign.change import Conversion

_FORMS = ("peft", "mlx", "gguf")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A directory, or a .gguf or .safetensors file.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A directory, or the .gguf file.", show_default=False)
    ],
    *,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FORM", help="peft, mlx or gguf; by default as OUT is named."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The base: a directory or a Hub id. Its config is enough."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Where models are kept.", show_default=False),
    ] = None,
) -> None:
    """Convert an adapter of PEFT, MLX-LM, llama.cpp and others, to PEFT's form or from it.

    OUT is written whole or not at all, and must not exist. What a form can't hold is refused by name.
    """
    try:
        form = _form(to, out)
        conversion = _convert(source, out, form, model, data_dir)
    except ArtifactError as error:
        raise fail("\n".join(error.faults), REFUSED) from None
    except (ServerError, AdapterError) as error:
        raise fail(error) from None
    rules = "" if conversion is None else f" ({', '.join(sorted(conversion.rules))})"
    read = "PEFT" if conversion is None else conversion.format
    typer.echo(plain(f"{out}: {form}, from {read}{rules}"))


def _form(to: str | None, out: Path) -> str:
    form = to if to is not None else "gguf" if out.name.endswith(".gguf") else "peft"
    if form not in _FORMS:
        raise ConfigError(f"--to {form}: must be {', '.join(_FORMS)}")
    return form


def base_of(model: str | None, data_dir: Path | None) -> tuple[BaseModel, int]:
    """The base by its config, and how many numbers it consists of.

    Raises:
        BaseModelError: there is no such model.
    """
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  (brings torch)

    from manylora.adapters.base_models.outline import OutlinedModel, resolve_outline  # noqa: PLC0415

    disable_progress_bar()
    given = {"model": model, "data_dir": data_dir}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    found = OutlinedModel(resolve_outline(settings.model, settings.data_dir), settings.model)
    return found.base, found.parameters


def _convert(
    source: Path, out: Path, form: str, model: str | None, data_dir: Path | None
) -> Conversion | None:
    from manylora.adapters.format.artifact import Limits, read_artifact  # noqa: PLC0415  (brings torch)
    from manylora.adapters.format.config.reader import MAX_RANK  # noqa: PLC0415
    from manylora.adapters.format.foreign.reading import in_pefts_form  # noqa: PLC0415
    from manylora.adapters.format.foreign.writing import write_gguf, write_mlx  # noqa: PLC0415
    from manylora.adapters.merge.directory import check_absent, new_directory  # noqa: PLC0415
    from manylora.adapters.store.copying import copy_artifact  # noqa: PLC0415

    check_absent(out)
    source = source.expanduser()
    if not source.exists():
        raise ConfigError(f"{source}: no such file or directory")
    base, _ = base_of(model, data_dir)
    limits = Limits(MAX_RANK, 1 << 40)
    with in_pefts_form(source, base, limits) as (directory, conversion):
        artifact = read_artifact(directory, base, limits)
        if form == "gguf":
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
                draft = Path(temporary) / out.name
                write_gguf(artifact, draft, base)
                check_absent(out)
                draft.rename(out)
            return conversion
        with new_directory(out) as place:
            if form == "mlx":
                write_mlx(artifact, place, base)
            else:
                copy_artifact(directory, place)
    return conversion
