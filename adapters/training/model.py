"""The model of a run: the frozen base with a fresh adapter on it, and the base alone."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.widths import unfit_for_nf4
from manylora.adapters.errors import BaseModelError
from manylora.adapters.training.base import Base, pick_device, pick_dtype
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError

_ATTENTION = re.compile(r"(self_|cross_|encoder_)?(attn|attention)")

EVA_REDISTRIBUTION = 2.0  # with EVA a layer gets at most this many times the rank


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


InitialWeights = dict[str, tuple[Tensor, Tensor]]  # module -> (A [r, in], B [out, r]) before training


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
        """Of the base while training; converted inits and full fine-tuning need fp32."""
        needs_fp32 = self.config.converted or self.config.is_full
        return pick_dtype(self.config.dtype, self.device, needs_fp32=needs_fp32)

    @property
    def saved_dtype(self) -> torch.dtype:
        """Of what is saved (of an adapter, A and B): that of the base when it is served."""
        return pick_dtype(self.config.dtype, self.device, needs_fp32=False)

    def load(self) -> Any:
        """The base, frozen, in evaluation mode, on the device.

        Raises:
            BaseModelError: transformers can't load it.
            TrainingConfigError: it can't be quantized as asked.
        """
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.config.quantization != "none":
            options["quantization_config"] = self._quantization()
            options["device_map"] = {"": self.device}
        kind: Any = AutoModelForCausalLM
        if self.classes:
            kind = AutoModelForSequenceClassification
            names = dict(enumerate(self.classes))
            options |= {"num_labels": len(names), "id2label": names}
            options["label2id"] = {name: index for index, name in names.items()}
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


def meta_model(config: Any) -> Any:
    """The module tree of a causal LM with no memory behind its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def add_adapter(model: Any, config: TrainConfig) -> tuple[Any, InitialWeights]:
    """Put a fresh adapter on ``model``, whose weights olora and pissa change.

    Returns:
        The PEFT model, trainable in fp32; and A and B as they are now where the init changed the base.
    """
    set_seed(config.seed)
    before = model.dtype
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lora with eva initialization")
        peft = get_peft_model(model, lora_config(model, config))
    trainable_in_fp32(peft)
    _cast_around_full_modules(peft, before)
    initial = {key: (a.detach().cpu().clone(), b.detach().cpu().clone()) for key, a, b, _ in lora_pairs(peft)}
    return peft, initial if config.converted else {}


def _cast_around_full_modules(model: Any, dtype: torch.dtype) -> None:
    """Let modules that are trained in full take and give the base's ``dtype`` though their weights are fp32.

    The output head, which is no part of the base's body, gives fp32.
    """

    def take(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(module.weight.dtype) if x.is_floating_point() else x for x in inputs)

    def give(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    for name, wrapper in model.base_model.model.named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            module = wrapper.modules_to_save["default"]
            module.register_forward_pre_hook(take)
            if "." in name:
                module.register_forward_hook(give)


def trainable_in_fp32(model: Any) -> None:
    """Small updates would be lost in the rounding of 16-bit weights."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_pairs(model: Any) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """(module of the base, A [r, in], B [out, r], scaling) of every LoRA linear layer."""
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            yield name, a, b, float(module.scaling["default"])


def lora_config(model: Any, config: TrainConfig) -> LoraConfig:
    """PEFT's configuration of the adapter."""
    init: bool | str = True if config.init == "default" else config.init
    with warnings.catch_warnings():
        # PEFT can't convert this combination; manylora.adapters.training.export can.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern")
        return _lora_config(model, config, init)


def _lora_config(model: Any, config: TrainConfig, init: bool | str) -> LoraConfig:
    return LoraConfig(
        task_type="SEQ_CLS" if config.task == "classification" else "CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets(model, config.target_modules),
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern={key: int(v) if v.is_integer() else v for key, v in config.alpha_pattern.items()},
        fan_in_fan_out=has_conv1d(model),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=init,
        eva_config=EvaConfig(rho=EVA_REDISTRIBUTION) if init == "eva" else None,
        modules_to_save=list(config.modules_to_save) or None,
    )


def targets(model: Any, wanted: tuple[str, ...]) -> str | list[str]:
    """What PEFT is given for ``target_modules``.

    Raises:
        TrainingConfigError: a name fits no module, or the model has no layers of the wanted kind.
    """
    if wanted == ("all-linear",):
        return "all-linear"
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    if wanted[0] in ("attention", "mlp"):
        found = block_layers(linear, attention=wanted[0] == "attention")
        if not found:
            raise TrainingConfigError(
                f"--target-modules {wanted[0]}: this model has no such layers; name them"
            )
        return found
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise TrainingConfigError(
                f"--target-modules {target}: no linear layer is called that; there are {ends}"
            )
    return list(wanted)


def block_layers(names: list[str], *, attention: bool) -> list[str]:
    """The names, from their block on, of the linear layers inside or outside of attention."""
    found = set()
    for name in names:
        before, _, inside = _last_number(name)
        if before and any(_ATTENTION.fullmatch(part) for part in inside.split(".")) == attention:
            found.add(inside)
    return sorted(found)


def _last_number(name: str) -> tuple[str, str, str]:
    """``model.layers.3.mlp.up_proj`` -> (``model.layers``, ``3``, ``mlp.up_proj``); empty before if none."""
    match = re.fullmatch(r"(.*)\.(\d+)\.(.*)", name)
    return (match[1], match[2], match[3]) if match else ("", "", name)


def has_conv1d(model: Any) -> bool:
    """Whether linear layers are GPT-2's Conv1D, whose weights are [in, out]."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)
