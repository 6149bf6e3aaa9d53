"""Tokens that a request allows, and words that it forbids: what may be drawn, whoever shares the batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.engine.token_mask import TokenMask
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.grammars.spec import GrammarSpec
from tests.support.adapter_set import recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.grammars import compiled
from tests.support.tiny_models import VOCAB
from tests.support.vocabulary_adapters import GROWN, make

END = 258
FEW = tuple(range(0, 40, 3))


def packed(tokens: set[int], words: int) -> np.ndarray:
    """The bits of ``tokens`` as grammars have them."""
    flags = np.zeros(words * 32, bool)
    flags[sorted(tokens)] = True
    return np.packbits(flags, bitorder="little").view(np.int32)


def allowed_by(
    width: int, allowed: tuple[int, ...] | None, words: list[tuple[int, ...]], output: list[int]
) -> set[int]:
    """What may follow ``output``, word by word."""
    left = set(range(width)) if allowed is None else {token for token in allowed if token < width}
    for *before, last in words:
        if output[len(output) - len(before) :] == before:
            left.discard(last)
    return left


ids = st.integers(0, 69)
words_of = st.lists(st.lists(st.integers(0, 3) | ids, min_size=1, max_size=4).map(tuple), max_size=12)


@dataclass(frozen=True)
class Case:
    """What decides about one token."""

    width: int
    allowed: tuple[int, ...] | None
    words: list[tuple[int, ...]]
    prompt: list[int]
    output: list[int]
    grammar: set[int] | None
    held: list[int]


CASES = st.builds(
    Case,
    width=st.integers(33, 70),
    allowed=st.none() | st.lists(ids, min_size=1, max_size=40).map(tuple),
    words=words_of,
    prompt=st.lists(st.integers(0, 3), max_size=4),
    output=st.lists(st.integers(0, 3), max_size=6),
    grammar=st.none() | st.sets(st.integers(0, 95)),
    held=st.lists(ids, max_size=3),
)


@given(CASES)
def test_bits_are_what_may_follow(case: Case) -> None:
    mask = TokenMask(case.allowed, case.words)
    start = len(case.prompt)
    first = mask.fill(case.width, case.prompt, start, None, [])
    bits = None if case.grammar is None else packed(case.grammar, 3)
    found = mask.fill(case.width, [*case.prompt, *case.output], start, bits, case.held)
    assert found is first  # in place
    expected = allowed_by(case.width, case.allowed, case.words, case.output) - set(case.held)
    if case.grammar is not None:
        expected &= case.grammar
    assert mask.is_empty == (not expected)
    if expected:
        flags = np.unpackbits(found.view(np.uint8), bitorder="little")
        assert set(np.flatnonzero(flags).tolist()) == expected


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engines(request: pytest.FixtureRequest, tiny_llama: Path) -> EngineHarness:
    """Plain PyTorch, and native kernels where they run."""
    return EngineHarness(tiny_llama, dtype=request.param, num_blocks=600)


@pytest.fixture(scope="module")
def adapters(engines: EngineHarness, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Any:
    """A plain one, and one with tokens of its own."""
    root = tmp_path_factory.mktemp("adapters")
    plain = write_adapter(root / "plain", engines.base, rank=4, targets="all-linear")
    grown = make(
        root / "grown",
        tiny_llama,
        seed=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        rows=GROWN,
    )
    return engines.load(plain), engines.load(grown)


@pytest.fixture(scope="module")
def letters(engines: EngineHarness) -> CompiledGrammar:
    spec = GrammarSpec.regex("[a-e]{2,40}", param="guided_regex")
    (made,) = compiled([spec], engines.loaded.tokenizer, engines.decoder.vocab_size)
    assert isinstance(made, CompiledGrammar), made
    return made


def ask(engines: EngineHarness, number: int, *members: Any, **params: Any) -> Sequence:
    prompt = [random.Random(number).randrange(200) for _ in range(1 + number % 30)]
    defaults = {"max_tokens": 30, "temperature": 1.2, "ignore_eos": False, "seed": number}
    return engines.sequence(prompt, *members, **{**defaults, **params})


def pairs(*tokens: int) -> tuple[tuple[int, ...], ...]:
    """All words of two of ``tokens``."""
    return tuple((a, b) for a in tokens for b in tokens)


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"allowed_tokens": FEW},
    {"allowed_tokens": FEW, "bad_words": pairs(0, 3, 6, 9), "temperature": 0.0},
    {"bad_words": ((5,), (7, 8)), "top_k": 3, "logit_bias": {5: 60.0, 7: 50.0, 8: 50.0}},
    {"allowed_tokens": (*FEW, END), "min_tokens": 25, "frequency_penalty": 1.0, "logprobs": 2},
    {"allowed_tokens": (1, 2, 3, END), "ignore_eos": True, "top_p": 0.8, "repetition_penalty": 1.4},
    {"allowed_tokens": (1, 2, 3, 4), "stop_token_ids": (4,), "min_tokens": 12, "min_p": 0.01},
    {"bad_words": pairs(64, 65, 66, 67, 68), "grammar": True},
)


def mixed(engines: EngineHarness, adapters: Any, grammar: CompiledGrammar) -> list[Sequence]:
    asked = []
    for number in range(3 * len(KINDS)):
        kind = dict(KINDS[number % len(KINDS)])
        members = [] if number % 3 == 0 else [(adapters[number % 3 - 1], 1.0)]
        if kind.pop("grammar", None):
            kind["grammar"] = grammar
        elif number % 3 == 2:  # tokens that the base lacks
            kind["logit_bias"] = {**kind.get("logit_bias", {}), GROWN - 1: 20.0}
        asked.append(ask(engines, number, *members, **kind))
    return asked


def facts(answer: Answer) -> tuple[Any, ...]:
    logprobs = [entry for delta in answer.deltas for entry in delta.logprobs]
    last = answer.last
    return answer.text, answer.token_ids, last.finish_reason, last.stop_reason, last.error, logprobs


def test_only_what_is_allowed_is_drawn(
    engines: EngineHarness, adapters: Any, letters: CompiledGrammar
) -> None:
    engines.new_engine()
    asked = mixed(engines, adapters, letters)
    for sequence, answer in zip(asked, engines.run(*asked), strict=True):
        params, output = sequence.params, answer.token_ids
        width = max(VOCAB, sequence.vocab_size)
        words = list(params.bad_words)
        for place, token in enumerate(output):
            assert token in allowed_by(width, params.allowed_tokens, words, output[:place])
        if params.min_tokens:
            assert len(output) >= params.min_tokens
        if params.grammar is not None:
            assert set(answer.text) <= set("abcde")


def test_a_row_is_what_it_is_alone(engines: EngineHarness, adapters: Any, letters: CompiledGrammar) -> None:
    """Also those without any of it, in a batch without any."""
    engines.new_engine()
    together = [facts(a) for a in engines.run(*mixed(engines, adapters, letters))]
    for index, expected in enumerate(together):
        engines.new_engine()
        (alone,) = engines.run(mixed(engines, adapters, letters)[index])
        assert facts(alone)[:5] == expected[:5]
    engines.new_engine(num_blocks=12, max_batch_tokens=24)
    asked = mixed(engines, adapters, letters)
    found = [facts(a)[:5] for a in engines.run(*asked)]
    assert sum(sequence.num_preemptions for sequence in asked) > 3
    assert found == [expected[:5] for expected in together]


def test_greedy_answers_are_the_likeliest_of_what_is_left(engines: EngineHarness) -> None:
    engines.new_engine()
    words = [(5,), (0, 3), (3, 3), (6, 0, 9)]
    asked = [
        ask(engines, seed, temperature=0.0, allowed_tokens=(*FEW, 5), bad_words=tuple(words), logprobs=1)
        for seed in range(6)
    ]
    with recorded_logits() as logits:
        answers = engines.run(*asked)
    for sequence, answer in zip(asked, answers, strict=True):
        assert answer.last.finish_reason is FinishReason.LENGTH
        scores = [entry for delta in answer.deltas for entry in delta.logprobs]
        for place, (row, token, score) in enumerate(
            zip(logits[sequence.id], answer.token_ids, scores, strict=True)
        ):
            left = sorted(allowed_by(VOCAB, (*FEW, 5), words, answer.token_ids[:place]))
            assert token == left[int(row[left].argmax())]
            whole = torch.log_softmax(row.float(), -1)  # of the model, whatever was left
            assert score.logprob == pytest.approx(float(whole[token]), abs=1e-5)
            assert score.top[0][0] == int(whole.argmax())


def test_what_leaves_no_token_ends_that_answer_only(engines: EngineHarness, letters: CompiledGrammar) -> None:
    engines.new_engine()
    stuck: list[tuple[dict[str, Any], str, int]] = [
        ({"allowed_tokens": (END,), "min_tokens": 3}, "allowed_token_ids", 0),
        ({"allowed_tokens": (7,), "bad_words": ((7, 7, 7),)}, "allowed_token_ids", 2),
        ({"bad_words": tuple((token,) for token in range(VOCAB))}, "bad_words", 0),
        ({"allowed_tokens": (1, 2), "grammar": letters}, "allowed_token_ids", 0),
        ({"allowed_tokens": (64,), "grammar": letters, "max_tokens": 60}, "allowed_token_ids", 40),
    ]
    asked = [ask(engines, 9, **params) for params, _, _ in stuck]
    free = [ask(engines, seed, max_tokens=50, ignore_eos=True) for seed in range(3)]
    answers = engines.run(*asked, *free)
    for (_, param, count), answer in zip(stuck, answers, strict=False):
        last = answer.last
        assert (last.finish_reason, last.param, last.code) == (FinishReason.ERROR, param, "no_token_left")
        assert last.error is not None
        assert f"after {count} tokens" in last.error
        assert len(answer.token_ids) == count
    assert all(answer.last.finish_reason is FinishReason.LENGTH for answer in answers[len(stuck) :])


def test_a_bad_word_of_the_prompt_counts_for_nothing(engines: EngineHarness) -> None:
    engines.new_engine()
    forced: dict[str, Any] = {"logit_bias": {8: 80.0}, "temperature": 0.0, "max_tokens": 4}
    sequence = engines.sequence([1, 2, 7], bad_words=((7, 8), (8, 8, 8)), **forced)
    (answer,) = engines.run(sequence)
    assert answer.token_ids[:2] == [8, 8]
    assert answer.token_ids[2] != 8
