"""The command line: everything that ``manylora --help`` lists.

Only what the help needs is imported here; torch and the server come with the command that runs them.
The options of ``serve`` are the fields of :class:`manylora.server.options.settings.Settings`, one flag each.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.adapters.errors import AdapterError
from manylora.server.cli.admin.commands import adapters
from manylora.server.cli.compare.command import compare
from manylora.server.cli.help import ServeHelp
from manylora.server.cli.kernels import build_kernels
from manylora.server.cli.loadgen.command import bench
from manylora.server.cli.merge import compose, merge
from manylora.server.cli.train import estimate, train
from manylora.server.errors import ServerError
from manylora.server.options.loading import load_settings
from manylora.server.options.settings import Flag, Settings, flag_of

if TYPE_CHECKING:
    from rich.progress import Progress

USAGE = 2  # exit status when what the user gave can't be used

app = typer.Typer(
    name="manylora",
    help="One base model, hundreds of LoRA adapters and mixes of them, in one batch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(adapters)


def main() -> None:
    """Entry point of the ``manylora`` command."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415

        typer.echo(f"manylora {version('manylora')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One base model, hundreds of LoRA adapters and mixes of them, in one batch."""


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="smollm2-135m or a Hub id.", metavar="MODEL")],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Where to keep it.", show_default=False)
    ] = None,
) -> None:
    """Fetch a base model, so that serving it needs no network; print its directory."""
    from manylora.adapters.base_models.catalog import resolve_model  # noqa: PLC0415

    try:
        settings = load_settings({"model": model} | ({} if data_dir is None else {"data_dir": data_dir}))
        directory = resolve_model(settings.model, settings.data_dir, progress_bars())
    except (ServerError, AdapterError) as error:
        raise fail(error) from error
    typer.echo(directory)


def serve(**options: Any) -> None:
    """Serve a base model and its adapters through an OpenAI-compatible API."""
    config: Path | None = options.pop("config", None)
    flags = {name: value for name, value in options.items() if value is not None and value != []}
    debug = False
    try:
        settings = load_settings(flags, config)
        debug = settings.log_level == "debug"
        from manylora.server.cli.serve import run_server  # noqa: PLC0415  (brings torch)

        run_server(settings, progress_bars())
    except (ServerError, AdapterError) as error:
        if debug:
            traceback.print_exception(error)
        raise fail(error) from error


def fail(error: Exception) -> typer.Exit:
    """Print ``error`` as the last word on stderr; raise what is returned to leave with status 2."""
    for line in str(error).splitlines():
        typer.echo(f"manylora: {line}", err=True)
    return typer.Exit(USAGE)


def progress_bars() -> Progress:
    """Bars on stderr for downloads and conversions; plain lines where stderr is no terminal."""
    from rich import progress  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _serve_parameters() -> Mapping[str, inspect.Parameter]:
    """The parameters of ``serve`` as typer reads them: one per field of ``Settings``, and ``--config``.

    All values stay text, absent ones ``None``: ``Settings`` alone decides what is valid, whichever of
    flag, environment or file a value comes from.
    """
    parameters = {name: _parameter(name, flag_of(field)) for name, field in Settings.model_fields.items()}
    option = typer.Option("--config", metavar="FILE")
    parameters["config"] = inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
    )
    return parameters


def _parameter(name: str, flag: Flag) -> inspect.Parameter:
    spelled = "--" + name.replace("_", "-")
    kind: Any
    if flag.off is not None:
        spelled, kind = f"{spelled}/{flag.off}", bool | None
    else:
        kind = list[str] | None if flag.repeatable else str | None
    option = typer.Option(spelled, metavar=flag.metavar)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give ``function(**options)`` the signature that typer builds the command from."""
    parameters = _serve_parameters()
    function.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    function.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return function


app.command()(build_kernels)
app.command()(compose)
app.command()(merge)
app.command()(compare)
app.command()(bench)
app.command(cls=ServeHelp)(_with_options(serve))
app.command()(train)
app.command()(estimate)


if __name__ == "__main__":
    main()
