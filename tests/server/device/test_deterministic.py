"""Deterministic answers on tensors that say they are on a CUDA device, alone and in company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.adapters.errors import ArtifactError
from manylora.server.kernels.cuda.fixed import step  # so that its kernels are among those that are simulated
from tests.support import vocabulary_adapters
from tests.support.adapter_set import prompt_of
from tests.support.adapters import write_adapter
from tests.support.classifiers import make_classifier, request_scores, scores_of
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.further_kinds import write_further_kinds
from tests.support.simulated_device import simulated_cuda
from tests.support.simulated_engine import placed
from tests.support.tiny_models import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sweep,  # interpreted, kernels take their time
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


def joined(answer: Answer) -> Any:
    """The same however many tokens came at a time."""
    deltas = answer.deltas
    return (
        answer.token_ids,
        [one for delta in deltas for one in delta.logprobs],
        [one for delta in deltas for one in delta.prompt_logprobs],
    )


def test_answers_alone_and_in_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters, an own vocabulary, classes; greedy and drawn, with log-probabilities; prompts cut anew."""
    model = tiny_model(tmp_path / "model", "llama")
    plain = write_adapter(tmp_path / "plain", model, seed=1)
    words = vocabulary_adapters.make(
        tmp_path / "words", model, seed=2, target_modules=["q_proj", "embed_tokens", "lm_head"]
    )
    classes = make_classifier(tmp_path / "classes", model, labels=list("abc"), seed=3)
    with simulated_cuda(monkeypatch):
        harness = EngineHarness(
            model, placed=placed, deterministic=True, prefix_cache=False, max_batch_tokens=24
        )
        assert harness.decoder.kernels == step.FixedStep.name
        one, two, three = (harness.load(path) for path in (plain, words, classes))

        def sequences() -> list[Any]:
            return [
                harness.sequence(prompt_of(9), max_tokens=3, logprobs=2, prompt_logprobs=1),
                harness.sequence(
                    prompt_of(20, 1), (one, 1.0), max_tokens=2, temperature=0.9, seed=5, top_p=0.9
                ),
                harness.sequence(
                    prompt_of(11, 2), (two, 1.0), max_tokens=3, logprobs=1, temperature=1.0, seed=6
                ),
                request_scores(harness, prompt_of(13, 3), three),
            ]

        together = harness.run(*sequences())
        for answer, sequence in zip(together, sequences(), strict=True):
            harness.new_engine(max_batch_tokens=7)
            (alone,) = harness.run(sequence)
            assert joined(alone) == joined(answer)
        harness.new_engine(max_batch_tokens=24)
        (alone,) = harness.run(sequences()[3])
        assert torch.equal(scores_of(alone), scores_of(together[3]))


def test_adapters_that_are_not_taken_are_refused_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    paths = write_further_kinds(tmp_path / "kinds", model, "llama")
    with simulated_cuda(monkeypatch):
        usual = EngineHarness(model, placed=placed, kernels="pytorch")
        fixed = EngineHarness(model, placed=placed, deterministic=True)
        faults = [_fault(fixed, path) for path in paths.values()]
        for path in paths.values():
            usual.load(path)
    said = [fault for fault in faults if fault is not None]
    assert 0 < len(said) < len(paths)
    assert all("--deterministic on a GPU takes no adapter that changes" in fault for fault in said)


def _fault(harness: EngineHarness, path: Path) -> str | None:
    """Why an adapter is not loaded; None if it is."""
    try:
        harness.load(path)
    except ArtifactError as error:
        return str(error)
    return None
