"""The adapter on the base of a run, and how it begins."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    EvaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor
from transformers import set_seed

from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.methods import LORA
from manylora.adapters.training.model.kinds import kind_config
from manylora.adapters.training.model.pairs import lora_pairs
from manylora.adapters.training.model.targets import has_conv1d, targets
from manylora.adapters.training.model.virtual_tokens import begin_near_the_base

EVA_REDISTRIBUTION = 2.0  # with EVA a layer gets at most this many times the rank

InitialWeights = dict[str, tuple[Tensor, Tensor]]  # module -> (A [r, in], B [out, r]) before training


def add_adapter(model: Any, config: TrainConfig) -> tuple[Any, InitialWeights]:
    """Put a fresh adapter on ``model``, whose weights olora and pissa change.

    Returns:
        The PEFT model, trainable in fp32; and A and B as they are now where the init changed the base.
    """
    set_seed(config.seed)
    before = model.dtype
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lora with eva initialization")
        try:
            peft = get_peft_model(model, adapter_config(model, config))
        except (TypeError, ValueError) as error:  # of a kind, about the widths of this model
            if config.is_lora:
                raise
            raise TrainingConfigError(f"--method {config.method}: {error}") from error
    if config.method == "prefix_tuning":
        begin_near_the_base(peft)
    trainable_in_fp32(peft)
    _cast_around_full_modules(peft, before, config)
    if not config.converted:
        return peft, {}
    return peft, {
        key: (pair.a.detach().cpu().clone(), pair.b.detach().cpu().clone()) for key, pair in lora_pairs(peft)
    }


def load_adapter(model: Any, directory: Path, config: TrainConfig) -> Any:
    """Put the adapter in ``directory`` on ``model`` to train it further, in fp32.

    Raises:
        TrainingConfigError: it does not fit this base.
    """
    before = model.dtype
    try:
        own = PeftConfig.from_pretrained(str(directory))
        own.lora_dropout = config.lora_dropout
        own.inference_mode = False
        peft = PeftModel.from_pretrained(model, str(directory), is_trainable=True, config=own)
    except Exception as error:  # the libraries raise whatever their parts do: there is no common base
        raise TrainingConfigError(
            f"--init-adapter {directory}: can't be put on this base: {error}"
        ) from error
    saved = load_file(directory / WEIGHTS_NAME).keys()
    known = get_peft_model_state_dict(peft, save_embedding_layers=False).keys()
    if saved != known:
        name = min(saved ^ known)
        which = "has no" if name in known else "has a"
        raise TrainingConfigError(
            f"--init-adapter {directory}: {which} tensor {name}, other than this base and its config ask for"
        )
    trainable_in_fp32(peft)
    _cast_around_full_modules(peft, before, config)
    return peft


def _cast_around_full_modules(model: Any, dtype: torch.dtype, config: TrainConfig) -> None:
    """Let modules that are trained in full take and give the base's ``dtype`` though their weights are fp32.

    The output head, which is no part of the base's body, gives fp32. Where texts are embedded, the body is
    all there is.
    """

    def take(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(module.weight.dtype) if x.is_floating_point() else x for x in inputs)

    def give(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    for name, wrapper in model.base_model.model.named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            module = wrapper.modules_to_save["default"]
            module.register_forward_pre_hook(take)
            if "." in name or config.task == "embedding":
                module.register_forward_hook(give)


def trainable_in_fp32(model: Any) -> None:
    """Small updates would be lost in the rounding of 16-bit weights."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapter_config(model: Any, config: TrainConfig) -> PeftConfig:
    """PEFT's configuration of the adapter that the method makes."""
    return lora_config(model, config) if config.method == LORA else kind_config(model, config)


def lora_config(model: Any, config: TrainConfig) -> LoraConfig:
    """PEFT's configuration of a LoRA."""
    init: bool | str = True if config.init == "default" else config.init
    with warnings.catch_warnings():
        # PEFT can't convert this combination; manylora.adapters.training.run.export can.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern")
        return _lora_config(model, config, init)


def _lora_config(model: Any, config: TrainConfig, init: bool | str) -> LoraConfig:
    return LoraConfig(
        task_type=config.task_type,
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
