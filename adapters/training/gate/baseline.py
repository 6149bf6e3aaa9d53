"""How a finished adapter and its base score on held-out rows, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.prepare import WRITING
from manylora.adapters.training.data.prompts import Prompt, asked, shown_prompts
from manylora.adapters.training.data.template import IGNORED, EncodedPair, EncodedText
from manylora.adapters.training.decoder.choice import fused_peft
from manylora.adapters.training.decoder.decoder import FusedDecoder
from manylora.adapters.training.decoder.decoder import scores as decoded_scores
from manylora.adapters.training.decoder.greedy import answer_tokens
from manylora.adapters.training.gate.retrieval import embedding_scores
from manylora.adapters.training.model.forward import (
    Answered,
    class_logits,
    greedy,
    learned_ids,
    learned_logits,
    learned_scores,
    sample_prompt_ids,
    until_end,
)
from manylora.adapters.training.model.loading import Finished
from manylora.adapters.training.session.session import Session

_MAIN_SCORES = {
    "sft": ("loss",),
    "dpo": ("better answer likelier", "margin"),
    "classification": ("accuracy",),
    "embedding": ("accuracy@1", "rank correlation"),
}
MAX_EXACT_TOKENS = 32  # answers of that length can be expected to be repeated exactly
MAX_GENERATED = 16  # held-out rows that are answered
MAX_SAMPLES = 4  # held-out rows shown where no sample prompts are given


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with both answers."""

    prompt: Prompt
    base: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """Scores by name, of the base and with the adapter; higher is better for all but loss."""

    base: dict[str, float]
    adapter: dict[str, float]
    samples: tuple[Sample, ...]


def worse_than_base(baseline: Baseline, task: str) -> tuple[str, ...]:
    """A sentence for each main score of ``task`` by which the result is worse than the base."""
    found = []
    for name in _MAIN_SCORES[task]:
        base, adapter = baseline.base.get(name), baseline.adapter.get(name)
        if base is None or adapter is None:
            continue
        if adapter > base if name == "loss" else adapter < base:
            found.append(
                f"on the held-out rows its {name} is {adapter:.3f}, worse than the base's {base:.3f}: train "
                f"fewer steps, lower the learning rate, or look at the data"
            )
    return tuple(found)


def measure_baseline(finished: Finished, session: Session, rows: Sequence[Prompt] = ()) -> Baseline:
    """Measure what was read back, and the base, on the held-out rows; ``rows`` are answered as well."""
    held_out = () if session.prepared.eval is None else session.prepared.eval.sequences
    scores: list[dict[str, float]] = [{}, {}]
    items = held_out or session.prepared.train.sequences
    writes = session.config.task in WRITING
    decoder = (
        None if session.config.is_full or not writes else fused_peft(finished.model, session.config, items)
    )
    if held_out and decoder is not None:
        scores = [_decoded_scores(decoder, held_out, adapter) for adapter in (None, 0)]
    elif held_out:
        with finished.base() as base_model:
            scores[0] = _scores(base_model, held_out, session)
        scores[1] = _scores(finished.model, held_out, session)
    if session.config.task == "classification" and held_out:
        scores[0] = _majority(session, held_out)
    if not writes:
        return Baseline(scores[0], scores[1], ())
    base, adapter, samples = _generated(finished, decoder, session, held_out, rows)
    return Baseline(scores[0] | base, scores[1] | adapter, samples)


def _decoded_scores(decoder: FusedDecoder, items: Sequence[Item], adapter: int | None) -> dict[str, float]:
    loss, accuracy = decoded_scores(decoder, [learned_ids(item) for item in items], adapter=adapter)
    return {"loss": loss, "token accuracy": accuracy}


def _scores(model: Any, items: Sequence[Item], session: Session) -> dict[str, float]:
    pad_id = session.base.pad_id
    if session.config.task == "classification":
        texts = [item for item in items if isinstance(item, EncodedText)]
        logits = class_logits(model, [item.input_ids for item in texts], pad_id)
        labels = torch.tensor([item.label for item in texts])
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return {"loss": float(functional.cross_entropy(logits, labels)), "accuracy": accuracy}
    if session.config.task == "embedding":
        return embedding_scores(model, items, session)
    if session.config.task == "dpo":
        return _preference_scores(model, items, pad_id)
    loss, accuracy = learned_scores(model, items, pad_id)
    return {"loss": loss, "token accuracy": accuracy}


def _preference_scores(model: Any, items: Sequence[Item], pad_id: int) -> dict[str, float]:
    """How often the better answer is the likelier one, and by how much (nats) on average."""
    rows = []
    for item in items:
        if isinstance(item, EncodedPair):
            for answer in (item.chosen_ids, item.rejected_ids):
                labels = [IGNORED] * len(item.prompt_ids) + answer
                rows.append((item.prompt_ids + answer, labels))
    likelihoods = [
        -float(functional.cross_entropy(logits, labels, reduction="sum"))
        for logits, labels in learned_logits(model, rows, pad_id)
    ]
    margins = torch.tensor(likelihoods[::2]) - torch.tensor(likelihoods[1::2])
    return {"better answer likelier": float((margins > 0).float().mean()), "margin": float(margins.mean())}


def _majority(session: Session, held_out: Sequence[Item]) -> dict[str, float]:
    """The base has no head of its own: what always naming the most frequent class would score."""
    train = [item.label for item in session.prepared.train.sequences if isinstance(item, EncodedText)]
    most = max(set(train), key=train.count)
    labels = [item.label for item in held_out if isinstance(item, EncodedText)]
    return {"accuracy": labels.count(most) / len(labels)}


def _generated(
    finished: Finished,
    decoder: FusedDecoder | None,
    session: Session,
    held_out: Sequence[Item],
    rows: Sequence[Prompt],
) -> tuple[dict[str, float], dict[str, float], tuple[Sample, ...]]:
    """Answers to held-out rows, to the sample prompts and to ``rows``: exact matches, ends, and samples."""
    questions = [found for item in held_out[:MAX_GENERATED] if (found := asked(item))[0]]
    given = session.config.sample_prompts
    extra = shown_prompts(given, sample_prompt_ids(session.base.template, given))
    decode = session.base.tokenizer.decode
    judged = [
        Prompt(decode(ids, skip_special_tokens=False), ids, decode(answer, skip_special_tokens=True))
        for ids, answer in questions
    ]
    prompts = [*judged, *extra, *rows]
    answers = answer_both(finished, decoder, session, [prompt.ids for prompt in prompts])
    scores = [_answer_scores(questions, side[: len(judged)], session) for side in answers]
    first = len(judged) if extra or rows else 0
    last = len(prompts) if extra or rows else min(MAX_SAMPLES, len(judged))
    samples = tuple(
        Sample(prompts[index], decode(answers[0][index].token_ids), decode(answers[1][index].token_ids))
        for index in range(first, last)
    )
    return scores[0], scores[1], samples


def answer_both(
    finished: Finished, decoder: FusedDecoder | None, session: Session, prompts: Sequence[list[int]]
) -> tuple[list[Answered], list[Answered]]:
    """Greedy answers of the base and of the adapter, by the fused decoder in one batch where there is one."""
    options: dict[str, Any] = {
        "eos_ids": session.base.eos_ids,
        "pad_id": session.base.pad_id,
        "max_new_tokens": session.config.sample_tokens,
    }
    if not prompts:
        return [], []
    if decoder is not None:
        ends, limit = session.base.eos_ids, session.config.sample_tokens
        both = answer_tokens(decoder, [*prompts, *prompts], adapted=len(prompts), ends=ends, limit=limit)
        answers = [until_end(row, ends) for row in both]
        return answers[len(prompts) :], answers[: len(prompts)]
    with finished.base() as model:
        base = greedy(model, prompts, **options)
    return base, greedy(finished.model, prompts, **options)


def _answer_scores(
    questions: Sequence[tuple[list[int], list[int]]], answers: Sequence[Answered], session: Session
) -> dict[str, float]:
    if not questions:
        return {}
    scores = {"ends by itself": sum(answer.stopped for answer in answers) / len(answers)}
    longest = max(len(expected) for _, expected in questions)
    if session.config.task == "sft" and longest <= min(MAX_EXACT_TOKENS, session.config.sample_tokens):
        exact = [
            answer.token_ids == [token for token in expected if token not in session.base.eos_ids]
            for (_, expected), answer in zip(questions, answers, strict=True)
        ]
        scores["exact match"] = sum(exact) / len(exact)
    return scores
