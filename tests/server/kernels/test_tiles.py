"""Level amx sums in the order of the tile instructions, in whatever registers, emulated or real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import AMX_EMULATED, VARIANTS, Variant, usable_variants
from manylora.server.kernels.cpu.library import Library
from tests.support.kernel_cases import Batcher, Pages, Shape, library_of, random_decoder

AMX = next(variant for variant in VARIANTS if variant.name == "amx")
real_tiles = pytest.mark.skipif(AMX not in usable_variants(), reason="this machine has no tile registers")
levels = pytest.mark.parametrize(
    "variant", [pytest.param(AMX, marks=real_tiles), AMX_EMULATED], ids=lambda variant: variant.name
)
FEW, MANY = (1, 2), (3, 15, 16, 17, 31, 32, 33, 70)  # rows of vector and of tile registers


def packed(library: Library, weight: torch.Tensor) -> torch.Tensor:
    """A weight matrix [N, K] as the kernels read it."""
    outputs, inputs = weight.shape
    out = torch.empty((outputs + -outputs % 32) * inputs, dtype=torch.bfloat16)
    library.native.manylora_pack(weight.data_ptr(), out.data_ptr(), outputs, inputs)
    return out


def product(library: Library, x: torch.Tensor, weight: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """x W^T in fp32, [rows, N]."""
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = torch.empty(rows, outputs + -outputs % 32)
    ours = packed(library, weight)
    library.native.manylora_gemm(x.data_ptr(), ours.data_ptr(), y.data_ptr(), rows, outputs, inputs, threads)
    return y[:, :outputs]


def in_tile_order(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same from the definition: per 32 inputs, c + (even chain + odd chain).

    Exact for numbers of everyday size: there a product of two bf16 is a float, so that adding it rounds as a
    fused multiplication and addition does.
    """
    left, right = x.float().numpy(), weight.float().numpy()
    c = np.zeros((len(left), len(right)), np.float32)
    for k in range(0, left.shape[1], 32):
        chains = []
        for first in (k, k + 1):
            chain = np.zeros_like(c)
            for i in range(first, min(k + 32, left.shape[1]), 2):
                chain += left[:, i, None] * right[None, :, i]
            chains.append(chain)
        c += chains[0] + chains[1]
    return torch.from_numpy(c)


def odd_numbers(shape: tuple[int, int], exponents: range, seed: int) -> torch.Tensor:
    """bf16 of any sign and fraction whose biased exponents lie in the range."""
    random = np.random.default_rng(seed)
    exponent = random.choice(np.asarray(exponents), shape)
    bits = random.integers(0, 2, shape) << 15 | exponent << 7 | random.integers(0, 128, shape)
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in every bit but those of NaNs."""
    wild = a.isnan()
    return torch.equal(wild, b.isnan()) and torch.equal(
        a.view(torch.int32).masked_fill(wild, 0), b.view(torch.int32).masked_fill(wild, 0)
    )


EXPONENTS = {
    "everyday": range(118, 131),
    "around the smallest products": range(55, 68),
    "denormal": range(3),
    "around the largest": range(188, 192),
    "all, with infinities and NaN": range(256),
}


def numbers(seed: int, rows: int, inputs: int, outputs: int, kind: str) -> Iterator[torch.Tensor]:
    yield odd_numbers((rows, inputs), EXPONENTS[kind], seed)
    yield odd_numbers((outputs, inputs), EXPONENTS[kind], seed + 1)


@levels
@pytest.mark.parametrize("inputs", [16, 32, 48, 144, 576])
def test_a_product_sums_in_the_order_of_tiles(inputs: int, variant: Variant) -> None:
    library = library_of(variant)
    for rows in (*FEW, *MANY):
        x, weight = numbers(rows, rows, inputs, 65, "everyday")
        assert torch.equal(product(library, x, weight), in_tile_order(x, weight)), rows


@levels
@pytest.mark.parametrize("kind", EXPONENTS)
def test_rows_alone_have_the_bits_they_have_together(kind: str, variant: Variant) -> None:
    """Vectors and tiles agree on what they do with the numbers that no arithmetic on paper has."""
    library = library_of(variant)
    for inputs in (32, 80):
        x, weight = numbers(inputs, 40, inputs, 64, kind)
        together = product(library, x, weight, threads=2)
        alone = torch.cat([product(library, x[i : i + 1].clone(), weight) for i in range(len(x))])
        assert same(together, alone)


@real_tiles
@pytest.mark.parametrize("kind", EXPONENTS)
def test_the_emulation_has_the_bits_of_the_instructions(kind: str) -> None:
    for seed in range(8):
        for rows in (1, 37):
            x, weight = numbers(2 * seed, rows, 96, 64, kind)
            assert same(product(library_of(AMX), x, weight), product(library_of(AMX_EMULATED), x, weight))


@levels
def test_what_is_tiny_before_rounding_only_is_kept(variant: Variant) -> None:
    """A sum that rounds to the smallest normal number is that number; a little less is zero."""
    library = library_of(variant)
    for rows in (1, 20):
        x = torch.zeros(rows, 32, dtype=torch.bfloat16)
        x[:, 0], x[:, 2] = 2.0**-63, 2.0**-75
        weight = torch.zeros(3, 32, dtype=torch.bfloat16)
        weight[:, 0] = 2.0**-63
        weight[:, 2] = torch.tensor([-(2.0**-76), -1.25 * 2.0**-76, 0.0])
        assert product(library, x, weight).tolist() == [[2.0**-126, 0.0, 2.0**-126]] * rows


def scores(variant: Variant, threads: int) -> torch.Tensor:
    """Logits of prompts in chunks and of single rows, of a base and its adapters, step after step."""
    shape = Shape(
        heads=9, kv_heads=3, head_dim=80, hidden=96, intermediate=160, windows=(None, 40), vocab=300
    )
    weights = random_decoder(shape)
    pages = Pages(weights)
    few, many = pages.random(5, seed=1), pages.random([33, 16, 0, 8, 70, 1, 17], seed=2)
    native = NativeStep(weights, pages.pool, 64, 8, threads, library=library_of(variant))
    batch = Batcher(64, shape.vocab)
    mixes = ((), ((few, 1.0),), ((many, 0.5),), ((few, -0.5), (many, 1.5)))
    sequences = [batch.sequence(n, mix) for n, mix in zip((190, 47, 60, 90), mixes, strict=True)]
    rows = []
    for count in (33, 1, 12, 1):
        rows.append(native.step(batch.step([(one, count) for one in sequences], all_logits=True)).clone())
    return torch.cat(rows)


@pytest.mark.sweep
@pytest.mark.slow
@real_tiles
def test_whole_steps_have_the_bits_of_their_emulation() -> None:
    """The level as it is served beside itself with emulated tiles, in the vector instructions of both."""
    flags = ("-march=x86-64-v4", "-mavx512bf16", "-O1")  # little time to compile, the same arithmetic
    emulated = replace(AMX_EMULATED, compiler_flags=(*flags, *AMX_EMULATED.compiler_flags))
    assert torch.equal(scores(AMX, 2), scores(emulated, 1))
