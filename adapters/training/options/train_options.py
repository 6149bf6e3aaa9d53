"""Every option of a training run in one class, before it is checked that they go together."""

from __future__ import annotations

from typing import Literal

from manylora.adapters.training.methods import FULL, LORA, rate_of
from manylora.adapters.training.options.base import BaseOptions
from manylora.adapters.training.options.data import DataOptions
from manylora.adapters.training.options.embedding import EmbeddingOptions
from manylora.adapters.training.options.lora import LoraOptions
from manylora.adapters.training.options.output import OutputOptions
from manylora.adapters.training.options.steps import StepOptions

_TASK_TYPES = {
    "sft": "CAUSAL_LM",
    "dpo": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "embedding": "FEATURE_EXTRACTION",
}


class TrainOptions(OutputOptions, LoraOptions, EmbeddingOptions, StepOptions, DataOptions, BaseOptions):
    """Everything that can be set about a run (pydantic orders the options from the last class on)."""

    @property
    def is_full(self) -> bool:
        """Whether a whole model is trained rather than an adapter."""
        return self.method == FULL

    @property
    def is_lora(self) -> bool:
        """Whether the adapter is a LoRA."""
        return self.method == LORA

    @property
    def task_type(self) -> str:
        """PEFT's name of the task."""
        return _TASK_TYPES[self.task]

    @property
    def product(self) -> Literal["adapter", "model"]:
        """What the run makes, and what its directory is called."""
        return "model" if self.is_full else "adapter"

    @property
    def rate(self) -> float:
        """learning_rate with its default filled in."""
        if self.learning_rate is not None:
            return self.learning_rate
        return rate_of(self.method)

    @property
    def alpha(self) -> float:
        """lora_alpha with its default filled in."""
        return 2.0 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    @property
    def adapter_name(self) -> str:
        """The name in the card and on a server."""
        return self.output_dir.name if self.name is None else self.name

    @property
    def converted(self) -> bool:
        """Whether the init changes the base, so that the adapter has to be converted at the end."""
        return self.init == "olora" or self.init.startswith("pissa")
