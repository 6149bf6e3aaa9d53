"""Adapters of as many ranks as weights have rows, and of more, as kinds have whose changes are dense."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.kernels.inputs import AdapterPages
from tests.support.engine_harness import EngineHarness
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

RANKS = {"narrow": (3, 0, 1), "square": (64, 96, 32), "wide": (1500, 0, 2, 777)}  # of the modules in turn
MIXES: tuple[dict[str, float], ...] = (
    {},
    {"square": 1.0},
    {"wide": 1.0},
    {"wide": -0.5, "square": 0.5, "narrow": 1.0},
    {"narrow": 1.0},
    *({"wide": 0.7},) * 9,
)
PROMPT = 21


def load(harness: EngineHarness, name: str) -> AdapterPages:
    generator = torch.Generator().manual_seed(len(name))
    deltas = {}
    for index, module in enumerate(harness.decoder.modules):
        rank = RANKS[name][index % len(RANKS[name])]
        a = torch.randn(rank, module.in_features, generator=generator)
        b = torch.randn(module.out_features, rank, generator=generator)
        deltas[module.name] = ModuleDelta(a, b, 0.1 / math.sqrt(max(rank, 1)))
    packed = harness.pool.pack(name, deltas)
    pages = harness.pool.reserve(packed)
    assert pages is not None
    harness.pool.write(pages, packed)
    return pages


def scores(model: Path, budget: int, dtype: str, kernels: str) -> np.ndarray:
    """Log-probability of every prompt token of every mix's sequence, [mixes, PROMPT - 1]."""
    harness = EngineHarness(model, dtype=dtype, kernels=kernels, max_batch_tokens=budget)
    pages = {name: load(harness, name) for name in RANKS}
    generator = torch.Generator().manual_seed(7)
    sequences = [
        harness.sequence(
            torch.randint(0, 256, (PROMPT,), generator=generator).tolist(),
            *((pages[n], w) for n, w in sorted(mix.items())),
            max_tokens=0,
            prompt_logprobs=0,
        )
        for mix in MIXES
    ]
    found = [[s.logprob for s in a.last.prompt_logprobs if s is not None] for a in harness.run(*sequences)]
    return np.array(found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("wide"), "llama")


@pytest.mark.parametrize("budget", [256, 16, 14], ids=["prompts", "chunks", "decoding"])
def test_native_kernels_err_no_more_than_pytorch(model: Path, budget: int) -> None:
    exact = scores(model, 256, "fp32", "pytorch")
    rounded = np.abs(scores(model, budget, "bf16", "pytorch") - exact).mean(axis=1)
    native = np.abs(scores(model, budget, "bf16", "native") - exact).mean(axis=1)
    assert (native <= 1.3 * rounded + 0.02).all(), (native, rounded)
    alone = scores(model, 14, "fp32", "pytorch")
    np.testing.assert_allclose(alone, exact, atol=2e-3)
