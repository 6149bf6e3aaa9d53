"""All that is served, on tensors that say they are on a CUDA device: the numbers are those of the CPU.

What mixes devices fails here as it would on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix, TokenLogprob
from manylora.server.model.decoders.merging import merge
from tests.support.adapter_kinds import write_kinds
from tests.support.adapter_set import TARGETS, prompt_of
from tests.support.adapters import write_adapter
from tests.support.classifiers import make_classifier, request_scores, scores_of
from tests.support.engine_harness import EngineHarness
from tests.support.further_kinds import write_further_kinds
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.simulated_device import simulated_cuda
from tests.support.simulated_engine import check, placed
from tests.support.soft_prompts import model_for_prefixes, write_soft_prompts
from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A model, and adapters of every kind for it."""
    root, family = tmp_path_factory.mktemp("kinds"), "llama-untied-bias"
    model = model_for_prefixes(root / "model", family)
    return model, {
        **write_kinds(root / "kinds", model, family),
        **write_further_kinds(root / "further", model, family),
        **write_matrix_kinds(root / "matrix", model, family),
        **write_soft_prompts(root / "prompts", model),
    }


def test_a_batch_of_every_kind_of_adapter(
    every_kind: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, paths = every_kind

    def run(harness: EngineHarness) -> list[list[int]]:
        pages = [None, *(harness.load(path) for path in paths.values())]
        rows = [
            harness.sequence(
                prompt_of(3 + 5 * i % 31, i), *([] if own is None else [(own, 1.0)]), max_tokens=3
            )
            for i, own in enumerate(pages)
        ]
        return [answer.token_ids for answer in harness.run(*rows)]

    check(model, run, monkeypatch)


SELDOM = [pytest.param(name, marks=pytest.mark.sweep) for name in ("qwen3_moe", "phi3", "mistral", "opt")]


@pytest.mark.sweep
@pytest.mark.parametrize("family", ["gemma2", "gpt2", *SELDOM])
def test_decoders_of_other_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms behind, windows, experts, stacked matrices; and the generic decoder."""
    model = tiny_model(tmp_path / "model", family)
    options: dict[str, Any] = {"targets": TARGETS[family][0]} if family in TARGETS else {}
    paths = [write_adapter(tmp_path / str(n), model, seed=n, **options) for n in range(2)]

    def run(harness: EngineHarness) -> list[list[int]]:
        one, two = (harness.load(path) for path in paths)
        mixes = ((), ((one, 1.0),), ((one, 0.5), (two, -0.5)))
        rows = [harness.sequence(prompt_of(30 + i, i), *mix, max_tokens=4) for i, mix in enumerate(mixes)]
        return [answer.token_ids for answer in harness.run(*rows)]

    check(model, run, monkeypatch)


DRAWN: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.0, "seed": 2, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    {
        "temperature": 0.7,
        "seed": 3,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "logit_bias": {65: 4.0},
    },
    {"temperature": 1.0, "seed": 4, "allowed_tokens": (65, 66, 67), "min_tokens": 2},
    {"temperature": 0.9, "seed": 5, "bad_words": ((65,), (66, 67)), "frequency_penalty": 0.5},
)


def rounded(logprob: TokenLogprob | None) -> Any:
    """A token's, and the likeliest ones, without the last digits: a CPU sums in another order."""
    if logprob is None:
        return None
    return logprob.token_id, round(logprob.logprob, 4), [token for token, _ in logprob.top]


def test_every_way_to_draw(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(harness: EngineHarness) -> list[Any]:
        rows = [harness.sequence(prompt_of(9 + i, i), max_tokens=5, **how) for i, how in enumerate(DRAWN)]
        return [
            [
                (delta.token_ids, [*map(rounded, delta.logprobs)], [*map(rounded, delta.prompt_logprobs)])
                for delta in answer.deltas
            ]
            for answer in harness.run(*rows)
        ]

    check(tiny_llama, run, monkeypatch)


@pytest.mark.parametrize("generic", [False, True])
def test_classes_beside_a_text(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generic: bool
) -> None:
    path = make_classifier(tmp_path / "five", tiny_llama, labels=list("abcde"), seed=2)

    def run(harness: EngineHarness) -> Any:
        asked = request_scores(harness, prompt_of(20), harness.load(path))
        scores, text = harness.run(asked, harness.sequence(prompt_of(9), max_tokens=3))
        return [round(score, 4) for score in scores_of(scores).tolist()], text.token_ids

    check(tiny_llama, run, monkeypatch, generic=generic)


@pytest.mark.sweep
@pytest.mark.parametrize("generic", [False, True])
def test_merged_copies(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generic: bool
) -> None:
    """Built from weights on the device and adapters that lie on the host, and run beside the base."""
    path = write_adapter(tmp_path / "one", tiny_llama, seed=1)

    def run(harness: EngineHarness) -> list[list[int]]:
        artifact = read_artifact(path, harness.base, Limits(max_rank=128, max_bytes=1 << 30))
        copy = harness.decoder.merged()
        assert [*merge(harness.decoder, [(artifact.delta, 0.7)], copy)][-1] == 1.0
        row = harness.sequence(prompt_of(12), max_tokens=4)
        row.mix = ResolvedMix(merged=copy, digest=b"copy")
        return [a.token_ids for a in harness.run(row, harness.sequence(prompt_of(12), max_tokens=4))]

    check(tiny_llama, run, monkeypatch, generic=generic)


@pytest.mark.sweep  # interpreted, kernels take their time
@pytest.mark.timeout(900)
def test_in_triton(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pointer that a kernel gets is one that the device can read."""
    path = write_adapter(tmp_path / "one", tiny_llama, seed=1)

    def run(harness: EngineHarness) -> list[list[int]]:
        own = harness.load(path)
        rows = [harness.sequence(prompt_of(5), *mix, max_tokens=2) for mix in ((), ((own, 1.0),))]
        return [answer.token_ids for answer in harness.run(*rows)]

    expected = run(EngineHarness(tiny_llama, kernels="pytorch"))
    with simulated_cuda(monkeypatch):
        harness = EngineHarness(tiny_llama, placed=placed)
        assert harness.decoder.kernels == "triton"
        assert run(harness) == expected


def test_a_tensor_astray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_cuda(monkeypatch):
        there = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="expected all tensors to be on"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="can't convert"):
            there.numpy()
        assert (there + 1).tolist() == [2.0, 2.0, 2.0]
