"""The data of a run, read and checked as its configuration and its base ask for."""

from __future__ import annotations

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.prepare import DataConfig, Prepared, prepare
from manylora.adapters.training.data.template import EncodedTexts
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.model.base import Base


def prepare_data(config: TrainConfig, base: Base) -> Prepared:
    """Read the data files of ``config``, check them and encode their rows for ``base``.

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
        config.dataset,
        config.skip_bad_rows,
    )
    prepared = prepare(wanted, base.template)
    if config.task == "embedding":
        _check_counterexamples(config, prepared)
    return prepared


def _check_counterexamples(config: TrainConfig, prepared: Prepared) -> None:
    """The others of a batch are what a positive is told from, unless the row has negatives of its own.

    Raises:
        TrainingConfigError: no row has anything to be told from.
    """
    items = [item for item in prepared.train.sequences if isinstance(item, EncodedTexts)]
    if min(config.batch_size, len(items)) > 1 or any(i.score is not None or len(i.texts) > 2 for i in items):
        return
    raise TrainingConfigError(
        f"--task embedding learns from the other rows of a batch, and there is one row in each (--batch-size "
        f"{config.batch_size}, {len(items)} rows): give more of them, or rows with negatives"
    )
