"""A grammar made ready for one vocabulary, and where one answer stands in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from manylora.server.grammars.refusal import GrammarRefused
from manylora.server.grammars.vocabulary import Vocabulary
from manylora.server.kernels.inputs import Int32

logger = logging.getLogger(__name__)

# Of one answer: about 10 ms a step and 30 MB at the worst. Of compiling: about 20 ms.
LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 150_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
}
_WELL_ENDED: Final = frozenset({"NoExtension", "NoExtensionBias", "EndOfSentence"})
_TOO_MUCH = "what may follow takes too much work to tell: the grammar is too ambiguous or too large here"


class Matcher:
    """One compiled grammar, from which answers start. They share what their lexers learn, and its limits."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        """``text`` as ``library_text`` writes it.

        Raises:
            GrammarRefused: the library does not take it.
        """
        self._text = text
        self._vocabulary = vocabulary
        self._first = self._compiled()
        self._first.compute_bitmask()  # what every answer begins with is worked out once
        if self._first.is_error():
            raise GrammarRefused(_brief(self._first.get_error()))
        self.is_worn = False  # its answers' lexers have met their common limit

    @property
    def vocabulary(self) -> Vocabulary:
        """What it was compiled against."""
        return self._vocabulary

    def copy(self) -> LLMatcher:
        """The grammar before the first token."""
        return self._first.deep_copy()

    def apart(self, tokens: Sequence[int]) -> LLMatcher:
        """The grammar behind ``tokens``, sharing nothing with other answers."""
        self.is_worn = True
        matcher = self._compiled()
        matcher.consume_tokens(list(tokens))
        return matcher

    def _compiled(self) -> LLMatcher:
        limits = LLParserLimits(**LIMITS, verbose_errors=False)
        return LLMatcher(self._vocabulary.library, self._text, log_level=0, limits=limits)


@dataclass(frozen=True, slots=True, eq=False)
class CompiledGrammar:
    """A grammar that a request's answers follow. Shared by any number of them, and of threads."""

    matcher: Matcher
    param: str  # the request's field that asks for it
    left_out: tuple[str, ...] = ()  # paths of keywords that a lenient schema is not held to

    def asked_by(self, param: str) -> CompiledGrammar:
        """The same, asked for by another field."""
        return replace(self, param=param)

    def start(
        self, own_tokens: int = 0, *, stop_token_ids: Sequence[int] = (), ignore_eos: bool = False
    ) -> GrammarState:
        """Where an answer stands before its first token.

        Args:
            own_tokens: that the largest vocabulary of the answer's adapters has; 0 if they have none.
            stop_token_ids: tokens that end the answer besides the model's own, wherever the grammar may end.
            ignore_eos: whether the answer goes on as long as the grammar can.
        """
        width = max(self.matcher.vocabulary.width, own_tokens)
        return GrammarState(self, width, tuple(stop_token_ids), ignore_eos=ignore_eos)


class GrammarState:
    """What may follow the tokens of one answer so far. For one thread at a time."""

    def __init__(
        self, grammar: CompiledGrammar, width: int, stop_token_ids: tuple[int, ...], *, ignore_eos: bool
    ) -> None:
        self._grammar = grammar
        vocabulary = grammar.matcher.vocabulary
        self._stop_ids = stop_token_ids
        self._ignore_eos = ignore_eos
        self._tokens: list[int] = []  # taken so far
        self._matcher: LLMatcher | None = None  # made when it is first needed
        self._is_apart = False
        words = -(-max(width, vocabulary.num_tokens) // 32)
        # Bit t % 32 of word t // 32: token t may follow. In place: who draws keeps its address.
        self.allowed: Int32 = np.zeros(words, np.int32)
        self._library_words = self.allowed[: -(-vocabulary.num_tokens // 32)]
        self._ends = _bits(words, vocabulary.end_ids)
        self._stops = _bits(words, stop_token_ids)
        self._goes_on = _first_bits(words, width) & ~(self._ends | self._stops)
        self.is_filled = False  # for the tokens taken
        self.only_ends = False  # nothing may follow but a token that ends the answer
        self.fault: str | None = None  # why it can't be told what may follow

    @property
    def param(self) -> str:
        """The request's field that asked for the grammar."""
        return self._grammar.param

    @property
    def num_taken(self) -> int:
        """Tokens of the answer that :meth:`take` was given."""
        return len(self._tokens)

    def take(self, tokens: Sequence[int]) -> None:
        """Go on by the tokens drawn since the last call, none at first, and see what may follow."""
        try:
            self.advance(tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # also a panic of Rust: it ends this answer, not the server
            logger.exception("a grammar can't be followed; its answer ends with an error")
            self._fail()
        self.is_filled = True

    def advance(self, tokens: Sequence[int]) -> None:
        """What :meth:`take` does, whose faults it turns into the end of the answer."""
        if self._matcher is None:
            self._matcher = self._grammar.matcher.copy()
        if not self._advanced(self._matcher, tokens):
            self._tokens += tokens
            if self._is_apart or not self._goes_on_apart():
                logger.warning("a grammar can't be followed: %s", _brief(self._matcher.get_error()))
                self._fail()
            return
        self._tokens += tokens

    def _advanced(self, matcher: LLMatcher, tokens: Sequence[int]) -> bool:
        """Take ``tokens`` and fill the bits; False if the library can't."""
        if tokens:
            matcher.consume_tokens(list(tokens))
        words = self._library_words
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error() or (matcher.is_stopped() and matcher.stop_reason() not in _WELL_ENDED):
            return False
        if self._stop_ids and matcher.is_accepting():
            self.allowed |= self._stops
        self.only_ends = not (self.allowed & self._goes_on).any()
        if self._ignore_eos and not self.only_ends:
            self.allowed &= ~self._ends
        return not self.only_ends or bool((self.allowed & (self._ends | self._stops)).any())

    def _goes_on_apart(self) -> bool:
        """Take the answer's tokens with a lexer of its own, whose limits no other answer shares."""
        self._is_apart = True
        self._matcher = self._grammar.matcher.apart(self._tokens)
        return self._advanced(self._matcher, ())

    def _fail(self) -> None:
        self.fault = _TOO_MUCH
        self.allowed.fill(-1)


def _bits(words: int, tokens: Sequence[int]) -> Int32:
    """Words with the bits of ``tokens`` set; tokens beyond them have none."""
    flags = np.zeros(words * 32, bool)
    flags[[token for token in tokens if token < len(flags)]] = True
    return np.packbits(flags, bitorder="little").view(np.int32)


def _first_bits(words: int, count: int) -> Int32:
    """Words with the bits of the first ``count`` tokens set."""
    return np.packbits(np.arange(words * 32) < count, bitorder="little").view(np.int32)


def _brief(error: str) -> str:
    return error.replace("<non-verbose/>", "").strip()[:300]
