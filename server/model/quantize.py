"""A base in 4 or 8 bits through bitsandbytes: what is needed, which widths fit, how it is loaded."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from adapters.faults import some
from server.errors import ConfigError, ModelRefused
from server.kernels.reference.quantized import Int8Linear, Quantized

NONE, NF4, INT8 = "none", "nf4", "int8"

_BLOCK = 64  # weights that share one scale in 4 bits
_PACKED_OUTPUTS = 32  # that the kernels for AVX-512 BF16 take together
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
    if quantize != NF4:
        return
    from bitsandbytes.functional import has_avx512bf16  # noqa: PLC0415  (slow to import, and an extra)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    packed = device.type == "cpu" and has_avx512bf16()
    wrong = [
        f"{name} ({inputs} to {outputs})"
        for name, (inputs, outputs) in _widths(model).items()
        if inputs % _BLOCK or (packed and outputs % _PACKED_OUTPUTS)
    ]
    if wrong:
        multiple = f"and outputs in multiples of {_PACKED_OUTPUTS} " if packed else ""
        raise ModelRefused(
            f"--quantize nf4: bitsandbytes needs inputs in multiples of {_BLOCK} {multiple}on {device.type}, "
            f"which {some(wrong, len(wrong))} {'is' if len(wrong) == 1 else 'are'} not: use --quantize int8, "
            "which takes any width"
        )


def _widths(model: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the layers that transformers quantizes: all linear ones but the output head."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[name] = (module.weight.shape[0], module.weight.shape[1])
        elif type(module) is nn.Linear and module is not head:
            found[name] = (module.in_features, module.out_features)
    return found


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
    return isinstance(module, Int8Linear) or hasattr(getattr(module, "weight", None), "quant_state")


def weight_of(module: Any) -> torch.Tensor:
    """The weight [out, in] of a linear layer of any kind, dequantized if need be."""
    if is_quantized(module):
        return Quantized(module).weight()
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight
