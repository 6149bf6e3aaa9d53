"""From what steps did to sequences to what their clients get to see: text, times, ends.

The engine's thread says what happened in few words, :data:`Outcome`. What those come to is worked out by
whoever delivers them, while the engine is in its next step: only where the text decides whether an answer
ends does the engine read a token before it goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from manylora.server.engine.detokenizer import Detokenizer
from manylora.server.engine.sequence import Delta, FinishReason, Sequence, TokenLogprob, TokenReader
from manylora.server.metrics.request_metrics import RequestMetrics

logger = logging.getLogger(__name__)

Event = tuple[Sequence, Delta]


class Drawn(NamedTuple):
    """A token that a step drew, and whether the answer ends with it."""

    sequence: Sequence
    token: int
    at: float  # seconds of the monotonic clock
    logprob: TokenLogprob | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    text: str | None  # what it adds to the answer; None: it is yet to be read


class Told(NamedTuple):
    """Anything else that a step did to a sequence."""

    sequence: Sequence
    at: float
    delta: Delta

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.delta.finish_reason


Outcome = Drawn | Told


class AnswerReader:
    """The text of every open answer so far. Of one answer, one thread reads all tokens, in their order."""

    def __init__(self, tokenizer: TokenReader, metrics: RequestMetrics) -> None:
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._open: dict[int, Detokenizer] = {}

    def reader_of(self, sequence: Sequence) -> TokenReader:
        """The tokenizer that reads the sequence's answer and names its end."""
        return self._tokenizer if sequence.tokenizer is None else sequence.tokenizer

    def open(self, sequence: Sequence) -> None:
        """Begin the answer of ``sequence``."""
        params, reader = sequence.params, self.reader_of(sequence)
        closely = not (params.skip_special_tokens or params.spaces_between_added)
        self._open[sequence.id] = Detokenizer(
            reader,
            sequence.token_ids,
            stop=params.stop,
            skip_special_tokens=params.skip_special_tokens,
            shown=params.shown_tokens,
            keep_stop=params.keep_stop,
            close=reader.added_tokens if closely else None,
        )

    def text(
        self, sequence: Sequence, token: int, reason: FinishReason | None, *, stoppable: bool = True
    ) -> tuple[str, str | None]:
        """What ``token``, with which the answer ends for ``reason`` or goes on, adds to the text.

        With it the stop string that ends the answer here, if one does; never where not ``stoppable``.
        """
        detokenizer = self._open[sequence.id]
        params = sequence.params
        hidden = reason is FinishReason.STOP and params.skip_special_tokens and not params.keep_stop
        text, matched = ("", None) if hidden else detokenizer.push(token, stoppable=stoppable)
        if reason is not None and matched is None:
            rest, matched = detokenizer.flush()
            text += rest
        return text, matched

    def read(self, outcomes: Iterable[Outcome]) -> Iterator[Event]:
        """The events of ``outcomes``, which must come in the order of the steps, none left out.

        An answer whose tokens can't be read ends with an error; its sequence is asked to leave.
        """
        for outcome in outcomes:
            sequence = outcome.sequence
            if sequence.id not in self._open:  # it ended with an error of the reader's
                continue
            delta = outcome.delta if isinstance(outcome, Told) else self._delta(outcome)
            if delta.finish_reason is not None:
                self._close(sequence, delta.finish_reason, outcome.at)
            yield sequence, delta

    def _delta(self, drawn: Drawn) -> Delta:
        sequence = drawn.sequence
        first = self._time(sequence, drawn.at)
        try:
            text = drawn.text
            if text is None:
                text, _ = self.text(sequence, drawn.token, drawn.finish_reason)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # also a panic of Rust: it ends this answer, not the server
            logger.exception("an answer can't be read; it ends with an error")
            sequence.abort_requested = True
            message = "the server failed while generating this answer"
            return Delta(sequence.index, finish_reason=FinishReason.ERROR, error=message)
        return Delta(
            index=sequence.index,
            text=text,
            token_ids=(drawn.token,),
            logprobs=() if drawn.logprob is None else (drawn.logprob,),
            prompt_logprobs=prompt_logprobs(sequence) if first else (),
            cached_tokens=sequence.num_cached_tokens,
            finish_reason=drawn.finish_reason,
            stop_reason=drawn.stop_reason,
        )

    def _time(self, sequence: Sequence, at: float) -> bool:
        """Count a token; whether it was the sequence's first."""
        label, first = sequence.mix.label, sequence.first_token is None
        if sequence.last_token is None:
            sequence.first_token = at
            self._metrics.first_token(label, at - sequence.arrival)
        else:
            self._metrics.inter_token(label, at - sequence.last_token)
        sequence.last_token = at
        self._metrics.generated_tokens(label, 1)
        return first

    def _close(self, sequence: Sequence, reason: FinishReason, at: float) -> None:
        del self._open[sequence.id]
        label = sequence.mix.label
        self._metrics.finished(label, reason.value, at - sequence.arrival)
        if reason is FinishReason.ABORT:
            self._metrics.aborted(label)


def prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprob | None, ...]:
    """One entry per prompt token, if asked for; the first has nothing before it to be predicted from."""
    return () if sequence.params.prompt_logprobs is None else (None, *sequence.prompt_scores)
