"""The unit of scheduling: one prompt, its answer so far, and what the client asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

from server.kernels.inputs import AdapterPages


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
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # None: none; k: the sampled token's and the k most likely
    prompt_logprobs: int | None = None  # the same for the prompt's tokens


@dataclass(frozen=True, slots=True)
class ResolvedMix:
    """What a request runs with: resident pages with their weights, in canonical order."""

    members: tuple[tuple[AdapterPages, float], ...] = ()
    digest: bytes = b""  # adapters.mix.mix_digest; b"" is the base
    label: str = "(base)"  # the adapter's name, or one of server.metrics.OWN_LABELS


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token under the unmodified model distribution, and the likeliest others."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one sequence. The last one, and only it, has ``finish_reason``."""

    index: int  # which of the request's n sequences
    text: str = ""  # may lag behind the tokens: incomplete characters and possible stop strings wait
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, if asked for
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # once, with the first token, if asked for
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that matched
    error: str | None = None  # with FinishReason.ERROR


class Sequence:
    """Mutable state of one running or waiting answer. Owned by the engine thread."""

    def __init__(
        self,
        sequence_id: int,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        mix: ResolvedMix,
        *,
        index: int = 0,
        salt: bytes = b"",
        leader: Sequence | None = None,
    ) -> None:
        self.id = sequence_id
        self.index = index
        self.params = params
        self.mix = mix
        self.salt = salt  # separates tenants in the prefix cache
        self.leader = leader  # the first of n siblings: its prompt blocks are about to be shareable
        self.token_ids: list[int] = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.num_computed_tokens = 0  # tokens whose K and V are in the cache
        self.num_cached_tokens = 0  # of the prompt, found in the prefix cache at first admission
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []  # of the full blocks, chained
        self.num_committed_blocks = 0  # leading blocks already offered to the prefix cache
        self.arrival = monotonic()
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.num_preemptions = 0
        seed = params.seed if params.seed is not None else random.getrandbits(63)
        self.rng = random.Random(f"{seed}/{index}")  # a string: of a number the sign would not count
        self.finish_reason: FinishReason | None = None
        self.prompt_scores: list[
            TokenLogprob
        ] = []  # of prompt tokens 1.., if asked for; filled chunk by chunk
        self.abort_requested = False  # set by any thread; honoured before the next step and after this one

    def __len__(self) -> int:
        return len(self.token_ids)

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
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens
