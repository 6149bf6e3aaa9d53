"""The data of a run, read and checked as its configuration and its base ask for."""

from __future__ import annotations

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.prepare import DataConfig, Prepared, prepare
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
    return prepare(wanted, base.template)
