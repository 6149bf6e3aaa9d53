"""One training run, as one frozen object: from flags, from a YAML file, or from a program.

Every option has one name everywhere: ``--learning-rate``, ``learning_rate``. What it means and why its
default is what it is stands beside it, and is what ``manylora train --help`` and docs/training-options.md
print.
"""

from __future__ import annotations

from pydantic import model_validator

from manylora.adapters.training.config_rules import faults_of
from manylora.adapters.training.options.train_options import TrainOptions


class TrainConfig(TrainOptions):
    """Everything that can be set about a run, checked together."""

    @model_validator(mode="after")
    def _check_together(self) -> TrainConfig:
        faults = faults_of(self)
        if faults:
            raise ValueError("\n".join(faults))
        return self
