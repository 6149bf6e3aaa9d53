"""Gains and constants in the reference kernels: what a module computes equals the formula of AdapterPages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.kernels.inputs import AdapterPages, ModuleShape, lora_inputs
from manylora.server.kernels.reference.lora import LoraPlan
from manylora.server.model.pages.pool import PagePool

MODULES = (TargetModule("q", 40, 64), TargetModule("v", 40, 24), TargetModule("down", 100, 40))
Mix = Sequence[tuple[int, float]]


class Base:
    """Random weights; the second module has no bias."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(9)
        self.weights = [torch.randn(m.out_features, m.in_features, generator=generator) for m in MODULES]
        self.biases = [torch.randn(m.out_features, generator=generator) for m in MODULES]

    def weight(self, module: int) -> torch.Tensor:
        return self.weights[module]

    def bias(self, module: int) -> torch.Tensor | None:
        return None if module == 1 else self.biases[module]

    def product(self, module: int, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight(module))

    def output(self, module: int, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight(module), self.bias(module))


def random_delta(module: int, kind: str, seed: int) -> ModuleDelta:
    generator = torch.Generator().manual_seed(100 * seed + module)
    width_in, width_out = MODULES[module].in_features, MODULES[module].out_features

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rank = 0 if kind in ("output", "input", "bias") else 4
    a, b = random(rank, width_in), random(width_out, rank)
    parts: dict[str, dict[str, Any]] = {
        "dora": {"magnitude": random(width_out)},
        "dora and bias": {"magnitude": random(width_out), "bias": random(width_out)},
        "lora bias": {"b_bias": random(width_out)},
        "bias": {"bias": random(width_out)},
        "output": {"output_scale": random(width_out)},
        "input": {"input_scale": random(width_in)},
        "plain": {},
    }
    return ModuleDelta(a, b, 0.5, **parts[kind])


KINDS = ("dora", "dora and bias", "lora bias", "bias", "output", "input", "plain")


def change(delta: ModuleDelta, base: Base, module: int, x: torch.Tensor) -> torch.Tensor:
    """What the adapter alone adds to the base's output: the definition of :class:`ModuleDelta`."""
    weight, bias = base.weight(module), base.bias(module)
    low_rank = delta.scaling * (delta.b @ delta.a)
    g = torch.ones(len(weight))
    if delta.magnitude is not None:
        g = delta.magnitude / torch.linalg.norm(weight + low_rank, dim=1)
    inputs = x if delta.input_scale is None else x * delta.input_scale
    y = g * (inputs @ weight.T + x @ low_rank.T)
    own = delta.bias if delta.bias is not None else bias
    y = y if own is None else y + own
    y = y if delta.output_scale is None else y * delta.output_scale
    y = y if delta.b_bias is None else y + delta.scaling * delta.b_bias
    return y - base.output(module, x)


def pool_of(base: Base, dtype: torch.dtype = torch.float32) -> PagePool:
    return PagePool(MODULES, 1 << 18, dtype, torch.device("cpu"), base)


def load(pool: PagePool, name: str, deltas: Sequence[ModuleDelta]) -> AdapterPages:
    packed = pool.pack(name, {m.name: d for m, d in zip(MODULES, deltas, strict=True)})
    pages = pool.reserve(packed)
    assert pages is not None
    pool.write(pages, packed)
    return pages


def deltas_of(number: int) -> list[ModuleDelta]:
    """Of one adapter: another kind on each module."""
    kinds = [KINDS[(number + m) % len(KINDS)] for m in range(3)]
    kinds[1] = "plain" if kinds[1] in ("bias", "dora and bias") else kinds[1]  # it has no bias to replace
    return [random_delta(m, kind, number) for m, kind in enumerate(kinds)]


MIXES: tuple[tuple[Mix, int], ...] = (  # (adapter, weight) pairs and rows of each sequence
    ((), 3),
    (((0, 1.0),), 1),
    (((1, 1.0),), 12),
    (((2, 0.7), (3, -0.3)), 1),
    ((), 1),
    (((4, 1.0),), 2),
    (((5, 1.0),), 20),
    (((6, 1.0),), 1),
    (((0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5), (6, 0.5)), 9),
    (((5, 2.0),), 1),
)


@pytest.mark.parametrize("module", range(3))
def test_a_mixed_batch_equals_the_definition(module: int) -> None:
    base = Base()
    pool = pool_of(base)
    adapters = [deltas_of(n) for n in range(7)]
    pages = [load(pool, f"{n}", deltas) for n, deltas in enumerate(adapters)]
    mixes = [[(pages[a], w) for a, w in mix] for mix, _ in MIXES]
    inputs = lora_inputs(mixes)
    assert inputs is not None
    start = np.cumsum([0, *(n for _, n in MIXES)]).astype(np.int32)
    shapes = [ModuleShape(m.in_features, m.out_features) for m in MODULES]
    plan = LoraPlan(pool.data, shapes, inputs, start, base)
    x = torch.randn(int(start[-1]), MODULES[module].in_features, generator=torch.Generator().manual_seed(1))
    y = base.output(module, x)
    expected = y.clone()
    for s, (mix, _) in enumerate(MIXES):
        rows = slice(int(start[s]), int(start[s + 1]))
        for adapter, weight in mix:
            expected[rows] += weight * change(adapters[adapter][module], base, module, x[rows])
    untouched = y[:3].clone()
    plan.add(module, x, y)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(y[:3], untouched)


def test_a_plain_adapter_has_no_vectors() -> None:
    pool = pool_of(Base())
    pages = load(pool, "plain", [random_delta(m, "plain", 1) for m in range(3)])
    assert pages.vectors is None


def test_absent_vectors_point_nowhere() -> None:
    pool = pool_of(Base())
    pages = load(
        pool, "ia3", [random_delta(0, "output", 1), random_delta(1, "plain", 1), random_delta(2, "input", 1)]
    )
    assert pages.vectors is not None
    assert (pages.vectors.gain != 0).tolist() == [True, False, False]
    assert (pages.vectors.input_gain != 0).tolist() == [False, False, True]
    assert not pages.vectors.constant.any()
    assert pages.rank.tolist() == [0, 4, 0]


def test_a_constant_is_only_kept_where_there_is_one() -> None:
    """DoRA takes its part of the bias away; without a bias there is nothing to take."""
    pool = pool_of(Base())
    pages = load(pool, "dora", [random_delta(m, "dora", 1) for m in range(3)])
    assert pages.vectors is not None
    assert (pages.vectors.constant != 0).tolist() == [True, False, True]
