"""Classification adapters in a batch with everything else equal PEFT on transformers' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_set import TARGETS, prompt_of
from tests.support.adapters import write_adapter
from tests.support.classifiers import (
    PeftClassifier,
    make_classifier,
    request_scores,
    scores_of,
)
from tests.support.engine_harness import EngineHarness, hf_greedy
from tests.support.peft_oracle import Peft, assert_logits_match
from tests.support.tiny_models import FUSED_FAMILIES, tiny_model

CASES = [("llama", False), ("qwen3", False), ("llama", True), ("gemma2", True), ("gpt2", True), ("opt", True)]
TOLERANCE = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("family", "generic"), CASES)
def test_beside_generating_rows(tmp_path: Path, family: str, generic: bool) -> None:
    """Two heads of different size, chunked prompts, other adapters and the base: all exact, twice over."""
    model = tiny_model(tmp_path / "model", family)
    made = {
        "two": make_classifier(tmp_path / "two", model, seed=1),
        "five": make_classifier(tmp_path / "five", model, labels=list("abcde"), seed=2, lora={"r": 5}),
    }
    options: dict[str, Any] = {"targets": TARGETS[family][0]} if family in TARGETS else {}
    writer = write_adapter(tmp_path / "writer", model, seed=3, **options)
    harness = EngineHarness(model, generic=generic, max_batch_tokens=32)
    assert isinstance(harness.decoder, FusedDecoder) != generic
    assert generic or family in FUSED_FAMILIES
    pages = {name: harness.load(path) for name, path in (made | {"writer": writer}).items()}
    texts = [(name, prompt_of(length, length)) for name in made for length in (1, 7, 45)]
    asked = [request_scores(harness, prompt, pages[name]) for name, prompt in texts]
    writing = [harness.sequence(prompt_of(20), max_tokens=6)]
    writing.append(harness.sequence(prompt_of(9), (pages["writer"], 1.0), max_tokens=6))
    answers = harness.run(*asked[:3], *writing, *asked[3:])
    oracles = {"two": PeftClassifier(made["two"], model), "five": PeftClassifier(made["five"], model, 5)}
    for (name, prompt), answer in zip(texts, answers[:3] + answers[5:], strict=True):
        assert_logits_match(scores_of(answer)[None], oracles[name].scores(prompt)[None], TOLERANCE, name)
    plain = Peft(model, {"writer": writer})
    for sequence, answer, adapter in zip(writing, answers[3:5], (None, "writer"), strict=True):
        with plain.running(adapter) as oracle:
            read = sequence.token_ids[: sequence.num_prompt_tokens]
            assert answer.token_ids == hf_greedy(oracle, read, 6)


def test_the_prefix_cache_serves_classes(tiny_llama: Path, tmp_path: Path) -> None:
    path = make_classifier(tmp_path / "two", tiny_llama)
    harness = EngineHarness(tiny_llama)
    pages, prompt = harness.load(path), prompt_of(50)
    (first,) = harness.run(request_scores(harness, prompt, pages))
    (again,) = harness.run(request_scores(harness, prompt, pages))
    assert (first.last.cached_tokens, again.last.cached_tokens) == (0, 48)
    assert_logits_match(scores_of(again)[None], scores_of(first)[None], 1e-5)


def test_more_texts_than_a_step_delivers(tiny_llama: Path, tmp_path: Path) -> None:
    path = make_classifier(tmp_path / "two", tiny_llama)
    harness, oracle = EngineHarness(tiny_llama), PeftClassifier(path, tiny_llama)
    pages = harness.load(path)
    prompts = [prompt_of(3, seed) for seed in range(40)]
    answers = harness.run(*(request_scores(harness, prompt, pages) for prompt in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_logits_match(scores_of(answer)[None], oracle.scores(prompt)[None], TOLERANCE)


def test_preempted_and_computed_again(tiny_llama: Path, tmp_path: Path) -> None:
    path = make_classifier(tmp_path / "two", tiny_llama)
    harness = EngineHarness(tiny_llama, num_blocks=6, max_batch_tokens=16)
    prompt = prompt_of(60)
    older = harness.sequence(prompt_of(15), max_tokens=40)
    younger = request_scores(harness, prompt, harness.load(path))
    _, answer = harness.run(older, younger)
    assert younger.num_preemptions
    assert_logits_match(
        scores_of(answer)[None], PeftClassifier(path, tiny_llama).scores(prompt)[None], TOLERANCE
    )


def test_with_embeddings_of_its_own(tmp_path: Path) -> None:
    """Of a classification model nothing is tied: there is no output head to share them with."""
    model = tiny_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    lora = {"modules_to_save": ["score", "embed_tokens"], "target_modules": ["q_proj"]}
    path = make_classifier(tmp_path / "own", model, lora=lora)
    harness, prompt = EngineHarness(model), prompt_of(12)
    (answer,) = harness.run(request_scores(harness, prompt, harness.load(path)))
    assert_logits_match(scores_of(answer)[None], PeftClassifier(path, model).scores(prompt)[None], TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["pytorch", "generic", "native"])
def test_in_bf16_it_errs_no_more_than_peft(tmp_path: Path, kernels: str) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    path = make_classifier(tmp_path / "five", model, labels=list("abcde"))
    chosen = "native" if kernels == "native" else "pytorch"
    harness = EngineHarness(model, generic=kernels == "generic", dtype="bf16", kernels=chosen)
    pages, prompts = harness.load(path), [prompt_of(30, seed) for seed in range(12)]
    writing = harness.sequence(prompt_of(9), max_tokens=3)
    answers = harness.run(writing, *(request_scores(harness, prompt, pages) for prompt in prompts))[1:]
    exact, rounded = PeftClassifier(path, model, 5), PeftClassifier(path, model, 5, torch.bfloat16)
    ours = theirs = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        want = exact.scores(prompt)
        ours += float((scores_of(answer) - want).norm() / want.norm())
        theirs += float((rounded.scores(prompt) - want).norm() / want.norm())
    assert ours <= 1.3 * theirs + 1e-3
    assert ours < 0.05 * len(prompts)
