"""Every kind of adapter in one batch equals PEFT with each of them alone, and mixes equal the formula."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_kinds import HookedModel, PeftPerAdapter, write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import DENSE_FAMILIES, seldom, tiny_model

# Of the generic decoder, whose code knows no family: by kinds of layers and norms; others in the long run.
SOME, OTHERS = ("llama-untied-bias", "gemma2", "gpt2", "opt"), ("qwen2", "phi3", "gpt_neox")
CASES = [(family, True) for family in SOME] + [
    pytest.param(family, True, marks=pytest.mark.sweep) for family in OTHERS
]
CASES += [pytest.param(family, False, marks=seldom(family)) for family in DENSE_FAMILIES]
LENGTHS = (37, 1, 20, 9, 16, 33, 17, 3, 30, 5, 12, 8, 19, 27, 6, 2, 23)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "generic"), CASES)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, generic: bool) -> None:
    model = tiny_model(tmp_path / "model", family)
    paths = write_kinds(tmp_path, model, family)
    harness = EngineHarness(model, generic=generic, max_batch_tokens=48)
    assert isinstance(harness.decoder, FusedDecoder) != generic
    pages = {name: harness.load(path) for name, path in paths.items()}
    names = [None, *paths]
    rows = [
        harness.sequence(
            prompt_of(length, length), *([] if name is None else [(pages[name], 1.0)]), max_tokens=5
        )
        for name, length in zip(names, LENGTHS, strict=True)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    oracle = PeftPerAdapter(model, paths)
    for name, row, answer in zip(names, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = oracle.logits(ids, name)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(name))
        assert expected.argmax(-1).tolist() == answer.token_ids


MIXES = (
    (("dora", 0.7), ("ia3", 0.3)),
    (("ia3", 1.5), ("ia3-inputs", -0.5)),
    (("dora-bias", 0.5), ("bias-all", 0.5), ("plain", 0.5)),
    (("lora-bias", -1.0), ("vera", 1.0)),
    (("ia3-inputs", 0.4), ("dora", 0.6), ("vera-seed", 0.5)),
    (("dora", 2.0), ("norms", 0.5), ("some-norms", -0.7)),
    (("plain", 1.0), ("norms", 1.0)),
    (("saved-norms", 0.6), ("ia3-saved-norms", -0.4), ("dora-saved-norm", 0.5)),
    (("bias-targets", 0.3), ("dora-rslora", -0.3), ("lora-bias", 0.3), ("ia3", 0.3)),
    (),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "generic"),
    [("llama-untied-bias", False), ("gpt2", True), ("opt", True)],
    ids=["fused", "conv1d", "generic"],
)
def test_mixes_equal_the_formula(tmp_path: Path, family: str, generic: bool) -> None:
    """Also with nine rows of a mix, which then are a segment, and one alone."""
    model = tiny_model(tmp_path / "model", family)
    paths = write_kinds(tmp_path, model, family)
    harness = EngineHarness(model, generic=generic)
    pages = {name: harness.load(path) for name, path in paths.items()}
    asks = [(mix, length) for mix, length in zip(MIXES, (5, 30, 1, 12, 9, 20, 7, 14, 3, 6), strict=True)]
    asks += [(MIXES[4], 4)] * 9
    rows = [
        harness.sequence(prompt_of(length, i), *((pages[n], w) for n, w in mix), max_tokens=3)
        for i, (mix, length) in enumerate(asks)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    hooked_model = HookedModel(model, harness.base, paths)
    for (mix, _), row, answer in zip(asks, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = hooked_model.logits(ids, mix)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(mix))


@pytest.mark.slow
def test_the_formula_is_what_peft_computes(tmp_path: Path) -> None:
    """The oracle of mixes, where PEFT can speak."""
    model = tiny_model(tmp_path / "model", "gpt2")
    paths = write_kinds(tmp_path, model, "gpt2")
    hooked_model, oracle = HookedModel(model, EngineHarness(model).base, paths), PeftPerAdapter(model, paths)
    ids, base = prompt_of(20), oracle.logits(prompt_of(20), None)
    for name in paths:
        expected = oracle.logits(ids, name)
        assert_logits_match(hooked_model.logits(ids, [(name, 1.0)]), expected, name=name)
        assert float((expected - base).abs().max()) > 0.05 * float(base.abs().max()), (
            f"{name} does too little"
        )


SAVED: dict[str, Callable[[], peft.PeftConfig]] = {
    "LORA+DORA": partial(
        peft.LoraConfig, use_dora=True, target_modules="all-linear", init_lora_weights=False
    ),
    "LORA+BIAS": partial(peft.LoraConfig, lora_bias=True, target_modules=["c_attn"], init_lora_weights=False),
    "LORA+DORA+BIAS": partial(peft.LoraConfig, use_dora=True, bias="all", target_modules=["c_fc"]),
    "LORA+NORMS": partial(
        peft.LoraConfig, target_modules=["c_attn"], modules_to_save=["ln_1", "ln_f"], init_lora_weights=False
    ),
    "IA3": partial(
        peft.IA3Config, target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]
    ),
    "LN_TUNING": partial(peft.LNTuningConfig, task_type="CAUSAL_LM"),
    "VERA+BIAS": partial(peft.VeraConfig, r=8, target_modules=["c_attn", "c_fc"], bias="vera_only"),
    "VERA": partial(peft.VeraConfig, r=8, target_modules="all-linear", save_projection=False),
}


@pytest.mark.parametrize("kind", SAVED)
def test_what_peft_saves_is_read(tmp_path: Path, kind: str) -> None:
    """The files that save_pretrained writes say what the trained model computes."""
    model = tiny_model(tmp_path / "model", "gpt2")
    base = EngineHarness(model).base
    ids = prompt_of(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D, biases and projections
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        trained = peft.get_peft_model(loaded, SAVED[kind]()).eval()
        _pretend_training(trained)
        trained.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        expected = trained(input_ids=torch.tensor([ids])).logits[0]
    assert read(tmp_path / "adapter", base).kind == kind
    hooked_model = HookedModel(model, base, {kind: tmp_path / "adapter"})
    assert_logits_match(hooked_model.logits(ids, [(kind, 1.0)]), expected)


@torch.no_grad()
def _pretend_training(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["pytorch", "generic", "native"])
def test_in_bf16_it_errs_no_more_than_peft(tmp_path: Path, kernels: str) -> None:
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    paths = write_kinds(tmp_path, model, "llama")
    chosen = "native" if kernels == "native" else "pytorch"
    harness = EngineHarness(model, generic=kernels == "generic", dtype="bf16", kernels=chosen)
    pages = {name: harness.load(path) for name, path in paths.items()}
    rows = [
        harness.sequence(prompt_of(30, i), (pages[name], 1.0), max_tokens=1) for i, name in enumerate(paths)
    ]
    with recorded_logits() as logits:
        harness.run(*rows)
    exact, rounded = PeftPerAdapter(model, paths), PeftPerAdapter(model, paths, torch.bfloat16)
    ours, theirs = [], []
    for i, (name, row) in enumerate(zip(paths, rows, strict=True)):
        want = exact.logits(prompt_of(30, i), name)[-1]
        ours.append(float((logits[row.id][0].float() - want).norm() / want.norm()))
        theirs.append(float((rounded.logits(prompt_of(30, i), name)[-1] - want).norm() / want.norm()))
    assert sum(ours) <= 1.3 * sum(theirs) + 1e-3, (ours, theirs)
    assert max(ours) < 0.05, ours
