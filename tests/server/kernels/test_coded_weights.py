"""Weights in few bits on every level: what they unpack to, and steps as with the dequantized weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from manylora.server.kernels.codes import Codes, Kind
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant
from manylora.server.kernels.cpu.huge_pages import Arena
from manylora.server.kernels.cpu.pack import pack
from manylora.server.kernels.cpu.packed_codes import coded_bytes, pack_codes, unfit
from manylora.server.kernels.matrices import QuantizedMatrix
from manylora.server.kernels.reference.quantized import CodedLinear, Quantized
from manylora.server.kernels.weights import DecoderWeights
from tests.support.coded import coded, dequantized, random_codes, recoded
from tests.support.kernel_cases import (
    VECTORS,
    Batcher,
    Pages,
    Shape,
    library_of,
    random_decoder,
)

BLOCKS = 96
ALONE = (Kind.NIBBLES, Kind.BYTES, Kind.SHIFTED, Kind.ADDED, Kind.ADDED_BYTES)
# The kind and the group of each; of the last the value projections are of another kind.
KINDS: dict[str, tuple[Any, ...]] = {
    "nibbles": (Kind.NIBBLES, 64),
    "bytes": (Kind.BYTES, 1 << 20),
    "shifted": (Kind.SHIFTED, 32),
    "several": (Kind.ADDED, 32, Kind.ADDED_BYTES),
}
SHAPES = {
    "biases": Shape(bias=True, qk_norm=True),
    "odd widths": Shape(heads=9, kv_heads=3, head_dim=48, hidden=80, intermediate=336, vocab=61),
    "blocks beyond one head": Shape(heads=6, kv_heads=1, head_dim=16, hidden=304, intermediate=48),
}


def signed(scales: torch.Tensor) -> torch.Tensor:
    """Every third one below zero, as some formats have them."""
    return torch.where(torch.arange(scales.numel()).view(scales.shape) % 3 == 0, -scales, scales)


def unpacked(variant: Variant, parts: list[Codes], interleaved: bool) -> torch.Tensor:
    """What the kernels make of codes: packed bf16."""
    native = library_of(variant).native
    packed = pack_codes(native, parts, interleaved, Arena(coded_bytes(parts)))
    outputs, inputs = sum(part.shape[0] for part in parts), parts[0].shape[1]
    found = torch.full(((outputs + -outputs % 32) * inputs,), torch.nan, dtype=torch.bfloat16)
    native.manylora_unpack(packed.struct, found.data_ptr(), outputs, inputs)
    return found


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("outputs", "inputs", "group"),
    [((32,), 64, 64), ((33, 7), 144, 64), ((48, 16, 16), 576, 32), ((96,), 80, 16), ((5,), 48, 48)],
)
def test_codes_unpack_to_the_weights_they_stand_for(
    variant: Variant, kind: Kind, outputs: tuple[int, ...], inputs: int, group: int
) -> None:
    parts = [random_codes(kind, n, inputs, group, seed) for seed, n in enumerate(outputs)]
    parts = [replace(part, scales=signed(part.scales)) for part in parts]
    weight = torch.cat([part.weight(torch.bfloat16) for part in parts])
    native = library_of(variant).native
    wanted = pack(native, "o", weight, Arena(2 * weight.numel() + 64 * 2 * inputs))
    found = unpacked(variant, parts, interleaved=False)

    def rows(packed: torch.Tensor) -> torch.Tensor:  # without those the last block is filled up with
        pairs = packed.view(-1, inputs // 2, 32, 2).transpose(1, 2).reshape(-1, inputs)
        return pairs[: len(weight)].view(torch.int16)

    assert torch.equal(found, wanted)
    assert torch.equal(rows(found), rows(wanted))  # -0 is -0, too
    assert found.count_nonzero() > weight.numel() // 2


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
def test_two_matrices_whose_outputs_alternate(variant: Variant, kind: Kind) -> None:
    parts = [random_codes(kind, 48, 96, 32, seed) for seed in (1, 2)]
    weight = torch.cat([part.weight(torch.bfloat16) for part in parts])
    wanted = pack(library_of(variant).native, "gate_up", weight, Arena(2 * weight.numel() + 64))
    assert torch.equal(unpacked(variant, parts, interleaved=True), wanted)


def test_parts_of_several_kinds(variant: Variant) -> None:
    kinds = (Kind.ADDED, Kind.ADDED, Kind.PLAIN, Kind.BYTES, Kind.SHIFTED)
    parts = [random_codes(k, 32 + 32 * (i == 0), 96, 32, i) for i, k in enumerate(kinds)]
    parts.append(random_codes(Kind.BYTES, 5, 96, 16, 7))
    weight = torch.cat([part.weight(torch.bfloat16) for part in parts])
    wanted = pack(library_of(variant).native, "o", weight, Arena(2 * weight.numel() + 64 * 2 * 96))
    assert torch.equal(unpacked(variant, parts, interleaved=False), wanted)
    uneven = [random_codes(Kind.ADDED, 33, 96, 32), random_codes(Kind.BYTES, 31, 96, 32)]
    assert unfit(parts, interleaved=False) is None
    for wrong, interleaved in ((uneven, False), (parts[1:3], True)):
        assert unfit(wrong, interleaved) == "weights of several kinds in one block"


def steps(weights: DecoderWeights, pages: Pages, variant: Variant, threads: int) -> NativeStep:
    return NativeStep(weights, pages.pool, BLOCKS, 8, threads, library=library_of(variant))


def weights_of(shape: Shape, kind: str) -> DecoderWeights:
    return coded(random_decoder(shape), *KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_step_has_the_bits_of_one_with_the_dequantized_weights(
    variant: Variant, shape: Shape, kind: str
) -> None:
    """Prompts of every length beside each other, with adapters of every kind, then row by row."""
    weights = weights_of(shape, kind)
    if NativeStep.unsupported(weights) is not None:
        assert kind == "several"
        pytest.skip("heads of so few dimensions share blocks")
    plain = dequantized(weights)
    pages = Pages(plain)
    one, scaled = pages.random(5, seed=1), pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    mixes = ((), ((one, 1.0),), ((scaled, 0.5), (one, -0.3)), ((scaled, 1.0),))
    for lengths, threads in (((70, 17, 3, 3), 2), ((5, 1), 3), ((1,), 1)):
        ours, wanted = steps(weights, pages, variant, threads), steps(plain, pages, variant, threads)
        batch = Batcher(BLOCKS, shape.vocab)
        sequences = [batch.sequence(n + 2, mix) for n, mix in zip(lengths, mixes, strict=False)]
        for counts in (lengths, [1] * len(lengths)):
            inputs = batch.step(list(zip(sequences, counts, strict=True)), all_logits=True)
            assert torch.equal(ours.step(inputs), wanted.step(inputs))


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
def test_steps_of_few_rows_round_as_all_do(variant: Variant, kind: Kind) -> None:
    """Codes times scales of either sign, halfway between two bf16 numbers; more inputs than one piece has."""

    def halfway(codes: Codes) -> Codes:
        middle = signed((codes.scales.view(torch.int32) & ~0xFFFF | 0x8000).view(torch.float32))
        offsets = None if codes.offsets is None else torch.zeros_like(codes.offsets)
        return replace(codes, scales=middle, factor=1.0 if codes.factor else 0.0, offsets=offsets)

    weights = recoded(coded(random_decoder(Shape(intermediate=1104)), kind, 64), halfway)
    plain = dequantized(weights)
    pages = Pages(plain)
    ours, wanted = steps(weights, pages, variant, 1), steps(plain, pages, variant, 1)
    for count in (1, 2, 3):
        inputs = Batcher(BLOCKS, 61).step([(Batcher(BLOCKS, 61).sequence(count), count)], all_logits=True)
        assert torch.equal(ours.step(inputs), wanted.step(inputs))


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("value", "moderate"),
    [
        (0.0, True),
        (-0.03, True),
        (2.0**-51, False),
        (-(2.0**51), False),
        (torch.inf, False),
        (torch.nan, False),
    ],
)
def test_scales_at_the_ends_of_float32_are_told(
    variant: Variant, kind: Kind, value: float, moderate: bool
) -> None:
    """Where rounding a product by two others may not find the nearest."""
    codes = random_codes(kind, 40, 96, 32)
    for tensor in (codes.scales, codes.offsets):
        if tensor is not None:
            kept = tensor[3, 1].item()
            for each, expected in ((value, moderate), (kept, True)):
                tensor[3, 1] = each
                packed = pack_codes(library_of(variant).native, [codes], False, Arena(coded_bytes([codes])))
                assert bool(packed.struct.moderate) is expected


@pytest.mark.parametrize("kind", ["nibbles", "bytes", "shifted"])
def test_a_row_has_the_same_bits_in_any_batch(variant: Variant, kind: str) -> None:
    shape = SHAPES["odd widths"]
    weights = weights_of(shape, kind)
    pages = Pages(weights)
    mix = ((pages.random(5, seed=1), 0.7),)
    batch = Batcher(BLOCKS, shape.vocab)
    sequence, others = batch.sequence(30, mix), [batch.sequence(30), batch.sequence(30, mix)]
    found = []
    for cuts, beside, threads in (([30], [], 1), ([1] * 30, others, 2), ([13, 1, 16], others, 3)):
        native = steps(weights, pages, variant, threads)
        for each in (sequence, *others):
            each.done = 0
        rows = []
        for count in cuts:
            logits = native.step(
                Batcher.step([*((s, 1) for s in beside), (sequence, count)], all_logits=True)
            )
            rows.append(logits[len(beside) :].clone())
        found.append(torch.cat(rows))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_merging_needs(variant: Variant, kind: str) -> None:
    """Weights are known once the layers' codes are gone; merged copies are plain and run beside them."""
    shape = SHAPES["biases"]
    weights = weights_of(shape, kind)
    plain = dequantized(weights)
    pages = Pages(plain)
    ours, wanted = steps(weights, pages, variant, 2), steps(plain, pages, variant, 2)
    modules = range(7 * shape.layers)
    known = [weights.weight(module) for module in modules]
    for layer in weights.layers:
        for name in ("qkv", "o", "gate_up", "down"):
            for part in getattr(layer, name).parts:
                part.module.drop()
    assert all(torch.equal(ours.weight(m), known[m]) for m in modules)
    group = (4, 5)
    merged = ours.merged(), wanted.merged()
    for copy in merged:
        copy.put(group, [1.5 * known[m] for m in group], [plain.bias(m) for m in group])
    inputs = Batcher(BLOCKS, shape.vocab).step([(Batcher(BLOCKS, shape.vocab).sequence(20), 20)])
    base = ours.step(inputs).clone()
    found = [
        step.step(replace(inputs, merged=copy)).clone()
        for step, copy in zip((ours, wanted), merged, strict=True)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], base)
    assert torch.equal(ours.step(inputs), base)


def test_codes_that_have_no_kernel_are_named() -> None:
    weights = coded(random_decoder(Shape()), Kind.NIBBLES, 24)
    assert "groups of 24 of 64 inputs" in str(NativeStep.unsupported(weights))
    assert NativeStep.unsupported(coded(random_decoder(Shape()), Kind.NIBBLES, 16)) is None
    turned = coded(random_decoder(Shape()), Kind.SHIFTED, 16)
    matrix = turned.layers[0].o
    assert isinstance(matrix, QuantizedMatrix)
    codes = matrix.parts[0].codes
    assert codes is not None
    out_of_order = CodedLinear(replace(codes, order=torch.arange(64).flip(0) // 16), None, torch.bfloat16)
    changed = replace(turned.layers[0], o=QuantizedMatrix((Quantized(out_of_order),)))
    turned = replace(turned, layers=(changed, *turned.layers[1:]))
    assert "do not follow each other" in str(NativeStep.unsupported(turned))
