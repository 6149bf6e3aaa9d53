"""The unit of scheduling: one prompt, its answer so far, and what the client asked for."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Protocol

import torch

from manylora.adapters.format.pooling import Pooling
from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.token_mask import TokenMask
from manylora.server.grammars.grammar import CompiledGrammar, GrammarState
from manylora.server.kernels.inputs import AdapterPages, PromptPages
from manylora.server.kernels.weights import MergedWeights


class FinishReason(StrEnum):
    """Why a sequence ended. ``STOP`` and ``LENGTH`` are OpenAI's; the others never reach a client as such."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the answer is drawn. Ranges are checked by the API; here they are invariants."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # 1 is off
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # 0 is off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # 1 is off
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: tuple[int, ...] | None = None  # the only ones that may be drawn; None: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # tokens that may not come about in this order
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    keep_stop: bool = False  # what ends the answer is part of its text
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_added: bool = True  # false: added tokens that are not skipped follow each other closely
    shown_tokens: frozenset[int] = frozenset()  # control tokens that are told all the same
    logprobs: int | None = None  # None: none; k: the sampled token's and the k most likely
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    grammar: CompiledGrammar | None = None  # that the answer follows


@dataclass(frozen=True, slots=True)
class ResolvedMix:
    """What a request runs with: resident pages with their weights, in canonical order."""

    members: tuple[tuple[AdapterPages, float], ...] = ()
    digest: bytes = b""  # manylora.adapters.mix.mix_digest; b"" is the base
    label: str = "(base)"  # the adapter's name, or one of manylora.server.metrics.labels.OWN_LABELS
    merged: MergedWeights | None = None  # the weights a merged copy runs on, instead of the base's

    @property
    def vocab_size(self) -> int:
        """Tokens that the largest vocabulary of the members knows; 0 if all have the base's."""
        own = [pages.vocabulary.size for pages, _ in self.members if pages.vocabulary is not None]
        return max(own, default=0)

    @property
    def prompt(self) -> PromptPages | None:
        """The soft prompt that the answer's context begins with; at most one member of a mix has one."""
        prompts = [pages.prompt for pages, _ in self.members if pages.prompt is not None]
        assert len(prompts) <= 1, "a mix of soft prompts is refused where it is resolved"
        return prompts[0] if prompts else None

    @property
    def num_virtual_tokens(self) -> int:
        """Positions that the soft prompt takes before the first token."""
        return 0 if self.prompt is None else self.prompt.count

    @property
    def num_classes(self) -> int:
        """Classes of an adapter that classifies, whose logits are theirs; 0 for what writes."""
        heads = [pages.vocabulary.classes for pages, _ in self.members if pages.vocabulary is not None]
        return max((head.count for head in heads if head is not None), default=0)


@dataclass(frozen=True, slots=True)
class Stage:
    """The part of a mix that runs from one token of a sequence on, until the next stage."""

    start: int  # the first token it runs for
    members: tuple[tuple[AdapterPages, float], ...]  # that act on its rows
    digest: bytes  # manylora.adapters.mix.mix_digest of ``members`` and of the soft prompt before them


def plan_stages(prompt_ids: tuple[int, ...], mix: ResolvedMix) -> tuple[Stage, ...]:
    """Where each member of ``mix`` sets in; one stage, from token 0 on, for a mix without aLoRA.

    An aLoRA runs from the last place in the prompt where its invocation tokens begin, and not at all if
    they do not occur: what the answer holds does not count. (``calculate_alora_offsets`` of PEFT's
    tuners/lora/variants.py is the definition.)
    """
    if all(pages.activation is None for pages, _ in mix.members):
        return (Stage(0, tuple(m for m in mix.members if m[0].acts_on_rows), mix.digest),)
    begins = [
        0 if pages.activation is None else last_occurrence(prompt_ids, pages.activation)
        for pages, _ in mix.members
    ]
    stages = []
    for start in sorted({0, *(begin for begin in begins if begin is not None)}):
        active = tuple(
            member
            for member, begin in zip(mix.members, begins, strict=True)
            if begin is not None and begin <= start
        )
        digest = mix_digest(MixEntry(pages.digest, weight) for pages, weight in active)
        stages.append(Stage(start, active, digest))
    return tuple(stages)


def last_occurrence(ids: tuple[int, ...], wanted: tuple[int, ...]) -> int | None:
    """Where ``wanted`` begins for the last time in ``ids``; None if it does not occur."""
    for start in range(len(ids) - len(wanted), -1, -1):
        if ids[start] == wanted[0] and ids[start : start + len(wanted)] == wanted:
            return start
    return None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token under the unmodified model distribution, and the likeliest others."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """What the model says should follow consecutive tokens of a sequence."""

    first: int  # index, prompt included, of the token that row 0 follows
    rows: torch.Tensor  # [k, V] float32, on the CPU


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one sequence. The last one, and only it, has ``finish_reason``."""

    index: int  # which of the request's n sequences
    text: str = ""  # may lag behind the tokens: incomplete characters and possible stop strings wait
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, if asked for
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # once, with the first token, if asked for
    logits: Logits | None = None  # if asked for: chunk by chunk, in order, each row once
    pooled: torch.Tensor | None = None  # [D] float32 on the CPU, if asked for: with the end
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that matched
    error: str | None = None  # with FinishReason.ERROR
    param: str | None = None  # with an error: the field of the request that is at fault; None: the server is
    code: str | None = None  # with ``param``: the error's code


class TokenReader(Protocol):
    """What is needed of a tokenizer to read an answer."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """The tokens that stand beside the vocabulary, control tokens among them, by id."""

    def decode(
        self, token_ids: Seq[int], *, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
    ) -> str:
        """Text of the ids, U+FFFD for incomplete characters; special tokens that are ``shown`` stay in it."""


class Sequence:
    """Mutable state of one running or waiting answer. Owned by the engine thread.

    Its positions are those of the soft prompt's virtual tokens, if its mix has one, and behind them those of
    ``token_ids``. The length, and what is computed, counts positions.
    """

    def __init__(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        mix: ResolvedMix,
        *,
        tokenizer: TokenReader | None = None,
        index: int = 0,
        salt: bytes = b"",
        leader: Sequence | None = None,
        given_ids: tuple[int, ...] = (),
        logits_from: int | None = None,
        pooling: Pooling | None = None,
        client: Client = EVERYBODY,
        priority: int = 0,
    ) -> None:
        self.id = sequence_id
        self.client = client
        self.priority = priority  # among those of its client that wait; the lower, the earlier
        self.num_paid_tokens = len(given_ids)  # of the answer, that the client has paid for
        self.index = index
        self.params = params
        self.mix = mix
        self.tokenizer = tokenizer  # an adapter's; None: the base's
        self.stages = plan_stages(prompt_ids, mix)  # by start; the first begins at 0
        self.salt = salt  # separates tenants in the prefix cache
        self.leader = leader  # the first of n siblings: its prompt blocks are about to be shareable
        self.prompt = mix.prompt
        self.num_virtual_tokens = mix.num_virtual_tokens
        self.token_ids: list[int] = [*prompt_ids, *given_ids]  # the answer's beginning may be given
        self.num_prompt_tokens = len(prompt_ids)
        self.num_computed_tokens = (
            0  # positions whose K and V are in the cache, or get there with the next step
        )
        self.uncopied_from: int | None = None  # the first of those that a soft prompt's K and V are for
        self.num_cached_tokens = 0  # of the prompt, found in the prefix cache at first admission
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []  # of the full blocks, chained
        self.num_committed_blocks = 0  # leading blocks already offered to the prefix cache
        self.arrival = monotonic()
        self.first_scheduled: float | None = None
        self.first_position = 0  # that it computed when it was first admitted
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.num_preemptions = 0
        seed = params.seed if params.seed is not None else random.getrandbits(63)
        self._stream = f"{seed}/{index}"  # a string: of a number the sign would not count
        self.rng = random.Random(self._stream)
        self._num_given = len(given_ids)
        self.grammar = _start(params, mix)
        self.mask = _mask(params)
        self.finish_reason: FinishReason | None = None
        self.prompt_scores: list[
            TokenLogprob
        ] = []  # of prompt tokens 1.., if asked for; filled chunk by chunk
        if pooling is not None:
            logits_from = len(prompt_ids) - 1 if pooling is Pooling.LAST else 0
        self.next_logits = logits_from  # the first token whose logits are yet to be delivered; None: none
        self.pooled = None if pooling is None else PooledStates()  # taken instead of logits, if asked for
        self.abort_requested = False  # set by any thread; honoured before the next step and after this one

    def __len__(self) -> int:
        return self.num_virtual_tokens + len(self.token_ids)

    def rewind_draws(self) -> None:
        """Take back the random numbers of tokens that are not there; each token took one."""
        self.rng = random.Random(self._stream)
        for _ in range(self.num_output_tokens - self._num_given):
            self.rng.random()

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def needs_prompt_scores(self) -> bool:
        """Whether prompt log-probabilities were asked for and are not all there yet."""
        return (
            self.params.prompt_logprobs is not None and len(self.prompt_scores) < self.num_prompt_tokens - 1
        )

    @property
    def num_reusable_tokens(self) -> int:
        """How many positions may come from the prefix cache: those whose logits nobody wants."""
        if self.params.prompt_logprobs is not None:
            return 0
        last = len(self) - 1
        return last if self.next_logits is None else min(last, self.num_virtual_tokens + self.next_logits)

    @property
    def only_answers(self) -> bool:
        """Whether all that is left of it is to draw a token a step, with the mix it runs now."""
        return (
            self.num_uncomputed_tokens == 1
            and self.params.max_tokens > 0
            and self.next_logits is None
            and self.uncopied_from is None
            and not self.needs_prompt_scores
            and self.num_computed_tokens >= self.stages[-1].start
        )

    def first_to_compute(self, cached: int) -> int:
        """The first position that needs a row, where those before ``cached`` are in the prefix cache."""
        copied = self.prompt.count if self.prompt is not None and self.prompt.in_cache else 0
        return max(cached, copied)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self) - self.num_computed_tokens

    @property
    def vocab_size(self) -> int:
        """Tokens that the largest vocabulary of the mix knows; 0 if all have the base's."""
        return self.mix.vocab_size

    @property
    def stage(self) -> Stage:
        """What the next token to be computed runs with."""
        return self.stages[bisect_right(self.stages, self.num_computed_tokens, key=_start_of) - 1]

    def rows_within_stage(self, first: int, count: int) -> int:
        """How many of the ``count`` tokens from ``first`` on one step may compute: those of one stage."""
        following = bisect_right(self.stages, first, key=_start_of)
        return min(count, self.stages[following].start - first) if following < len(self.stages) else count

    def num_wanted_logits(self, first: int, count: int) -> int:
        """How many of the ``count`` tokens from ``first`` on have logits to deliver: the last ones."""
        if self.next_logits is None:
            return 0
        return max(0, first + count - max(first, self.num_virtual_tokens + self.next_logits))

    def rows_within_logits(self, first: int, count: int, limit: int) -> int:
        """How many of the ``count`` tokens from ``first`` on have at most ``limit`` logits to deliver."""
        return count - max(0, self.num_wanted_logits(first, count) - limit)


class PooledStates:
    """The mean of hidden states that come in chunks.

    Summed in float64, in which sums of bf16 numbers of one size are exact: how a text is cut into chunks
    does not show in float32.
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Take the next rows [n, D]."""
        total = rows.double().sum(0).cpu()
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)

    def mean(self) -> torch.Tensor:
        """The mean [D] float32 of the rows so far, of which there is at least one."""
        assert self._sum is not None
        return (self._sum / self._count).float()


def _start(params: SamplingParams, mix: ResolvedMix) -> GrammarState | None:
    """Where the answer stands in its grammar, if it has one."""
    if params.grammar is None:
        return None
    return params.grammar.start(
        mix.vocab_size, stop_token_ids=params.stop_token_ids, ignore_eos=params.ignore_eos
    )


def _mask(params: SamplingParams) -> TokenMask | None:
    """What the request says itself of the tokens that may be drawn; None: nothing."""
    if params.allowed_tokens is None and not params.bad_words:
        return None
    return TokenMask(params.allowed_tokens, params.bad_words)


def _start_of(stage: Stage) -> int:
    return stage.start
