"""The companion trainer: from a JSON Lines file to an adapter that is served exactly as it was trained.

    from manylora.adapters.training import TrainConfig, train

    result = train(TrainConfig(train_path="data.jsonl", output_dir="out/support"))
    print(result.adapter, result.baseline.adapter)

It needs the ``train`` extra and no server. :mod:`manylora.adapters.training.config` has the options,
docs/training.md tells how it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manylora.adapters.training.config import TrainConfig

if TYPE_CHECKING:
    from manylora.adapters.training.run.train import TrainingResult

__all__ = ["TrainConfig", "train"]


def train(config: TrainConfig, **options: Any) -> TrainingResult | None:
    """Train one adapter: see :func:`manylora.adapters.training.run.train.train`."""
    from manylora.adapters.training.run.train import train as run  # noqa: PLC0415  (brings torch)

    return run(config, **options)
