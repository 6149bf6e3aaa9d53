"""``manylora train``: its options are the fields of :class:`manylora.adapters.training.config.TrainConfig`.

Training never runs in a server's process; what it needs (torch, PEFT, TRL) is imported when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from manylora.adapters.errors import AdapterError
from manylora.adapters.options.command_line import given, with_options
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import load_config
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.options.types import RUN
from manylora.adapters.training.quiet import quiet_libraries
from manylora.server.cli.output import fail

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file with any of these options.", show_default=False,
                 rich_help_panel=RUN),
]  # fmt: skip
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check and show the data and one rendered row; stop.", rich_help_panel=RUN
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in output_dir.", rich_help_panel=RUN)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in output_dir.", rich_help_panel=RUN)
]


WithLauncher = Annotated[
    Literal["accelerate", "torchrun"] | None,
    typer.Option(
        "--launcher", help="Train in several processes; its own options follow after --.", rich_help_panel=RUN
    ),
]
Jobs = Annotated[
    list[Path] | None,
    typer.Option(
        "--jobs",
        metavar="FILE...",
        help="Train one adapter for each of these YAML files, all at once on one base.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Rest = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILES | -- LAUNCHER OPTIONS]", help="More files of --jobs, or as: -- --nproc-per-node 2"
    ),
]


@dataclass(frozen=True, slots=True)
class Mode:
    """How ``manylora train`` goes about a run: try it, resume it, overwrite it, in how many processes."""

    dry_run: bool = False
    resume: bool = False
    overwrite: bool = False
    launcher: Literal["accelerate", "torchrun"] | None = None
    launcher_options: Sequence[str] = ()


def run_train(flags: Mapping[str, Any], config: Path | None, mode: Mode) -> None:
    """Train one adapter as the flags and the file say.

    Raises:
        AdapterError: with one line for every fault.
    """
    from rich.console import Console  # noqa: PLC0415

    settings = load_config(flags, config)
    need_libraries()
    quiet_libraries()
    console = Console(stderr=True)
    if mode.dry_run:
        from manylora.adapters.training.data.summary import show_data, show_example  # noqa: PLC0415
        from manylora.adapters.training.session.own_template import base_of  # noqa: PLC0415
        from manylora.adapters.training.session.prepare_data import prepare_data  # noqa: PLC0415

        base = base_of(settings)
        prepared = prepare_data(settings, base)
        show_data(prepared, console)
        show_example(prepared, base.tokenizer, Console())
        return
    if mode.launcher is not None:
        from manylora.adapters.training.run.launch import launch  # noqa: PLC0415

        wanted = [f"--{name}" for name in ("resume", "overwrite") if getattr(mode, name)]
        launch(settings, mode.launcher, mode.launcher_options, wanted)
        return
    if mode.launcher_options:
        raise TrainingConfigError(f"{mode.launcher_options[0]!r}: only --launcher takes options of its own")
    from manylora.adapters.training.run.train import train  # noqa: PLC0415  (brings torch, PEFT and TRL)

    train(settings, resume=mode.resume, overwrite=mode.overwrite, console=console)


def run_jobs(files: Sequence[Path], flags: Mapping[str, Any], config: Path | None, mode: Mode) -> None:
    """Train one adapter for each file; flags hold for all of them.

    Raises:
        AdapterError: with one line for every fault.
    """
    unfit = {
        "--config": config is not None,
        "--dry-run": mode.dry_run,
        "--launcher": mode.launcher is not None,
    }
    if any(unfit.values()):
        raise TrainingConfigError(
            f"--jobs does not go with {', '.join(name for name in unfit if unfit[name])}"
        )
    settings = [load_config(flags, file) for file in files]
    need_libraries()
    quiet_libraries()
    from rich.console import Console  # noqa: PLC0415

    from manylora.adapters.training.jobs.train_jobs import train_jobs  # noqa: PLC0415

    train_jobs(settings, resume=mode.resume, overwrite=mode.overwrite, console=Console(stderr=True))


def need_libraries() -> None:
    """Check that the trainer's libraries, which are an extra, are installed.

    Raises:
        TrainingConfigError: one is missing; says how to install them.
    """
    missing = [name for name in ("peft", "trl", "datasets", "matplotlib") if find_spec(name) is None]
    if missing:
        raise TrainingConfigError(
            f"training needs {', '.join(missing)}: install them with pip install 'manylora[train]'"
        )


@with_options(TrainConfig)
def train(  # noqa: PLR0917 - typer makes a flag of each
    config: ConfigFile = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    launcher: WithLauncher = None,
    jobs: Jobs = None,
    rest: Rest = None,
    **options: Any,
) -> None:
    """Train a LoRA adapter from rows of text, conversations or preferences.

    Every option is also a key of the YAML file (--lora-r: lora_r). Flags beat the file.
    """
    try:
        if jobs:
            run_jobs(
                [*jobs, *map(Path, rest or ())],
                given(options),
                config,
                Mode(dry_run, resume, overwrite, launcher),
            )
        else:
            run_train(given(options), config, Mode(dry_run, resume, overwrite, launcher, rest or ()))
    except AdapterError as error:
        raise fail(error) from error


def estimate(  # noqa: PLR0917 - typer makes a flag of each
    context: typer.Context,
    base_model: Annotated[
        str, typer.Option(metavar="MODEL", help="smollm2-135m, a Hub id, or a directory with a config.json.")
    ] = "smollm2-135m",
    method: Annotated[
        Literal["full", "lora", "lora-8bit", "qlora"] | None,
        typer.Option(help="Only this one. Default: all side by side.", show_default=False),
    ] = None,
    r: Annotated[int, typer.Option("--r", "--lora-r", min=1, max=1024, help="Rank.")] = 16,
    target: Annotated[
        Literal["all-linear", "attention", "mlp"], typer.Option(help="Modules that the adapter changes.")
    ] = "all-linear",
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in one forward and backward.")] = 8,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Compute activations again.")] = False,
    texts: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="With task embedding: texts of a row, 2 for a pair and one more for each negative. Default: "
            "rows are sequences to learn.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say how much memory training would take, without loading any weights; `estimate serve`: serving."""
    if context.invoked_subcommand is not None:
        return
    try:
        need_libraries()
        from manylora.adapters.training.estimate.memory import METHODS, Plan  # noqa: PLC0415
        from manylora.adapters.training.estimate.tables import estimate_tables  # noqa: PLC0415
        from manylora.adapters.training.model.base import find_shape  # noqa: PLC0415

        checkpointing = gradient_checkpointing
        plan = Plan(r, target, max_length, batch_size, gradient_checkpointing=checkpointing, texts=texts)
        methods = METHODS if method is None else (method,)
        if texts is not None:  # an adapter is what embeds
            methods = tuple(each for each in methods if each != "full")
        if not methods:
            raise TrainingConfigError("--texts: method full is for task sft")
        tables = estimate_tables(find_shape(base_model), plan, methods)
    except AdapterError as error:
        raise fail(error) from error
    from rich.console import Console  # noqa: PLC0415

    Console().print(tables)
