"""The synchronous engine: one step is schedule -> build batch -> run -> sample -> update."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import monotonic

import torch

from manylora.server.engine.answer_reader import AnswerReader, Drawn, Event, Outcome, Told, prompt_logprobs
from manylora.server.engine.batch import Batch, build_batch
from manylora.server.engine.block_manager import BlockManager
from manylora.server.engine.dead_ends import dead_end
from manylora.server.engine.faults import give_back_cached, is_out_of_memory
from manylora.server.engine.prompt_budget import PromptBudget
from manylora.server.engine.repeated_batch import following_batch
from manylora.server.engine.sampling.grammar_masks import GrammarMasks
from manylora.server.engine.sampling.sampler import (
    EXACT,
    LIBRARY,
    SampledRows,
    by_width,
    drawn_logprobs,
    logprobs_of,
    sample,
    width_of,
)
from manylora.server.engine.scheduler import Scheduled, Scheduler, rows_of
from manylora.server.engine.sequence import Delta, FinishReason, Logits, Sequence, TokenLogprob
from manylora.server.kernels.inputs import BLOCK_SIZE
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine."""

    num_blocks: int  # KV blocks, block 0 included
    max_num_seqs: int
    max_batch_tokens: int
    prefix_cache: bool = True
    max_stretch: float = math.inf  # see PromptBudget
    fair: bool = True  # between clients
    deterministic: bool = False  # what is told of a row has the same bits in any company, on any device


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
            fair=config.fair,
        )
        self._answers = AnswerReader(tokenizer, metrics.requests)
        self._masks = GrammarMasks()
        self._log_probabilities = EXACT if config.deterministic else LIBRARY
        self._outcomes: list[Outcome] = []  # of the step that runs, so that none is lost if it raises
        self._scheduled: list[Scheduled] = []  # in the last step, and the batch that made of it
        self._batch: Batch | None = None
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
        self._answers.open(sequence)
        self.scheduler.add(sequence)

    def step(self) -> list[Event]:
        """Run one step and return what it did to each sequence it touched."""
        return list(self.read(self.advance()))

    def advance(self) -> list[Outcome]:
        """Run one step; what it did to each sequence it touched, for :meth:`read`."""
        began = monotonic()
        self._drop_aborted()
        scheduled = self.scheduler.schedule()
        if scheduled and (drawn := self._run(scheduled)) is not None:
            self._update(*drawn)
            self._observe(drawn[1], began)
        if not self.has_work:
            self._scheduled, self._batch = [], None  # an idle engine must hold no sequences
        return self._take_outcomes()

    def _run(self, scheduled: list[Scheduled]) -> tuple[torch.Tensor, Batch, list[int]] | None:
        """What :meth:`_compute` makes; None if memory ran out, and then no sequence has changed."""
        try:
            return self._compute(scheduled)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("a step of %d tokens ran out of memory: %s", rows_of(scheduled), error)
        self._make_do(scheduled)  # here the failed step holds no memory any more
        return None

    def _compute(self, scheduled: list[Scheduled]) -> tuple[torch.Tensor, Batch, list[int]]:
        """The logits of a step, its batch, and the tokens drawn."""
        batch = self._build(scheduled)
        self._masks.begin(batch.sampled.constrained)
        logits = self.decoder.step(batch.inputs)
        self._masks.finish()
        return logits, batch, self.draw_tokens(logits, batch)

    def _make_do(self, scheduled: list[Scheduled]) -> None:
        """Memory did not last for a step: run smaller ones, or end the request that needs it alone."""
        self._scheduled, self._batch = [], None
        give_back_cached()
        self._metrics.steps.out_of_memory()
        for item in scheduled:
            item.sequence.rewind_draws()
        if self.scheduler.shrink(rows_of(scheduled)):
            return
        (only,) = scheduled
        message = "the server's memory is too small for this request at its length"
        sequence = only.sequence
        self._end(sequence, Delta(sequence.index, finish_reason=FinishReason.ERROR, error=message))

    def read(self, outcomes: Iterable[Outcome]) -> Iterator[Event]:
        """The events of what steps did, in the order of the steps; by one thread, not only the engine's."""
        return self._answers.read(outcomes)

    def fail_all(self, message: str) -> list[Outcome]:
        """End every sequence with an error, after a step that raised; also what that step had done before."""
        self._scheduled, self._batch = [], None
        for sequence in self._live():
            self._end(sequence, Delta(sequence.index, finish_reason=FinishReason.ERROR, error=message))
        return self._take_outcomes()

    def check(self) -> None:
        """Assert the invariants of the block allocator."""
        self.blocks.check(self._live())

    def _live(self) -> list[Sequence]:
        return [*self.scheduler.running, *self.scheduler.waiting]

    def _take_outcomes(self) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _drop_aborted(self) -> None:
        for sequence in self._live():
            if sequence.abort_requested:
                self._end(sequence, Delta(sequence.index, finish_reason=FinishReason.ABORT))

    def _build(self, scheduled: list[Scheduled]) -> Batch:
        """The batch of a step; where the last step's work goes on, it is that one, brought forward."""
        again = scheduled is self._scheduled
        self._batch = following_batch(self._batch) if again and self._batch else build_batch(scheduled)
        self._scheduled = scheduled
        return self._batch

    def draw_tokens(self, logits: torch.Tensor, batch: Batch) -> list[int]:
        """The next token of each sequence of ``batch`` that draws one, in their order."""
        rows = batch.sampled
        if not rows.sequences:
            return []
        if len(rows.sequences) == len(logits) and logits.shape[1] == self.vocab_size:
            return sample(logits, rows, self._tokenizer.eos_ids, self.decoder.draw)
        tokens = [0] * len(batch.sampling)
        for width, members in by_width(batch.sampling, logits, self.vocab_size).items():
            drawn = sample(
                logits[[batch.sampling[i][1] for i in members], :width],
                SampledRows([batch.sampling[i][0] for i in members]),
                self._tokenizer.eos_ids,
                self.decoder.draw,
            )
            for i, token in zip(members, drawn, strict=True):
                tokens[i] = token
        return tokens

    def _update(self, logits: torch.Tensor, batch: Batch, tokens: list[int]) -> None:
        """Account for the computed rows, append the drawn tokens, end what is finished."""
        for item in batch.scheduled:
            self._computed(item)
        for sequence, first, count in batch.scoring:
            self._score_prompt(logits, sequence, first, count)
        for sequence, first, count in batch.wanted:
            rows = slice(first, first + count)
            if sequence.pooled is not None:
                self._pool(batch, rows, sequence)
            else:
                self._hand_out(logits[rows, : width_of(sequence, self.vocab_size)], sequence)
        logprobs = drawn_logprobs(logits, batch.sampling, tokens, self.vocab_size, self._log_probabilities)
        self._metrics.requests.tokens_after_abort(sum(s.finish_reason is not None for s, _ in batch.sampling))
        now = monotonic()
        for (sequence, _), token in zip(batch.sampling, tokens, strict=True):
            limited = sequence.grammar is not None or sequence.mask is not None
            if limited and (stuck := dead_end(sequence)) is not None:
                self._end(sequence, stuck)
            elif not sequence.abort_requested:
                self._append(sequence, token, now, logprobs.get(sequence.id))
        self._end_scored(batch.scheduled)

    def _computed(self, item: Scheduled) -> None:
        sequence, before = item.sequence, item.sequence.num_computed_tokens
        if before == sequence.first_position and not sequence.num_preemptions:
            self._admitted(sequence)
        sequence.num_computed_tokens = before + item.count
        sequence.uncopied_from = None
        if before % BLOCK_SIZE + item.count >= BLOCK_SIZE:  # a block is full
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
        rows = logits[first : first + count, : width_of(sequence, self.vocab_size)]
        wanted = sequence.params.prompt_logprobs
        sequence.prompt_scores += logprobs_of(rows, following, wanted, self._log_probabilities)

    def _hand_out(self, rows: torch.Tensor, sequence: Sequence) -> None:
        """Deliver the next logits that the sequence was submitted for; the step's own are overwritten."""
        assert sequence.next_logits is not None
        first, sequence.next_logits = sequence.next_logits, sequence.next_logits + len(rows)
        if not sequence.abort_requested:
            copy = torch.empty(rows.shape, dtype=torch.float32).copy_(rows)
            delta = Delta(sequence.index, logits=Logits(first, copy))
            self._outcomes.append(Told(sequence, monotonic(), delta))

    def _pool(self, batch: Batch, rows: slice, sequence: Sequence) -> None:
        assert batch.inputs.states is not None
        assert batch.inputs.states.values is not None
        assert sequence.next_logits is not None
        assert sequence.pooled is not None
        states = batch.inputs.states.values[rows]
        sequence.next_logits += len(states)
        sequence.pooled.add(states)

    def _append(self, sequence: Sequence, token: int, now: float, logprob: TokenLogprob | None) -> None:
        """Add a drawn token and see whether the answer ends. Most are read where they are delivered."""
        sequence.token_ids.append(token)
        reason, stop_reason = self._finished_by(sequence, token)
        text = None
        if sequence.params.stop:
            past = sequence.num_output_tokens >= sequence.params.min_tokens
            text, matched = self._answers.text(sequence, token, reason, stoppable=past)
            if matched is not None:
                reason, stop_reason = FinishReason.STOP, matched
        self._outcomes.append(Drawn(sequence, token, now, logprob, reason, stop_reason, text))
        if reason is not None:
            self._leave(sequence, reason)

    def _finished_by(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, str | int | None]:
        """Whether ``token`` ends the answer, and the stop token id to report if a client named it."""
        params, count = sequence.params, sequence.num_output_tokens
        over = sequence.grammar is not None and sequence.grammar.only_ends  # nothing else may follow
        if count >= params.min_tokens or over:
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
            if (over or not params.ignore_eos) and token in self._answers.reader_of(sequence).eos_ids:
                return FinishReason.STOP, None
        return (FinishReason.LENGTH if count >= params.max_tokens else None), None

    def _end_scored(self, scheduled: Iterable[Scheduled]) -> None:
        """End sequences that asked for scores or logits of what is given, and no answer."""
        for sequence in (item.sequence for item in scheduled):
            if sequence.params.max_tokens == 0 and not sequence.num_uncomputed_tokens:
                scores = prompt_logprobs(sequence)
                reason = FinishReason.STOP if sequence.mix.num_classes else FinishReason.LENGTH
                self._end(
                    sequence,
                    Delta(
                        sequence.index,
                        prompt_logprobs=scores,
                        pooled=None if sequence.pooled is None else sequence.pooled.mean(),
                        cached_tokens=sequence.num_cached_tokens,
                        finish_reason=reason,
                    ),
                )

    def _end(self, sequence: Sequence, delta: Delta) -> None:
        """End a sequence with something else than a token."""
        assert delta.finish_reason is not None
        self._outcomes.append(Told(sequence, monotonic(), delta))
        self._leave(sequence, delta.finish_reason)

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        """The one place where a sequence ends."""
        sequence.finish_reason = reason
        self.scheduler.remove(sequence)

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
