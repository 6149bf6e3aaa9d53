"""A Hugging Face model around linear layers that hold codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from manylora.adapters.base_models.generation import Generation
from manylora.adapters.base_models.stored import fingerprint
from manylora.adapters.format.faults import shown, some
from manylora.server.errors import ModelRefused
from manylora.server.kernels.codes import Codes, Kind
from manylora.server.kernels.reference.quantized import CodedLinear
from manylora.server.model.decoders.coded_products import Products

_HARMLESS = ".rotary_emb.inv_freq"  # which old checkpoints store, and models compute


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The tensors of a checkpoint by the names of the model's state dict."""

    codes: Mapping[str, Codes]  # of matrices in few bits, without ".weight"
    plain: Mapping[str, torch.Tensor]  # everything else, in the dtype the model computes in


def assemble(
    name: str,
    skeleton: Any,
    config: Any,
    *,
    generation: Generation,
    weights: PackedWeights,
    dtype: torch.dtype,
) -> tuple[Any, str]:
    """The model with the ``weights``, and their fingerprint.

    Linear layers keep their codes. Embeddings and the output head are dequantized, once, to ``dtype``.

    Args:
        name: what messages call the checkpoint.
        skeleton: the model on the meta device.
        config: of transformers, without a quantization.
        generation: what the checkpoint says of generating.
        weights: all tensors that it has.
        dtype: the model computes in.

    Raises:
        ModelRefused: a tensor is missing, left over or of another shape.
    """
    _check_shapes(name, skeleton, weights)
    digest = _fingerprint(weights)
    layers, plain = _split(skeleton, weights, dtype)
    # transformers makes the model without memory for the layers that are replaced afterwards: what stands in
    # for each weight is one number, seen in all places.
    nothing = torch.zeros((), dtype=dtype)
    stand_ins = {
        f"{n}.weight": nothing.expand(layer.out_features, layer.in_features) for n, layer in layers.items()
    }
    biases = {f"{n}.bias": layer.bias for n, layer in layers.items() if layer.bias is not None}
    model, report = type(skeleton).from_pretrained(
        None,
        config=config,
        dtype=dtype,
        state_dict={**plain, **biases, **stand_ins},
        generation_config=generation.hf(),
        output_loading_info=True,
    )
    for what, key in (("are missing", "missing_keys"), ("are not the model's", "unexpected_keys")):
        names = sorted(n for n in report[key] if not n.endswith(_HARMLESS))
        if names:
            raise ModelRefused(f"{name}: {len(names)} weights {what} ({some(names, len(names))})")
    for module, layer in layers.items():
        model.set_submodule(module, layer)
    return model, digest


def _split(
    skeleton: Any, weights: PackedWeights, dtype: torch.dtype
) -> tuple[dict[str, CodedLinear], dict[str, torch.Tensor]]:
    """The layers that hold codes, and what transformers loads itself."""
    own = skeleton.state_dict().keys()
    # GPTQ's tools store biases for all layers, zeros for those that have none.
    plain = {n: t for n, t in weights.plain.items() if n in own or not _is_no_bias(n, t)}
    head = skeleton.get_output_embeddings()
    linears = {n for n, m in skeleton.named_modules() if type(m) is nn.Linear and m is not head}
    codes = dict(weights.codes)
    for name in codes.keys() - linears:
        plain[f"{name}.weight"] = codes.pop(name).weight(dtype)
    if codes:  # layers that are multiplied together are of one kind
        for name in linears - codes.keys():
            if (weight := plain.pop(f"{name}.weight", None)) is not None:
                codes[name] = Codes(Kind.PLAIN, weight, weight.new_empty(len(weight), 0), weight.shape[1])
    products = Products()
    layers = {}
    for name, own_codes in codes.items():
        bias = plain.pop(f"{name}.bias", None)
        layers[name] = CodedLinear(own_codes, bias, dtype, product=products.of(own_codes, bias, dtype))
    return layers, plain


def _is_no_bias(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith(".bias") and not tensor.any()


def _check_shapes(name: str, skeleton: Any, weights: PackedWeights) -> None:
    state = skeleton.state_dict()
    found = {f"{n}.weight": tuple(c.shape) for n, c in weights.codes.items()}
    found |= {n: tuple(t.shape) for n, t in weights.plain.items()}
    for tensor, shape in found.items():
        if tensor in state and tuple(state[tensor].shape) != shape:
            wanted = list(state[tensor].shape)
            raise ModelRefused(
                f"{name}: {shown(tensor)} has the shape {list(shape)}, the model's is {wanted}"
            )


def _fingerprint(weights: PackedWeights) -> str:
    """Of the codes as they are stored: they stand for the weights."""
    packed = {f"{n}.weight.{i}": t for n, c in weights.codes.items() for i, t in enumerate(c.tensors())}
    return fingerprint({**weights.plain, **packed})
