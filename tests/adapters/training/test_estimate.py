"""The estimate against the bytes that training really holds, and against known models."""

from __future__ import annotations

import weakref
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

from manylora.adapters.format.pooling import Pooling
from manylora.adapters.training.estimate.memory import Plan, estimate, target_table
from manylora.adapters.training.estimate.tables import estimate_tables, size
from manylora.adapters.training.model.embedding import pooled
from manylora.adapters.training.trainers.contrast import ranking_loss, ranking_scores
from tests.support.tiny_models import EXPERT_FAMILIES, FAMILIES, costly, tiny_model


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self.now = 0
        self.peak: int = 0

    def watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.watch(leaf)
        return result


def measured_peak(directory: Path, plan: Plan, *, is_full: bool) -> int:
    """Two optimizer steps; the most bytes alive at once."""
    with LiveBytes() as live:
        dtype = torch.float32 if is_full else plan.dtype
        kind: Any = AutoModelForCausalLM if plan.texts is None else AutoModel
        model: Any = kind.from_pretrained(directory, dtype=dtype)
        if not is_full:
            model.requires_grad_(False)
            task = "CAUSAL_LM" if plan.texts is None else "FEATURE_EXTRACTION"
            config = LoraConfig(r=plan.r, target_modules="all-linear", task_type=task)
            model = get_peft_model(model, config)
        for tensor in (*model.parameters(), *model.buffers()):
            live.watch(tensor)
        if plan.gradient_checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        model.train()
        live.peak = live.now
        ids = torch.randint(0, 250, (plan.batch_size * (plan.texts or 1), plan.max_length))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(2):
            loss = _loss(model, ids, plan)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    peak: int = live.peak
    return peak


def _loss(model: Any, ids: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Of every token, or of finding the positives of a batch of pairs."""
    mask = torch.ones_like(ids)
    output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    if plan.texts is None:
        return torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), ids.flatten())
    vectors, rows = pooled(output.last_hidden_state, mask, Pooling.MEAN), plan.batch_size
    excluded = torch.zeros(rows, len(ids) - rows, dtype=torch.bool)
    return ranking_loss(ranking_scores(vectors[:rows], vectors[rows:], excluded), 0.05, symmetric=False)


PLANS = {
    "fp32": Plan(max_length=128, batch_size=4, dtype=torch.float32),
    "bf16": Plan(max_length=128, batch_size=4),
    "checkpointing": Plan(max_length=128, batch_size=4, gradient_checkpointing=True),
    "short": Plan(max_length=32, batch_size=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_within_a_fifth_of_the_measured_peak(name: str, is_full: bool, tmp_path: Path) -> None:
    plan = PLANS[name]
    directory = tiny_model(tmp_path, num_hidden_layers=4)
    (row,) = estimate(AutoConfig.from_pretrained(directory), plan, ["full" if is_full else "lora"])
    assert row.peak == pytest.approx(measured_peak(directory, plan, is_full=is_full), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [False, pytest.param(True, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("is_tied", [pytest.param(True, marks=pytest.mark.sweep), False])
def test_pairs_that_are_embedded(is_checkpointed: bool, is_tied: bool, tmp_path: Path) -> None:
    """Two texts a row, no logits, and no head where that is not the embeddings."""
    plan = Plan(max_length=64, batch_size=4, texts=2, gradient_checkpointing=is_checkpointed)
    directory = tiny_model(tmp_path, num_hidden_layers=4, tie_word_embeddings=is_tied)
    config = AutoConfig.from_pretrained(directory)
    (row,) = estimate(config, plan, ["lora"])
    assert row.peak == pytest.approx(measured_peak(directory, plan, is_full=False), rel=0.2)
    (writing,) = estimate(config, replace(plan, texts=None, batch_size=8), ["lora"])
    assert row.activations <= writing.activations
    assert (row.weights < writing.weights) != is_tied


@pytest.mark.slow
@pytest.mark.parametrize("family", costly((f for f in FAMILIES if f not in EXPERT_FAMILIES), fused=False))
def test_every_family(family: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model(tmp_path, family))
    full, lora, eight, four = estimate(config, Plan(max_length=32, batch_size=2))
    assert full.weights > lora.weights > eight.weights > four.weights > 0
    assert lora.activations > 0
    assert lora.gradients == eight.gradients == four.gradients < full.gradients
    sizes = {row.target: row.trainable for row in target_table(config, 4)}
    assert sizes["all-linear"] == sizes["attention"] + sizes["mlp"]


# Shapes as in the models' config.json on the Hub.
SEVEN = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
SEVENTY = LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8,
)  # fmt: skip


@pytest.mark.slow
def test_large_models_without_their_weights() -> None:
    by_target = {row.target: row for row in target_table(SEVEN, 16)}
    assert by_target["all-linear"].trainable == 39_976_960  # known of Llama 2 7B at rank 16
    assert by_target["all-linear"].file_bytes == 2 * 39_976_960
    assert by_target["attention"].trainable == 16_777_216
    full, lora, _, four = estimate(SEVEN, Plan(max_length=512, batch_size=1))
    assert full.weights + full.gradients + full.optimizer == pytest.approx(16 * 6.74e9, rel=0.01)
    assert lora.weights == pytest.approx(13.6e9, rel=0.02)
    assert four.weights == pytest.approx(4.2e9, rel=0.1)
    assert estimate(SEVENTY, Plan(max_length=512, batch_size=1), ["qlora"])[0].weights == pytest.approx(
        4e10, rel=0.1
    )


@pytest.mark.slow
def test_tables() -> None:
    shown = StringIO()
    Console(file=shown, width=120).print(estimate_tables(SEVEN, Plan(max_length=64, batch_size=1), ["qlora"]))
    for text in ("QLoRA, 4-bit base", "peak", "39,976,960", "0.59%", "80 MB"):
        assert text in shown.getvalue()
    assert [size(n) for n in (0, 999, 1500, 123456, 7e9, 2e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "123 kB",
        "7 GB",
        "2 TB",
    ]
