"""Answers that follow grammars, beside others that do not: what each is does not depend on the others."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapters import write_adapter
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.grammars import compiled
from tests.support.json_schemas import KEPT, I, closed

WORDS = "(one|two|three)( (one|two|three)){0,30}"
PERSON = closed(
    {
        "name": {"type": "string", "maxLength": 12},
        "age": I,
        "tags": {"type": "array", "items": I, "maxItems": 3},
    }
)
CLOSING = {ord(c) - 33: 4.0 for c in '"}]'}  # printable characters are tokens 0.. of the byte vocabulary


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engines(request: pytest.FixtureRequest, tiny_llama: Path) -> EngineHarness:
    """Plain PyTorch, and native kernels where they run."""
    return EngineHarness(tiny_llama, dtype=request.param, num_blocks=600)


@pytest.fixture(scope="module")
def words(engines: EngineHarness) -> CompiledGrammar:
    return of(engines, GrammarSpec.regex(WORDS, param="p"))


@pytest.fixture(scope="module")
def person(engines: EngineHarness) -> CompiledGrammar:
    return of(engines, GrammarSpec.json_schema(PERSON, param="p"))


@pytest.fixture(scope="module")
def adapter(engines: EngineHarness, tmp_path_factory: pytest.TempPathFactory) -> AdapterPages:
    path = write_adapter(tmp_path_factory.mktemp("a") / "a", engines.base, rank=4, targets="all-linear")
    return engines.load(path)


def of(engines: EngineHarness, spec: GrammarSpec) -> CompiledGrammar:
    (made,) = compiled([spec], engines.loaded.tokenizer, engines.decoder.vocab_size)
    assert isinstance(made, CompiledGrammar), made
    return made


def ask(engines: EngineHarness, number: int = 0, *members: Any, **params: Any) -> Sequence:
    prompt = [random.Random(number).randrange(256) for _ in range(1 + number % 40)]
    defaults = {"max_tokens": 200, "temperature": 1.5, "ignore_eos": False, "seed": number}
    return engines.sequence(prompt, *members, **{**defaults, **params})


def facts(answer: Answer) -> tuple[Any, ...]:
    logprobs = [entry for delta in answer.deltas for entry in delta.logprobs]
    return answer.text, answer.token_ids, answer.last.finish_reason, answer.last.stop_reason, logprobs


def test_answers_of_every_schema_are_valid(engines: EngineHarness) -> None:
    """Drawn by a model of random weights, all in one batch."""
    specs = [GrammarSpec.json_schema(case.schema, param="p") for case in KEPT]
    grammars = compiled(specs, engines.loaded.tokenizer, engines.decoder.vocab_size)
    engines.new_engine()
    asked = [
        ask(engines, i, grammar=made, max_tokens=120, logit_bias=CLOSING) for i, made in enumerate(grammars)
    ]
    answers = engines.run(*asked)
    ended = 0
    for case, answer in zip(KEPT, answers, strict=True):
        if answer.last.finish_reason is FinishReason.STOP:
            jsonschema.Draft202012Validator(case.schema).validate(json.loads(answer.text))
            ended += 1
        else:
            assert answer.last.finish_reason is FinishReason.LENGTH, (case.name, answer.last)
    assert ended > 0.8 * len(KEPT)


PARAMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
    {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
    {"logprobs": 3, "logit_bias": {20: 50.0}},
    {"min_tokens": 40},
    {"min_tokens": 190},
    {"ignore_eos": True},
    {"max_tokens": 9},
    {"stop": ("two", "ee o")},
    {"stop_token_ids": (256, 86)},
    {"stop_token_ids": (256,), "min_tokens": 10, "ignore_eos": True},
)


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_grammars_with_every_parameter(
    engines: EngineHarness, words: CompiledGrammar, params: dict[str, Any]
) -> None:
    engines.new_engine()
    answers = engines.run(*(ask(engines, seed, grammar=words, **params) for seed in range(8)))
    for answer in answers:
        least = params.get("min_tokens", 0)
        if answer.last.finish_reason is FinishReason.STOP and answer.last.stop_reason not in params.get(
            "stop", ()
        ):
            assert re.fullmatch(WORDS, answer.text) or answer.last.stop_reason == 86, answer.text
        else:
            beginning = re.match(WORDS + "|", answer.text + "one")
            assert beginning is not None
            assert all(word in ["one", "two", "three"] for word in answer.text.split()[:-1])
        assert len(answer.token_ids) >= min(least, 30 * 4)
        assert len(answer.token_ids) <= params.get("max_tokens", 200)
    if params.get("max_tokens") == 9:
        assert {answer.last.finish_reason for answer in answers} >= {FinishReason.LENGTH}
    if params.get("ignore_eos") and "stop_token_ids" not in params:
        assert all(len(answer.text.split()) == 31 for answer in answers)


def test_a_complete_answer_ends_whatever_its_minimum_is(engines: EngineHarness) -> None:
    engines.new_engine()
    yes = of(engines, GrammarSpec.choice(["yes"], param="p"))
    for params in (
        {"min_tokens": 50},
        {"ignore_eos": True},
        {"min_tokens": 50, "ignore_eos": True},
        {"min_tokens": 9, "stop_token_ids": (256,)},
    ):
        (answer,) = engines.run(ask(engines, grammar=yes, **params))
        assert (answer.text, answer.last.finish_reason) == ("yes", FinishReason.STOP)


def test_logprobs_are_the_models_own(engines: EngineHarness) -> None:
    """Of a token that the grammar forces they say how unlikely it was."""
    engines.new_engine()
    yes = of(engines, GrammarSpec.choice(["yes"], param="p"))
    (answer,) = engines.run(ask(engines, grammar=yes, logprobs=2, temperature=0.0))
    (free,) = engines.run(ask(engines, logprobs=2, temperature=0.0, max_tokens=1))
    first = answer.deltas[0].logprobs[0]
    assert first.token_id == engines.loaded.tokenizer.encode("y")[0]
    assert first.top == free.deltas[0].logprobs[0].top
    assert first.logprob < first.top[-1][1]


def mixed(engines: EngineHarness, grammars: list[CompiledGrammar], adapter: AdapterPages) -> list[Sequence]:
    """Requests with and without grammars, of every kind that a step looks at."""
    asked = []
    for seed in range(18):
        members = [(adapter, 1.0)] if seed % 3 == 1 else []
        made = grammars[seed % len(grammars)] if seed % 4 else None
        choices: list[dict[str, Any]] = [
            {},
            {"temperature": 0.0},
            {"frequency_penalty": 0.5, "logprobs": 2},
            {"top_k": 4, "min_tokens": 20},
        ]
        params = choices[seed % 4]
        asked.append(ask(engines, seed, *members, grammar=made, max_tokens=60, **params))
    return asked


def test_a_row_is_what_it_is_alone(
    engines: EngineHarness, words: CompiledGrammar, person: CompiledGrammar, adapter: AdapterPages
) -> None:
    """Answers with a grammar equal themselves alone, and those without one equal a batch without any."""
    engines.new_engine()
    together = engines.run(*mixed(engines, [words, person], adapter))
    for index in range(18):
        engines.new_engine()
        (alone,) = engines.run(mixed(engines, [words, person], adapter)[index])
        assert facts(alone)[:4] == facts(together[index])[:4]
    engines.new_engine()
    free = [s for s in mixed(engines, [words, person], adapter) if s.grammar is None]
    assert [facts(a) for a in engines.run(*free)] == [facts(together[i]) for i in range(0, 18, 4)]


def test_few_blocks_and_few_rows_change_nothing(
    engines: EngineHarness, words: CompiledGrammar, person: CompiledGrammar, adapter: AdapterPages
) -> None:
    """Preempted answers are computed again from their tokens; where they stand in their grammars stays."""
    engines.new_engine()
    expected = [facts(a)[:4] for a in engines.run(*mixed(engines, [words, person], adapter))]
    engines.new_engine(num_blocks=14, max_batch_tokens=24)
    asked = mixed(engines, [words, person], adapter)
    found = engines.run(*asked)
    assert sum(sequence.num_preemptions for sequence in asked) > 3
    assert [facts(a)[:4] for a in found] == expected


def test_siblings_share_the_prompt_and_differ_in_their_seed(
    engines: EngineHarness, person: CompiledGrammar
) -> None:
    engines.new_engine()
    first = ask(engines, 33, grammar=person, seed=1)
    others = [ask(engines, 33, grammar=person, seed=seed) for seed in (2, 3, 1)]
    for other in others:
        other.leader = first
    answers = engines.run(first, *others)
    assert answers[0].text == answers[3].text
    assert len({answer.text for answer in answers}) > 1
    assert others[0].num_cached_tokens > 0
    for answer in answers:
        if answer.last.finish_reason is FinishReason.STOP:
            jsonschema.Draft202012Validator(PERSON).validate(json.loads(answer.text))


def test_a_grammar_that_fails_ends_its_answer_only(
    engines: EngineHarness, words: CompiledGrammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.new_engine()
    asked = [
        ask(engines, seed, grammar=words if seed % 2 else None, max_tokens=30, min_tokens=20)
        for seed in range(4)
    ]
    broken = asked[1].grammar
    assert broken is not None
    real = type(broken).advance

    def take(self: Any, tokens: list[int]) -> None:
        if self is broken and self.num_taken == 5:
            raise RuntimeError("a defect")
        real(self, tokens)

    monkeypatch.setattr(type(broken), "advance", take)
    answers = engines.run(*asked)
    last = answers[1].last
    assert (last.finish_reason, last.param) == (FinishReason.ERROR, "p")
    assert last.error is not None
    assert len(answers[1].token_ids) == 6  # the last of which could not be followed
    for answer in (answers[0], answers[2], answers[3]):
        assert answer.last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)


def test_a_step_that_fails_leaves_the_masks_usable(
    engines: EngineHarness, words: CompiledGrammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.new_engine()
    real = engines.decoder.step

    def failing(_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engines.decoder, "step", failing)
    engine.add(ask(engines, 3, grammar=words))
    with pytest.raises(RuntimeError):
        engine.advance()
    engine.fail_all("failed")
    monkeypatch.setattr(engines.decoder, "step", real)
    (answer,) = engines.run(ask(engines, 3, grammar=words))
    assert answer.text
