"""What a comparison finds, gathered window by window, and its JSON."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

import torch

from manylora.server.comparison.divergence import Distances, Scores, distances, scores
from manylora.server.comparison.verdict import Level, level_of, verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """What one target answered to one prompt, and how fast."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None
    prompt_tokens: int
    cached_tokens: int
    ttft: float  # seconds from submission to the first token
    total: float  # seconds from submission to the end

    def json(self, target: int, baseline: Answer) -> dict[str, Any]:
        """``baseline``: the answer to say the first differing token against."""
        count, after = len(self.token_ids), self.total - self.ttft
        return {
            "target": target,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": count,
            "ttft_seconds": self.ttft,
            "total_seconds": self.total,
            "tokens_per_second": (count - 1) / after if count > 1 and after > 0 else None,
            "departs_at": _departs_at(baseline.token_ids, self.token_ids),
        }


def _departs_at(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two answers differ; None if they are the same."""
    if one == other:
        return None
    same = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(same, min(len(one), len(other)))


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive positions of the reference, scored by every distinct model."""

    scores: tuple[Scores, ...]  # by model
    distances: tuple[Distances | None, ...]  # by model, from the baseline's; None for that itself


def measure(rows: Sequence[torch.Tensor], tokens: Sequence[int], baseline: int) -> Window:
    """Score ``tokens`` [n] under the logits [n, V] of each model, and compare those with the baseline's.

    Raises:
        NotNumbers: a model's logits are no distribution.
    """
    return Window(
        tuple(scores(logits, tokens) for logits in rows),
        tuple(
            None if model == baseline else distances(rows[baseline], logits)
            for model, logits in enumerate(rows)
        ),
    )


@dataclass
class ModelScores:
    """One distinct model's scores of a reference by position, and its distance from the baseline."""

    logprobs: list[float] = field(default_factory=list)
    top1: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    js: list[float] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)

    def take(self, found: Scores, apart: Distances | None) -> None:
        """Append a window's positions; without ``apart`` this is the baseline, at distance 0."""
        zeros = [0.0] * len(found.logprobs)
        self.logprobs += found.logprobs
        self.top1 += found.top1
        self.kl += zeros if apart is None else apart.kl
        self.js += zeros if apart is None else apart.js
        self.logits += zeros if apart is None else apart.logits


class Words(Protocol):
    """What shows tokens to people: a tokenizer."""

    def token_text(self, token_id: int) -> str:
        """Text of one token alone."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, exact also for a part of a character."""


@dataclass(frozen=True)
class Case:
    """One prompt: its answers, the reference that was scored, and the scores of every target."""

    answers: tuple[Answer, ...]  # by target; empty if none were asked for
    source: int | None  # the target whose answer is the reference; None: it was given
    reference: str
    token_ids: tuple[int, ...]
    models: tuple[int, ...]  # by target: its index in ``scores``
    scores: tuple[ModelScores, ...]  # by distinct model


class Report:
    """A whole comparison in JSON. The baseline is the target that the others are compared with."""

    def __init__(self, targets: Sequence[tuple[str, str]], baseline: int, words: Words) -> None:
        """``targets``: each as it was asked for, and the revisions that answer."""
        self._targets = targets
        self._baseline = baseline
        self._words = words
        self._cases: list[Case] = []

    def add(self, case: Case) -> None:
        self._cases.append(case)

    def json(self) -> dict[str, Any]:
        """The whole comparison in JSON, the verdict last."""
        summary = [self._summary(target) for target in range(len(self._targets))]
        judged = [
            (self._targets[entry["target"]][0], Level(entry["level"]))
            for entry in summary
            if entry["target"] != self._baseline
        ]
        return {
            "baseline": self._baseline,
            "targets": [{"target": asked, "model": model} for asked, model in self._targets],
            "cases": [self._case(case) for case in self._cases],
            "summary": summary,
            "verdict": verdict(self._targets[self._baseline][0], judged),
        }

    def _case(self, case: Case) -> dict[str, Any]:
        text = self._words.token_text
        pieces = split(self._words, case.token_ids)
        own = [case.scores[model] for model in case.models]
        return {
            "answers": [
                answer.json(target, case.answers[self._baseline])
                for target, answer in enumerate(case.answers)
            ],
            "reference": {
                "target": case.source,
                "text": case.reference,
                "tokens": [{"id": t, "text": piece} for t, piece in zip(case.token_ids, pieces, strict=True)],
            },
            "scores": [
                {
                    "target": target,
                    "logprobs": scores.logprobs,
                    "top_tokens": [text(token) for token in scores.top1],
                    "perplexity": _perplexity(scores.logprobs),
                }
                for target, scores in enumerate(own)
            ],
            "pairs": [
                self._pair(case, target, own[self._baseline], own[target])
                for target in range(len(own))
                if target != self._baseline
            ],
        }

    def _pair(self, case: Case, target: int, base: ModelScores, other: ModelScores) -> dict[str, Any]:
        agrees = [a == b for a, b in zip(base.top1, other.top1, strict=True)]
        first = agrees.index(False) if False in agrees else None
        text = self._words.token_text
        return {
            "target": target,
            "same_model": case.models[target] == case.models[self._baseline],
            "kl": other.kl,
            "js": other.js,
            "logit_difference": other.logits,
            "top1_agrees": agrees,
            "first_divergent": None
            if first is None
            else {"position": first, "baseline": text(base.top1[first]), "target": text(other.top1[first])},
        }

    def _summary(self, target: int) -> dict[str, Any]:
        """The measures of one target over all prompts, in JSON."""
        own = [case.scores[case.models[target]] for case in self._cases]
        base = [case.scores[case.models[self._baseline]] for case in self._cases]
        kl = [x for scores in own for x in scores.kl]
        js = [x for scores in own for x in scores.js]
        agrees = [
            a == b
            for one, other in zip(base, own, strict=True)
            for a, b in zip(one.top1, other.top1, strict=True)
        ]
        return {
            "target": target,
            "positions": len(kl),
            "perplexity": _perplexity([x for scores in own for x in scores.logprobs]),
            "mean_kl": fmean(kl),
            "max_kl": max(kl),
            "mean_js": fmean(js),
            "max_js": max(js),
            "top1_agreement": fmean(agrees),
            "largest_logit_difference": max(x for scores in own for x in scores.logits),
            "level": level_of(fmean(kl), max(kl)).value,
        }


def split(words: Words, token_ids: Sequence[int]) -> list[str]:
    """The text of consecutive tokens; a character of several goes to the one that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(token_ids) - 1
    return [decoder.decode(words.token_bytes(t), final=i == last) for i, t in enumerate(token_ids)]


def _perplexity(logprobs: Sequence[float]) -> float:
    """exp of the mean negative log-probability; capped where that would overflow."""
    return math.exp(min(-fmean(logprobs), 700.0))
