"""The native step against the PyTorch step: scores of prompts, row by row, with and without adapters.

The measure is the error of log-probabilities against fp32. Rounding to bf16 has the PyTorch step err too;
the native one may not err noticeably more. Prompts are scored in one chunk, in small chunks and token by
token, so prefill rows, mixed steps and decode rows all come up.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant
from manylora.server.model.decoders.extraction import extract_weights
from manylora.server.model.loading.loader import load_model
from tests.support.adapters import write_adapter
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.kernel_cases import library_of, variants_under_test
from tests.support.tiny_models import DENSE_FAMILIES, costly, tiny_model

ADAPTERS: Mapping[str, dict[str, Any]] = {
    "attention": {"rank": 8, "targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "some": {"rank": 5, "targets": ("q_proj", "v_proj", "down_proj"), "rslora": True},
    "mlp": {"rank": 17, "targets": ("gate_proj", "up_proj", "down_proj")},
    "all": {"rank": 64, "targets": "all-linear"},
    "uneven": {"rank": 4, "targets": "all-linear", "rank_pattern": {"q_proj": 1, "down_proj": 33}},
    "one": {"rank": 3, "targets": ("up_proj",)},
}
MIXES: tuple[Mapping[str, float], ...] = (
    {},
    {"attention": 1.0},
    {"some": 1.0},
    {"mlp": 1.0},
    {"all": 1.0},
    {"uneven": 1.0},
    {"one": 1.0},
    {"attention": 0.5, "mlp": 0.5},
    {"all": -0.3, "some": 1.7, "uneven": 0.5},
    *({"all": 1.0},) * 9,  # enough rows of one adapter to be computed as a matrix product
    *({},) * 3,
)
PROMPT = 41  # tokens: crosses block boundaries and the sliding windows


def _unsupported(family_dir: Path) -> str | None:
    loaded = load_model(family_dir, dtype="bf16", device="cpu", max_model_len=None)
    return NativeStep.unsupported(extract_weights(loaded.hf, 64))


def _scores(model: Path, adapters: Path, budget: int, dtype: str, kernels: str) -> np.ndarray:
    """Log-probability of every prompt token of every mix's sequence, [mixes, PROMPT - 1]."""
    harness = EngineHarness(model, dtype=dtype, kernels=kernels, max_batch_tokens=budget)
    pages = {name: harness.load(adapters / name) for name in ADAPTERS}
    generator = torch.Generator().manual_seed(7)
    sequences = [
        harness.sequence(
            torch.randint(0, 256, (PROMPT,), generator=generator).tolist(),
            *sorted(((pages[n], w) for n, w in mix.items()), key=lambda member: member[0].digest),
            max_tokens=0,
            prompt_logprobs=0,
        )
        for mix in MIXES
    ]
    return np.array([_of(answer) for answer in harness.run(*sequences)])


def _of(answer: Answer) -> list[float]:
    return [score.logprob for score in answer.last.prompt_logprobs if score is not None]


STACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | dict.fromkeys(
    ("gate_proj", "up_proj"), "gate_up_proj"
)


def _stacked(options: dict[str, Any]) -> dict[str, Any]:
    """The same for a model that has q, k and v as one module, and gate and up as another."""
    changed = dict(options)
    if options["targets"] != "all-linear":
        changed["targets"] = tuple(dict.fromkeys(STACKED.get(name, name) for name in options["targets"]))
    if pattern := options.get("rank_pattern"):
        changed["rank_pattern"] = {STACKED.get(name, name): rank for name, rank in pattern.items()}
    return changed


@pytest.fixture(scope="module", params=costly(DENSE_FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny_model(tmp_path_factory.mktemp("native"), request.param)
    if reason := _unsupported(directory):
        pytest.skip(f"no native kernels here: {reason}")
    return directory


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    stacked = "phi3" in (model / "config.json").read_text()
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        write_adapter(root / name, model, seed=seed, scale=0.1, **(_stacked(options) if stacked else options))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("budget", [256, 40, len(MIXES)], ids=["long chunks", "short chunks", "decode rows"])
def test_it_errs_no_more_than_bf16_must(model: Path, adapters: Path, budget: int) -> None:
    exact = _scores(model, adapters, 256, "fp32", "pytorch")
    rounded = np.abs(_scores(model, adapters, 256, "bf16", "pytorch") - exact).mean(axis=1)
    native = np.abs(_scores(model, adapters, budget, "bf16", "native") - exact).mean(axis=1)
    assert (native < 1.5 * rounded + 0.01).all(), (native, rounded)


def test_a_row_has_the_same_bits_in_any_batch_and_chunking(model: Path, adapters: Path) -> None:
    runs = [_scores(model, adapters, budget, "bf16", "native") for budget in (256, 40, len(MIXES))]
    for one, other in pairwise(runs):
        assert (one == other).all()


@pytest.mark.parametrize("variant", variants_under_test(), ids=lambda variant: variant.name)
def test_every_instruction_set_computes_the_same_model(
    variant: Variant, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.server.kernels.cpu.backend.best_library", lambda: library_of(variant))
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        write_adapter(tmp_path / name, tiny_llama, seed=seed, scale=0.1, **options)
    exact = _scores(tiny_llama, tmp_path, 256, "fp32", "pytorch")
    rounded = np.abs(_scores(tiny_llama, tmp_path, 256, "bf16", "pytorch") - exact).mean(axis=1)
    native = np.abs(_scores(tiny_llama, tmp_path, 40, "bf16", "native") - exact).mean(axis=1)
    assert (native < 1.5 * rounded + 0.01).all(), (native, rounded)
