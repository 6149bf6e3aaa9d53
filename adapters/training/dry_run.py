"""Reading and showing a run's data: the first thing every run does, and all that ``--dry-run`` does."""

from __future__ import annotations

from rich.console import Console

from manylora.adapters.training.base import Base
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.prepare import DataConfig, Prepared, prepare
from manylora.adapters.training.data.summary import example, summary_table
from manylora.adapters.training.errors import TrainingConfigError


def prepare_data(config: TrainConfig, base: Base) -> Prepared:
    """The run's data, checked.

    Raises:
        DataError: with every fault, each with file and line.
        TrainingConfigError: max_length is beyond what the model can read.
    """
    if base.max_length is not None and config.max_length > base.max_length:
        raise TrainingConfigError(
            f"--max-length {config.max_length}: {base.name} reads at most {base.max_length} tokens"
        )
    wanted = DataConfig(
        config.task,
        config.train_path,
        config.eval_path,
        config.eval_split,
        config.max_length,
        config.seed,
    )
    return prepare(wanted, base.template)


def show_data(prepared: Prepared, console: Console) -> None:
    """The warnings and the table."""
    for warning in prepared.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(summary_table(prepared))


def show_example(prepared: Prepared, base: Base, console: Console) -> None:
    """One rendered training row with what is learned marked."""
    console.print(example(prepared, base.tokenizer), soft_wrap=True, highlight=False)
