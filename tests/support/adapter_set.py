"""A tiny model that serves a set of adapters, and PEFT with the same adapters to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.engine.sampling.sampler import SampledRows, sample
from manylora.server.engine.sequence import Sequence as Row
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapters import write_adapter
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.peft_oracle import Peft, assert_logits_match

ATTENTION, MLP = 0, 1
TARGETS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # by family: attention, MLP
    "phi3": (("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
    "mixtral": (("q_proj", "k_proj", "v_proj"), ("o_proj",)),  # of experts nothing is a linear layer
    "qwen3_moe": (("q_proj", "k_proj", "v_proj"), ("o_proj",)),
    "gpt2": (("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")),
    "gpt_neox": (("query_key_value", "attention.dense"), ("dense_h_to_4h", "dense_4h_to_h")),
    "opt": (("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")),
}
LLAMA_TARGETS = (("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj"))


def tiny_adapter_set(root: Path, model: Path, family: str, **options: Any) -> AdapterSet:
    """The adapters of :func:`write_adapter_set` on a tiny model, written to ``root``."""
    return AdapterSet(model, write_adapter_set(root, model, family), **options)


def write_adapter_set(root: Path, model: Path, family: str) -> dict[str, Path]:
    """Adapters of ranks 4 to 64 on attention, MLP, everything, one layer; rsLoRA; patterns."""
    attention, mlp = TARGETS.get(family, LLAMA_TARGETS)
    conv: dict[str, Any] = {"fan_in_fan_out": True} if family == "gpt2" else {}
    kinds: dict[str, dict[str, Any]] = {
        "attention": {"rank": 4, "alpha": 8, "targets": attention},
        "mlp": {"rank": 64, "alpha": 32, "targets": mlp},
        "all": {"rank": 16, "alpha": 16, "targets": "all-linear"},
        "rslora": {"rank": 32, "alpha": 8, "targets": "all-linear", "rslora": True},
        "one-layer": {"rank": 8, "alpha": 32, "targets": attention, "layers_to_transform": [1]},
        "patterns": {
            "rank": 8,
            "alpha": 16,
            "targets": (*attention, mlp[-1]),
            "rank_pattern": {attention[0]: 5, mlp[-1]: 24},
            "alpha_pattern": {attention[-1]: 4},
            "rslora": True,
        },
    }
    return {
        name: write_adapter(root / name, model, seed=seed, scale=0.15, **options, **conv)
        for seed, (name, options) in enumerate(kinds.items(), 1)
    }


@dataclass(frozen=True)
class Ask:
    """One request: a prompt for one adapter of the set, or for the base (None)."""

    adapter: str | None
    prompt: tuple[int, ...]
    max_tokens: int = 12


class AdapterSet:
    """A model with adapters in its page pool, and PEFT with the same adapters."""

    def __init__(self, model: Path, paths: Mapping[str, Path], **options: Any) -> None:
        self.directory = model
        self.paths = dict(paths)
        self.harness = EngineHarness(model, **options)
        self.pages: dict[str, AdapterPages] = {n: self.harness.load(p) for n, p in self.paths.items()}

    @cached_property
    def peft(self) -> Peft:
        """PEFT in float32."""
        return Peft(self.directory, self.paths)

    @property
    def names(self) -> list[str | None]:
        """Every adapter, and None for the base."""
        return [None, *self.paths]

    def row(self, ask: Ask, **params: Any) -> Row:
        """A greedy sequence for ``ask``."""
        members = () if ask.adapter is None else ((self.pages[ask.adapter], 1.0),)
        return self.harness.sequence(ask.prompt, *members, max_tokens=ask.max_tokens, **params)

    def compare_with_peft(
        self, ask: Ask, answer: Answer, logits: Sequence[torch.Tensor] | None = None
    ) -> None:
        """Assert that PEFT, given the request alone, answers the same from the same logits.

        Greedy tokens equal PEFT's exactly if each is the likeliest after all before it.
        """
        assert len(answer.token_ids) == ask.max_tokens
        ids = [*ask.prompt, *answer.token_ids]
        expected = self.peft.logits(ids[:-1], ask.adapter)[len(ask.prompt) - 1 :]
        if logits is not None:
            assert_logits_match(torch.stack(list(logits)), expected)
        assert expected.argmax(-1).tolist() == answer.token_ids


@contextmanager
def recorded_logits() -> Iterator[dict[int, list[torch.Tensor]]]:
    """The logits that each sequence's tokens are drawn from, by sequence id."""
    found: dict[int, list[torch.Tensor]] = {}

    def recording(logits: torch.Tensor, rows: SampledRows, end_ids: frozenset[int], draw: Draw) -> list[int]:
        for row, sequence in zip(logits, rows.sequences, strict=True):
            found.setdefault(sequence.id, []).append(row.clone())
        return sample(logits, rows, end_ids, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manylora.server.engine.engine.sample", recording)
        yield found


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random byte tokens."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return tuple(torch.randint(256, (length,), generator=generator).tolist())
