"""The command line: everything that ``manylora --help`` lists.

Only what the help needs is imported here; torch and the server come with the command that runs them.
The options of ``serve`` are the fields of :class:`manylora.server.options.settings.Settings`, one flag each.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from manylora.adapters.errors import AdapterError
from manylora.adapters.options.command_line import given, with_options
from manylora.server.cli.admin.commands import adapters
from manylora.server.cli.build_kernels import build_kernels
from manylora.server.cli.compare.command import compare
from manylora.server.cli.estimate_serve import estimate_serve
from manylora.server.cli.jobs.commands import jobs
from manylora.server.cli.loadgen.command import bench
from manylora.server.cli.merge import compose, merge
from manylora.server.cli.on_ray import serve_on_ray
from manylora.server.cli.output import DEAD, fail
from manylora.server.cli.serve_help import ServeHelp
from manylora.server.cli.tenants.commands import tenants
from manylora.server.cli.tenants.keys import keys
from manylora.server.cli.train import estimate, train
from manylora.server.cli.vllm.command import vllm_serve
from manylora.server.cli.worker import worker
from manylora.server.errors import EngineDead, ServerError
from manylora.server.options.loading import load_settings
from manylora.server.options.settings import Settings

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
app.add_typer(tenants)
app.add_typer(keys)
app.add_typer(jobs)


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
    from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415

    try:
        settings = load_settings({"model": model} | ({} if data_dir is None else {"data_dir": data_dir}))
        directory = resolve_model(settings.model, settings.data_dir, progress_bars())
    except (ServerError, AdapterError) as error:
        raise fail(error) from error
    typer.echo(directory)


@with_options(Settings)
def serve(
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE")] = None, **options: Any
) -> None:
    """Serve a base model and its adapters through an OpenAI-compatible API."""
    debug = False
    try:
        settings = load_settings(given(options), config)
        debug = settings.log_level == "debug"
        if settings.ray:
            serve_on_ray(settings)
            return
        from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415
        from manylora.server.cli.serve import run_server  # noqa: PLC0415  (brings torch)

        run_server(settings, progress_bars())
    except EngineDead as error:
        raise fail(error, DEAD) from error
    except (ServerError, AdapterError) as error:
        if debug:
            traceback.print_exception(error)
        raise fail(error) from error


@with_options(Settings)
def batch(
    source: Annotated[Path, typer.Argument(help="Requests, as JSON lines.", metavar="IN", dir_okay=False)],
    target: Annotated[Path, typer.Argument(help="Takes the answers.", metavar="OUT", dir_okay=False)],
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE")] = None,
    **options: Any,
) -> None:
    """Answer a file of requests in this process. Run it again to go on where it was stopped."""
    try:
        settings = load_settings({**given(options), "api_key": [], "admin_api_key": []}, config)
        from manylora.server.cli.batch import run_batch  # noqa: PLC0415  (brings torch)

        completed, failed = run_batch(source, target, settings)
    except (ServerError, AdapterError, OSError) as error:
        raise fail(error) from error
    typer.echo(
        f"{completed} answered in {target}" + (f", {failed} failed in {target}.errors" if failed else "")
    )


app.command()(build_kernels)
app.command(cls=ServeHelp)(batch)
app.command()(compose)
app.command()(merge)
app.command()(compare)
app.command()(bench)
app.command(cls=ServeHelp)(serve)
_ANY_OPTIONS = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command("vllm-serve", context_settings=_ANY_OPTIONS)(vllm_serve)
app.command()(train)
app.command()(worker)
estimating = typer.Typer(
    invoke_without_command=True, help="Say how much memory training or serving would take."
)
estimating.callback()(estimate)
estimating.command("serve")(estimate_serve)
app.add_typer(estimating, name="estimate")


if __name__ == "__main__":
    main()
