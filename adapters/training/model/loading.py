"""Loading the models of a run: the frozen base, and what the run left on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    set_seed,
)

from manylora.adapters.base_models.widths import unfit_for_nf4
from manylora.adapters.errors import BaseModelError
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.model.base import Base, pick_device, pick_dtype


@dataclass(frozen=True)
class Finished:
    """The result of a run, read back, and the base that it is compared with."""

    model: Any
    original: Any = None  # of a model that was trained in full; an adapter can be switched off

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The base alone, within the block."""
        if self.original is not None:
            yield self.original
            return
        with self.model.disable_adapter():
            yield self.model


@dataclass(frozen=True)
class BaseLoader:
    """Loads the run's base model, as often as it is needed, always the same."""

    config: TrainConfig
    base: Base
    classes: tuple[str, ...]  # of a classification, in the head's order

    @property
    def device(self) -> torch.device:
        return pick_device(self.config.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base while training: all but plain LoRA need fp32."""
        needs_fp32 = self.config.converted or not self.config.is_lora
        return pick_dtype(self.config.dtype, self.device, needs_fp32=needs_fp32)

    @property
    def saved_dtype(self) -> torch.dtype:
        """The dtype of what is saved (of an adapter, A and B): that of the base when it is served."""
        return pick_dtype(self.config.dtype, self.device, needs_fp32=False)

    def load(self) -> Any:
        """The base, frozen, in evaluation mode, on the device.

        Raises:
            BaseModelError: transformers can't load it.
            TrainingConfigError: it can't be quantized as asked.
        """
        config = deepcopy(self.base.config)
        options: dict[str, Any] = {"config": config, "dtype": self.dtype}
        options["generation_config"] = self.base.generation.hf()
        if self.config.quantization != "none":
            options["quantization_config"] = self._quantization()
            options["device_map"] = {"": self.device}
        kind: Any = AutoModel if self.config.task == "embedding" else AutoModelForCausalLM
        if self.classes:
            kind = AutoModelForSequenceClassification
            names = dict(enumerate(self.classes))
            config.id2label = names  # and with it num_labels
            config.label2id = {name: index for index, name in names.items()}
        set_seed(self.config.seed)  # a classification head starts random
        try:
            model = kind.from_pretrained(self.base.directory, **options)
        except Exception as error:  # the libraries raise whatever their parts do: there is no common base
            raise BaseModelError(f"{self.base.name} can't be loaded: {error}") from error
        if self.classes:
            model.config.pad_token_id = self.base.pad_id  # by which it finds the last token of a row
            model.config.problem_type = "single_label_classification"
        if self.config.quantization == "none":
            model = model.to(self.device)
        _keep_layout(model)
        return model.eval().requires_grad_(False)

    def load_finished(self, directory: Path) -> Finished:
        """What a run left in ``directory``, as plain PEFT or transformers load it, beside a pristine base."""
        if self.config.is_full:
            model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=self.dtype)
            return Finished(model.to(self.device).eval(), self.load())
        return Finished(PeftModel.from_pretrained(self.load(), str(directory)).eval())

    def _quantization(self) -> BitsAndBytesConfig:
        if self.config.quantization == "int8":
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast
            return BitsAndBytesConfig(load_in_8bit=True)
        fault = unfit_for_nf4(self.base.config, self.device)
        if fault is not None:
            raise TrainingConfigError(f"--quantization nf4: {fault}: use int8 or none")
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
        )


def _keep_layout(model: Any) -> None:
    """Keep bitsandbytes from laying out 4-bit weights anew on the first forward pass without gradients.

    Of that layout (of CPUs with AVX-512 BF16) it computes no gradient of the input: what is below a layer
    would silently learn nothing from it, and dequantizing, as DoRA does, would give other weights.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def meta_model(config: Any) -> Any:
    """The module tree of a causal LM with no memory behind its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
