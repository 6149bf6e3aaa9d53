"""Answers to fixed prompts while a run goes on, base beside adapter."""

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from manylora.adapters.training.model.forward import Answered
from manylora.adapters.training.session.metrics_log import MetricsLog

Answer = Callable[[Any], list[Answered]]  # takes a model


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the answers to metrics.jsonl at every evaluation; the base's are computed once."""

    def __init__(
        self,
        log: MetricsLog,
        prompts: Sequence[str],
        answer: Answer,
        decode: Callable[[list[int]], str],
        base: Any,
    ) -> None:
        self._log = log
        self._prompts = prompts
        self._answer = answer
        self._decode = decode
        self._base = [decode(answered.token_ids) for answered in answer(base)]

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        answers = [self._decode(answered.token_ids) for answered in self._answer(model)]
        for prompt, base, adapter in zip(self._prompts, self._base, answers, strict=True):
            self._log.write("sample", state.global_step, {"prompt": prompt, "base": base, "adapter": adapter})
