"""A base in 4 or 8 bits through bitsandbytes: what is needed, which widths fit, how it is loaded."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.widths import unfit_for_nf4
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.reference.coded.linear import CodedLinear
from manylora.server.kernels.reference.quantized import Int8Linear, Quantized

NONE, NF4, INT8 = "none", "nf4", "int8"

# Loggers that report an optional download which is not wanted, and at every step what is known.
_CHATTY = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")


def check_available(quantize: str) -> None:
    """Refuse early what needs a library that is not installed.

    Raises:
        ConfigError: naming the extra that has it.
    """
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--quantize {quantize} needs {' and '.join(missing)}: pip install 'manylora[quantize]'"
        )
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def quantization_config(quantize: str) -> BitsAndBytesConfig:
    """transformers' settings: NF4 with double quantization and bf16 compute, or LLM.int8()."""
    if quantize == INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def check_widths(config: Any, quantize: str, device: torch.device) -> None:
    """Refuse a model with a layer that bitsandbytes can't compute in ``quantize`` on ``device``.

    Only the layers' sizes are looked at: no weights are read.

    Raises:
        ModelRefused: naming the layers.
    """
    fault = unfit_for_nf4(config, device) if quantize == NF4 else None
    if fault is not None:
        raise ModelRefused(f"--quantize nf4: {fault}: use --quantize int8, which takes any width")


def separate_rows(model: nn.Module) -> None:
    """Replace the 8-bit layers of ``model``, in which rows of a batch affect each other, by ones of ours."""
    import bitsandbytes as bnb  # noqa: PLC0415  (slow to import, and an extra)

    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear8bitLt):
            bias = None if module.bias is None else module.bias.detach()
            weight = module.weight
            layer = Int8Linear(weight.data, weight.SCB.float().view(-1), bias, module.state.threshold)
            model.set_submodule(name, layer)


@contextmanager
def unrounded_activations(model: nn.Module) -> Iterator[None]:
    """Within the block 8-bit layers multiply by the weights they stand for, without rounding their inputs.

    Two right decoders can't be compared otherwise: a difference in the last bit turns into a whole step of
    8 bits here and there, and after thirty layers the logits were 0.36 (float32) to 0.97 (bf16) apart.
    """
    layers = {module: module.threshold for module in model.modules() if isinstance(module, Int8Linear)}
    try:
        for layer in layers:
            layer.threshold = 0.0  # every value counts as an outlier
        yield
    finally:
        for layer, threshold in layers.items():
            layer.threshold = threshold


def is_quantized(module: nn.Module) -> bool:
    """Whether a linear layer holds codes instead of its weight."""
    return isinstance(module, Int8Linear | CodedLinear) or hasattr(
        getattr(module, "weight", None), "quant_state"
    )


def weight_of(module: Any) -> torch.Tensor:
    """The weight [out, in] of a linear layer of any kind, dequantized if need be."""
    if is_quantized(module):
        return Quantized(module).weight()
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight
