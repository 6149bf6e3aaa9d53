"""An engine on a tiny model, driven step by step without threads or HTTP."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import torch

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.engine.engine import Engine, EngineConfig
from manylora.server.engine.sequence import Delta, ResolvedMix, SamplingParams, Sequence
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, describe_base, load_model
from manylora.server.model.pages.pool import PagePool
from manylora.server.model.parallel.starting import StartedRanks, start_ranks


@dataclass
class Answer:
    """Everything one sequence produced."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)

    @property
    def last(self) -> Delta:
        """The delta that ended the sequence."""
        return self.deltas[-1]


class EngineHarness:
    """A loaded model with its decoder and page pool, for tests that step engines by hand."""

    def __init__(
        self,
        directory: Path,
        *,
        generic: bool = False,
        kernels: str = "auto",
        dtype: str = "fp32",
        quantize: str = "none",
        coded_cache: bool = False,
        num_blocks: int = 257,
        max_batch_tokens: int = 256,
        max_num_seqs: int = 64,
        prefix_cache: bool = True,
        adapter_bytes: int = 64 << 20,
        ranks: int = 1,
        deterministic: bool = False,
        placed: Callable[[LoadedModel], LoadedModel] = lambda loaded: loaded,
    ) -> None:
        """``placed`` moves the loaded model to where it is to run; ``ranks`` end with :meth:`close`."""
        self.started: StartedRanks | None = None
        if ranks > 1:
            self.started = start_ranks(
                directory, ranks, dtype=dtype, device="cpu", max_model_len=None, coded_cache=coded_cache
            )
        self.loaded: LoadedModel = (
            placed(load_model(directory, dtype=dtype, device="cpu", max_model_len=None, quantize=quantize))
            if self.started is None
            else self.started.loaded
        )
        self.decoder: Decoder = self._decoder(generic, kernels, coded_cache, deterministic)
        taken = self.decoder.taken if isinstance(self.decoder, FusedDecoder) else None
        self.pool = PagePool(
            self.decoder.modules,
            adapter_bytes,
            self.loaded.dtype,
            self.loaded.device,
            self.decoder,
            tables=self.decoder.tables,
            shards=None if self.started is None else self.started.decoder.shards,
            taken=None if taken is None else taken.check,
        )
        self.decoder.allocate(self.pool.data, num_blocks, max_batch_tokens)
        self.base: BaseModel = describe_base(self.loaded, self.decoder, "base")
        self._config = EngineConfig(
            num_blocks, max_num_seqs, max_batch_tokens, prefix_cache, deterministic=deterministic
        )
        self._ids = itertools.count(1)
        self.engine = self.new_engine()

    def _decoder(self, generic: bool, kernels: str, coded_cache: bool, deterministic: bool) -> Decoder:
        if self.started is not None:
            return self.started.decoder
        if generic:
            return GenericDecoder(self.loaded.hf)
        candidates = decoder_candidates(
            self.loaded, kernels, coded_cache=coded_cache, deterministic=deterministic
        )
        decoder = next(candidates)
        assert isinstance(decoder, FusedDecoder | GenericDecoder)
        return decoder

    def close(self) -> None:
        """End the other ranks, if there are any."""
        if self.started is not None:
            self.started.close()

    def new_engine(self, *, max_batch_tokens: int | None = None, num_blocks: int | None = None) -> Engine:
        """A fresh engine (empty caches) on the same decoder; sizes at most those of the harness."""
        config = EngineConfig(
            num_blocks or self._config.num_blocks,
            self._config.max_num_seqs,
            max_batch_tokens or self._config.max_batch_tokens,
            self._config.prefix_cache,
            deterministic=self._config.deterministic,
        )
        self.metrics = Metrics()
        self.engine = Engine(
            self.decoder,
            self.loaded.tokenizer,
            config,
            fingerprint=self.loaded.fingerprint,
            metrics=self.metrics,
        )
        return self.engine

    def load(self, directory: Path) -> AdapterPages:
        """Put the adapter at ``directory`` into the pool."""
        artifact = read_artifact(directory, self.base, Limits(max_rank=128, max_bytes=1 << 30))
        packed = self.pool.pack(
            artifact.digest,
            artifact.delta,
            artifact.activation,
            vocabulary=artifact.vocabulary,
            prompt=artifact.prompt,
        )
        pages = self.pool.reserve(packed)
        assert pages is not None
        self.pool.write(pages, packed)
        return pages

    def sequence(
        self,
        prompt_ids: Seq[int],
        *members: tuple[AdapterPages, float],
        max_tokens: int = 16,
        ignore_eos: bool = True,
        temperature: float = 0.0,
        **params: object,
    ) -> Sequence:
        """A sequence that runs with the given mix; greedy, ignoring the end token, unless told otherwise."""
        entries = [MixEntry(pages.digest, weight) for pages, weight in members]
        return Sequence(
            next(self._ids),
            tuple(prompt_ids),
            SamplingParams(
                max_tokens=max_tokens,
                ignore_eos=ignore_eos,
                temperature=temperature,
                **params,  # type: ignore[arg-type]
            ),
            ResolvedMix(tuple(members), mix_digest(entries)),
        )

    def run(self, *sequences: Sequence) -> list[Answer]:
        """Run ``sequences`` together to their ends, and check the allocator afterwards."""
        answers = {s.id: Answer() for s in sequences}
        for sequence in sequences:
            self.engine.add(sequence)
        while self.engine.has_work:
            for sequence, delta in self.engine.step():
                answer = answers[sequence.id]
                answer.text += delta.text
                answer.token_ids += delta.token_ids
                answer.deltas.append(delta)
        self.engine.check()
        assert self.engine.blocks.num_used == 0
        return list(answers.values())


@torch.inference_mode()
def hf_greedy(model: torch.nn.Module, prompt_ids: Seq[int], count: int) -> list[int]:
    """Greedy continuation by full forwards of a Hugging Face or PEFT model: no cache, no tricks."""
    ids = list(prompt_ids)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt_ids) :]
