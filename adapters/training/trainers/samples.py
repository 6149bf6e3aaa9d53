"""Answers to fixed prompts while a run goes on, base beside adapter."""

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from manylora.adapters.training.data.prompts import Prompt, row_prompts, shown_prompts
from manylora.adapters.training.decoder.choice import fused_decoder
from manylora.adapters.training.decoder.decoder import FusedDecoder
from manylora.adapters.training.decoder.greedy import answer_tokens
from manylora.adapters.training.model.forward import Answered, greedy, sample_prompt_ids, until_end
from manylora.adapters.training.session.metrics_log import MetricsLog, sample_line
from manylora.adapters.training.session.processes import is_main_process
from manylora.adapters.training.session.session import Session
from manylora.adapters.training.trainers.late_epochs import ends_late_epoch


class Sampler:
    """Answers prompts and logs the answers; those of the base are found before an init can change it."""

    def __init__(self, session: Session, log: MetricsLog, prompts: Sequence[Prompt], base: Any) -> None:
        self._session, self._log, self._prompts = session, log, prompts
        self.decoder: FusedDecoder | None = None  # by which the run's adapter answers, where there is one
        of_base = fused_decoder(base, [{}], session.config, session.prepared.train.sequences)
        self._base = self._texts(self._answers(base, of_base, adapted=0))

    def sample(self, model: Any, step: int) -> None:
        """Log what ``model`` answers at ``step``."""
        answers = self._texts(self._answers(model, self.decoder, adapted=len(self._prompts)))
        for prompt, base, adapter in zip(self._prompts, self._base, answers, strict=True):
            self._log.write("sample", step, sample_line(prompt, base, adapter))

    def _answers(self, model: Any, decoder: FusedDecoder | None, *, adapted: int) -> list[Answered]:
        base, limit = self._session.base, self._session.config.sample_tokens
        prompts = [prompt.ids for prompt in self._prompts]
        if decoder is None:
            return greedy(model, prompts, eos_ids=base.eos_ids, pad_id=base.pad_id, max_new_tokens=limit)
        rows = answer_tokens(decoder, prompts, adapted=adapted, ends=base.eos_ids, limit=limit)
        return [until_end(row, base.eos_ids) for row in rows]

    def _texts(self, answers: Sequence[Answered]) -> list[str]:
        decode = self._session.base.tokenizer.decode
        return [decode(answered.token_ids) for answered in answers]


class PromptSamples(TrainerCallback):  # type: ignore[misc]
    """Answers to given prompts at every evaluation."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.sampler.sample(model, state.global_step)


class RowSamples(TrainerCallback):  # type: ignore[misc]
    """Answers to rows' prompts at the ends of the last epochs."""

    def __init__(self, sampler: Sampler, *, stops_early: bool) -> None:
        self.sampler, self._stops_early = sampler, stops_early

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if ends_late_epoch(state, stops_early=self._stops_early):
            self.sampler.sample(model, state.global_step)


def sample_callbacks(model: Any, session: Session, log: MetricsLog) -> list[PromptSamples | RowSamples]:
    """What answers while a run goes on, where that is asked for; ``model`` is the untouched base."""
    config = session.config
    if not is_main_process():
        return []
    found: list[PromptSamples | RowSamples] = []
    if config.sample_prompts:
        ids = sample_prompt_ids(session.base.template, config.sample_prompts)
        prompts = shown_prompts(config.sample_prompts, ids)
        found.append(PromptSamples(Sampler(session, log, prompts, model)))
    rows = prompts_of_rows(session)
    if rows:
        stops_early = config.early_stopping_patience is not None
        found.append(RowSamples(Sampler(session, log, rows, model), stops_early=stops_early))
    return found


def prompts_of_rows(session: Session) -> list[Prompt]:
    """The rows that ``sample_rows`` asks for, with room for an answer in what the base reads."""
    config, most = session.config, session.base.max_length
    longest = None if most is None else most - config.sample_tokens
    return row_prompts(session.prepared, config.sample_rows, longest, session.base.tokenizer.decode)
