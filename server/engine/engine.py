"""The synchronous engine: one step is schedule -> build batch -> run -> sample -> update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

import torch

from manylora.server.engine.batch import Batch, build_batch
from manylora.server.engine.block_manager import BlockManager
from manylora.server.engine.detokenizer import Detokenizer
from manylora.server.engine.prompt_budget import PromptBudget
from manylora.server.engine.sampler import logprobs_of, sample
from manylora.server.engine.scheduler import Scheduled, Scheduler
from manylora.server.engine.sequence import Delta, FinishReason, Logits, Sequence, TokenLogprob, TokenReader
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.text.tokenizer import Tokenizer

Event = tuple[Sequence, Delta]


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine."""

    num_blocks: int  # KV blocks, block 0 included
    max_num_seqs: int
    max_batch_tokens: int
    prefix_cache: bool = True
    max_stretch: float = math.inf  # see PromptBudget


class Engine:
    """Owns scheduler, blocks and decoder. All calls come from one thread."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        fingerprint: str,
        metrics: Metrics,
    ) -> None:
        self.decoder = decoder
        self._tokenizer = tokenizer
        self._metrics = metrics
        self.blocks = BlockManager(config.num_blocks, fingerprint, prefix_cache=config.prefix_cache)
        self._prompt_budget = PromptBudget(config.max_stretch)
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=config.max_num_seqs,
            max_batch_tokens=config.max_batch_tokens,
            prompt_budget=self._prompt_budget,
        )
        self._detokenizers: dict[int, Detokenizer] = {}
        self._events: list[Event] = []  # of the step that runs, so that none is lost if it raises
        metrics.steps.ask(
            running=lambda: len(self.scheduler.running),
            waiting=lambda: len(self.scheduler.waiting),
            kv_used=lambda: self.blocks.num_used,
            kv_total=lambda: self.blocks.num_blocks,
        )

    @property
    def vocab_size(self) -> int:
        """Tokens that the base knows; adapters may know more."""
        return self.decoder.vocab_size

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its events come out of later steps."""
        params = sequence.params
        self._detokenizers[sequence.id] = Detokenizer(
            self._reader(sequence),
            sequence.token_ids,
            stop=params.stop,
            skip_special_tokens=params.skip_special_tokens,
        )
        self.scheduler.add(sequence)

    def step(self) -> list[Event]:
        """Run one step and return what it did to each sequence it touched."""
        began = monotonic()
        self._drop_aborted()
        scheduled = self.scheduler.schedule()
        if scheduled:
            batch = build_batch(scheduled)
            logits = self.decoder.step(batch.inputs)
            tokens = self._sample(logits, batch)
            self._update(logits, batch, tokens)
            self._observe(batch, began)
        return self._take_events()

    def fail_all(self, message: str) -> list[Event]:
        """End every sequence with an error, after a step that raised; also what that step had done before."""
        for sequence in self._live():
            self._end(sequence, Delta(sequence.index, finish_reason=FinishReason.ERROR, error=message))
        return self._take_events()

    def check(self) -> None:
        """Assert the invariants of the block allocator."""
        self.blocks.check(self._live())

    def _live(self) -> list[Sequence]:
        return [*self.scheduler.running, *self.scheduler.waiting]

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _drop_aborted(self) -> None:
        for sequence in self._live():
            if sequence.abort_requested:
                self._end(sequence, Delta(sequence.index, finish_reason=FinishReason.ABORT))

    def _sample(self, logits: torch.Tensor, batch: Batch) -> list[int]:
        if not batch.sampling:
            return []
        tokens = [0] * len(batch.sampling)
        for width, members in self._by_width(batch.sampling, logits).items():
            rows = [batch.sampling[i][1] for i in members]
            chosen = logits if len(rows) == len(logits) else logits[rows]
            drawn = sample(
                chosen[:, :width],
                [batch.sampling[i][0] for i in members],
                self._tokenizer.eos_ids,
                self.decoder.draw,
            )
            for i, token in zip(members, drawn, strict=True):
                tokens[i] = token
        return tokens

    def _by_width(self, wanted: Iterable[tuple[Sequence, int]], logits: torch.Tensor) -> dict[int, list[int]]:
        """The indices of ``wanted`` by the number of tokens its sequences know; mostly one group of all.

        What a sequence draws must not depend on the vocabularies of others in the batch.
        """
        if logits.shape[1] == self.vocab_size:
            return {logits.shape[1]: list(range(len(list(wanted))))}
        groups: dict[int, list[int]] = {}
        for i, (sequence, _) in enumerate(wanted):
            groups.setdefault(self._width(sequence), []).append(i)
        return groups

    def _width(self, sequence: Sequence) -> int:
        """How many tokens the sequence knows, or classes."""
        return sequence.mix.num_classes or max(self.vocab_size, sequence.vocab_size)

    def _update(self, logits: torch.Tensor, batch: Batch, tokens: list[int]) -> None:
        """Account for the computed rows, append the drawn tokens, end what is finished."""
        for item in batch.scheduled:
            self._computed(item)
        for sequence, first, count in batch.scoring:
            self._score_prompt(logits, sequence, first, count)
        for sequence, first, count in batch.wanted:
            self._hand_out(logits[first : first + count, : self._width(sequence)], sequence)
        logprobs = self._logprobs(logits, batch, tokens)
        self._metrics.requests.tokens_after_abort(sum(s.finish_reason is not None for s, _ in batch.sampling))
        for (sequence, _), token in zip(batch.sampling, tokens, strict=True):
            if not sequence.abort_requested:
                self._append(sequence, token, logprobs.get(sequence.id))
        self._end_scored(batch.scheduled)

    def _computed(self, item: Scheduled) -> None:
        sequence = item.sequence
        if sequence.num_computed_tokens == sequence.first_position and not sequence.num_preemptions:
            self._admitted(sequence)
        sequence.num_computed_tokens += item.count
        sequence.uncopied_from = None
        self.blocks.commit(sequence)

    def _admitted(self, sequence: Sequence) -> None:
        assert sequence.first_scheduled is not None
        label = sequence.mix.label
        self._metrics.requests.started(label, sequence.first_scheduled - sequence.arrival)
        prompt_tokens = len(sequence.token_ids)  # with the tokens of the answer that are given
        self._metrics.requests.prompt_tokens(label, prompt_tokens)
        self._metrics.requests.prefix_lookup(prompt_tokens, sequence.num_cached_tokens)

    def _score_prompt(self, logits: torch.Tensor, sequence: Sequence, first: int, count: int) -> None:
        start = len(sequence.prompt_scores) + 1
        following = sequence.token_ids[start : start + count]
        assert sequence.params.prompt_logprobs is not None
        rows = logits[first : first + count, : self._width(sequence)]
        sequence.prompt_scores += logprobs_of(rows, following, sequence.params.prompt_logprobs)

    def _hand_out(self, rows: torch.Tensor, sequence: Sequence) -> None:
        """Deliver the next logits that the sequence was submitted for; the step's own are overwritten."""
        assert sequence.next_logits is not None
        first, sequence.next_logits = sequence.next_logits, sequence.next_logits + len(rows)
        if not sequence.abort_requested:
            copy = torch.empty(rows.shape, dtype=torch.float32).copy_(rows)
            self._events.append((sequence, Delta(sequence.index, logits=Logits(first, copy))))

    def _logprobs(self, logits: torch.Tensor, batch: Batch, tokens: list[int]) -> dict[int, TokenLogprob]:
        wanted = [
            (sequence, row, token)
            for (sequence, row), token in zip(batch.sampling, tokens, strict=True)
            if sequence.params.logprobs is not None
        ]
        if not wanted:
            return {}
        top = max(s.params.logprobs or 0 for s, _, _ in wanted)
        result = {}
        for width, members in self._by_width([(s, row) for s, row, _ in wanted], logits).items():
            chosen = [wanted[i] for i in members]
            found = logprobs_of(logits[[row for _, row, _ in chosen], :width], [t for _, _, t in chosen], top)
            for (s, _, _), lp in zip(chosen, found, strict=True):
                result[s.id] = TokenLogprob(lp.token_id, lp.logprob, lp.top[: s.params.logprobs])
        return result

    def _append(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        """Add a drawn token and say what the client gets to see of it."""
        first = sequence.num_output_tokens == 0
        sequence.token_ids.append(token)
        self._time_token(sequence, first)
        stop_reason: str | int | None
        reason, stop_reason = self._finished_by(sequence, token)
        ended_by_token = reason is FinishReason.STOP
        detokenizer = self._detokenizers[sequence.id]
        hidden = ended_by_token and sequence.params.skip_special_tokens
        text, matched = (
            ("", None) if hidden else detokenizer.push(token, stoppable=self._past_minimum(sequence))
        )
        if reason is not None and matched is None:
            rest, matched = detokenizer.flush()
            text += rest
        if matched is not None:
            reason, stop_reason = FinishReason.STOP, matched
        delta = Delta(
            index=sequence.index,
            text=text,
            token_ids=(token,),
            logprobs=() if logprob is None else (logprob,),
            prompt_logprobs=self._prompt_logprobs(sequence) if first else (),
            cached_tokens=sequence.num_cached_tokens,
            finish_reason=reason,
            stop_reason=stop_reason,
        )
        if reason is None:
            self._events.append((sequence, delta))
        else:
            self._end(sequence, delta)

    def _time_token(self, sequence: Sequence, first: bool) -> None:
        now, label = monotonic(), sequence.mix.label
        if first:
            sequence.first_token = now
            self._metrics.requests.first_token(label, now - sequence.arrival)
        else:
            assert sequence.last_token is not None
            self._metrics.requests.inter_token(label, now - sequence.last_token)
        sequence.last_token = now
        self._metrics.requests.generated_tokens(label, 1)

    def _finished_by(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        """Whether ``token`` ends the answer, and the stop token id to report if a client named it."""
        params = sequence.params
        if self._past_minimum(sequence):
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
            if token in self._reader(sequence).eos_ids and not params.ignore_eos:
                return FinishReason.STOP, None
        return (FinishReason.LENGTH if sequence.num_output_tokens >= params.max_tokens else None), None

    def _reader(self, sequence: Sequence) -> TokenReader:
        return self._tokenizer if sequence.tokenizer is None else sequence.tokenizer

    @staticmethod
    def _past_minimum(sequence: Sequence) -> bool:
        return sequence.num_output_tokens >= sequence.params.min_tokens

    def _end_scored(self, scheduled: Iterable[Scheduled]) -> None:
        """End sequences that asked for scores or logits of what is given, and no answer."""
        for sequence in (item.sequence for item in scheduled):
            if sequence.params.max_tokens == 0 and not sequence.num_uncomputed_tokens:
                scores = self._prompt_logprobs(sequence)
                reason = FinishReason.STOP if sequence.mix.num_classes else FinishReason.LENGTH
                self._end(
                    sequence,
                    Delta(
                        sequence.index,
                        prompt_logprobs=scores,
                        cached_tokens=sequence.num_cached_tokens,
                        finish_reason=reason,
                    ),
                )

    @staticmethod
    def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprob | None, ...]:
        """One entry per prompt token; the first has nothing before it to be predicted from."""
        return () if sequence.params.prompt_logprobs is None else (None, *sequence.prompt_scores)

    def _end(self, sequence: Sequence, delta: Delta) -> None:
        """The one place where a sequence ends."""
        assert delta.finish_reason is not None
        sequence.finish_reason = delta.finish_reason
        self.scheduler.remove(sequence)
        del self._detokenizers[sequence.id]
        label = sequence.mix.label
        self._metrics.requests.finished(label, delta.finish_reason.value, monotonic() - sequence.arrival)
        if delta.finish_reason is FinishReason.ABORT:
            self._metrics.requests.aborted(label)
        self._events.append((sequence, delta))

    def _observe(self, batch: Batch, began: float) -> None:
        seconds, rows = monotonic() - began, len(batch.inputs.token_ids)
        self._prompt_budget.observe(rows, seconds)
        preempted = self.scheduler.take_preemptions()
        if preempted:
            self._metrics.requests.preempted(preempted)
        self._metrics.steps.record(
            batch_tokens=rows,
            batch_sequences=len(batch.scheduled),
            distinct_adapters=batch.distinct_adapters,
            seconds=seconds,
        )
