"""Random decoders whose matrices are kept in few bits, and the same ones with the weights these stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from manylora.server.kernels.codes import OFFSET, PLACES, WIDE, Codes, Kind
from manylora.server.kernels.matrices import QuantizedMatrix
from manylora.server.kernels.reference.quantized import CodedLinear, Quantized
from manylora.server.kernels.weights import DecoderWeights, LayerWeights

# NF4's, about: nothing depends on them.
TABLE = torch.tensor(
    [-1, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1]
)


def random_codes(kind: Kind, outputs: int, inputs: int, group: int, seed: int = 0) -> Codes:
    """Codes of every value, with scales that vary from one group to the next."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-inputs // group)
    scales = 0.01 + torch.rand(outputs, groups, generator=generator)
    offsets = torch.randn(outputs, groups, generator=generator) if kind in OFFSET else None
    if kind is Kind.PLAIN:
        weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
        return Codes(kind, weight, scales[:, :0], inputs)
    if kind in WIDE:
        packed = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
        factor = 1 / 127 if kind is Kind.BYTES else 0.0
        return Codes(kind, packed, scales, group, factor=factor, offsets=offsets)
    packed = torch.randint(0, 256, (outputs, inputs // 2), generator=generator, dtype=torch.uint8)
    return Codes(kind, packed, scales, group, table=TABLE, offsets=offsets)


def quantize(kind: Kind, weight: torch.Tensor, group: int) -> Codes:
    """``weight`` [out, in] in few bits, the way that users' weights are."""
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -inputs % group)).view(outputs, -1, group)
    scales = padded.abs().amax(-1)
    relative = (padded / scales.clamp_min(1e-20)[..., None]).flatten(1)[:, :inputs]
    if kind is Kind.BYTES:
        return Codes(kind, (127 * relative).round().to(torch.int8), scales, group, factor=1 / 127)
    if kind in OFFSET:
        return _with_offsets(kind, padded, inputs)
    codes = (relative[..., None] - TABLE).abs().argmin(-1).to(torch.uint8)
    return Codes(kind, codes[:, ::2] << 4 | codes[:, 1::2], scales, group, table=TABLE)


def _with_offsets(kind: Kind, padded: torch.Tensor, inputs: int) -> Codes:
    """Groups [out, groups, group] from their least to their largest value."""
    least, most = padded.amin(-1), padded.amax(-1)
    scales = ((most - least) / 15).clamp_min(1e-6)
    codes = ((padded - least[..., None]) / scales[..., None]).round().flatten(1)[:, :inputs]
    group = padded.shape[-1]
    if kind is Kind.ADDED_BYTES:
        return Codes(kind, codes.to(torch.int8), scales, group, offsets=least)
    packed = codes.to(torch.uint8)
    offsets = least if kind is Kind.ADDED else (-least / scales).round()
    return Codes(kind, packed[:, ::2] << 4 | packed[:, 1::2], scales, group, table=PLACES, offsets=offsets)


def coded(weights: DecoderWeights, kind: Kind, group: int, values: Kind | None = None) -> DecoderWeights:
    """``weights`` with all matrices of the layers in few bits; of bytes an output has one scale.

    The value projections are of the kind ``values``.
    """
    q, kv = weights.n_heads * weights.head_dim, weights.n_kv_heads * weights.head_dim
    half = weights.intermediate

    def matrix(weight: torch.Tensor, bias: torch.Tensor | None, sizes: Sequence[int]) -> QuantizedMatrix:
        kinds = [kind, kind, kind if values is None else values][: len(sizes)]
        biases = [None] * len(sizes) if bias is None else bias.split(list(sizes))
        parts = [
            Quantized(CodedLinear(quantize(own, w, min(group, w.shape[1])), b, weight.dtype))
            for own, w, b in zip(kinds, weight.split(list(sizes)), biases, strict=True)
        ]
        return QuantizedMatrix(tuple(parts))

    def layer(own: LayerWeights) -> LayerWeights:
        hidden = weights.embedding.shape[1]
        sizes = {"qkv": (q, kv, kv), "o": (hidden,), "gate_up": (half, half), "down": (hidden,)}
        made = {
            name: matrix(getattr(own, name), getattr(own, f"{name}_bias"), parts)
            for name, parts in sizes.items()
        }
        none = {f"{name}_bias": None for name in sizes}
        return replace(own, **made, **none)  # type: ignore[arg-type]

    return replace(weights, layers=tuple(layer(own) for own in weights.layers))


def recoded(weights: DecoderWeights, change: Callable[[Codes], Codes]) -> DecoderWeights:
    """A coded decoder with other codes."""

    def matrix(own: QuantizedMatrix) -> QuantizedMatrix:
        made = []
        for part in own.parts:
            assert part.codes is not None
            made.append(Quantized(CodedLinear(change(part.codes), part.bias, torch.bfloat16)))
        return QuantizedMatrix(tuple(made))

    def layer(own: LayerWeights) -> LayerWeights:
        qkv, o, gate_up, down = (matrix(getattr(own, name)) for name in ("qkv", "o", "gate_up", "down"))
        return replace(own, qkv=qkv, o=o, gate_up=gate_up, down=down)

    return replace(weights, layers=tuple(layer(own) for own in weights.layers))


def dequantized(weights: DecoderWeights) -> DecoderWeights:
    """The decoder in bf16 that a coded one must equal."""

    def layer(own: LayerWeights) -> LayerWeights:
        made: dict[str, torch.Tensor | None] = {}
        for name in ("qkv", "o", "gate_up", "down"):
            matrix = getattr(own, name)
            made[name] = torch.cat([part.weight() for part in matrix.parts])
            made[f"{name}_bias"] = matrix.bias()
        return replace(own, **made)  # type: ignore[arg-type]

    return replace(weights, layers=tuple(layer(own) for own in weights.layers))
