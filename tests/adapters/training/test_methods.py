"""Every kind of adapter that is served and trained: it learns, passes the gate, and is served as trained."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.format.kinds.table import OPTIONS
from manylora.adapters.training.errors import CheckpointError, TrainingConfigError
from manylora.adapters.training.methods import (
    FULL,
    LORA,
    METHODS,
    NOT_TRAINED,
    PROMPTS,
    rate_of,
)
from manylora.adapters.training.model.lora import add_adapter
from manylora.adapters.training.model.virtual_tokens import virtual_tokens
from tests.support.adapter_set import recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.training_runs import ROWS, config, run

KINDS = [name for name in METHODS if name not in (LORA, FULL)]
# Of each sort one; make test-all trains by the others as well.
SOME = ("adalora", "lokr", "ln_tuning", "oft", "prefix_tuning", "trainable_tokens")
ALL = [pytest.param(name, marks=[] if name in SOME else pytest.mark.sweep) for name in KINDS]
TOKENS = list(range(32, 127))  # letters, digits and signs of the byte tokenizer
OWN: dict[str, dict[str, Any]] = {
    "trainable_tokens": {"method_option": {"token_indices": TOKENS}},
    "vera": {"lora_r": 64},
    "pvera": {"lora_r": 64},
}


def test_every_served_kind_is_trained_or_says_why_not() -> None:
    trained = {name.upper() for name in METHODS} - {FULL.upper()}
    assert trained | (NOT_TRAINED.keys() & OPTIONS.keys()) == OPTIONS.keys()
    assert not trained & NOT_TRAINED.keys()
    assert {*PROMPTS} <= {*METHODS}
    assert trained <= {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert all(0 < rate_of(name) <= 0.1 for name in METHODS)


def settings(base: Path, root: Path, method: str, **changes: Any) -> Any:
    """A run of a method with everything that has a default left at it."""
    made = config(base, root, method=method, **{**OWN.get(method, {}), **changes})
    given = made.model_dump(exclude_unset=True)
    for name in ("lora_r", "learning_rate", "dtype"):
        if name not in {**OWN.get(method, {}), **changes}:
            given.pop(name, None)
    return type(made)(**given)


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_it_learns_and_is_served_as_trained(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on its kinds
        result = run(settings(tiny_llama, tmp_path, method, max_steps=24, eval_steps=24))
        assert result.baseline.adapter["loss"] < result.baseline.base["loss"]
        assert result.gate.difference <= result.gate.allowed
        plain = AutoPeftModelForCausalLM.from_pretrained(result.adapter).eval()
    harness = EngineHarness(tiny_llama, adapter_bytes=256 << 20)
    pages = harness.load(result.adapter)
    prompt = harness.loaded.tokenizer.encode_chat([{"role": "user", "content": "say 30"}])
    row = harness.sequence(prompt, (pages, 1.0), max_tokens=6)
    with recorded_logits() as logits:
        (answer,) = harness.run(row)
    ids = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
    with torch.inference_mode():
        logits_of_all = plain(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    expected = logits_of_all[-len(answer.token_ids) :]
    assert_logits_match(torch.stack(logits[row.id]), expected)


@pytest.mark.slow
def test_common_options_reach_the_config(tiny_llama: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "lora_r": 3, "target_modules": "attention", "rank_pattern": {"q_proj": 2}, "max_steps": 3,
        "method_option": {"rank_dropout_scale": "true", "decompose_factor": "4"},
    }  # fmt: skip
    result = run(settings(tiny_llama, tmp_path, "lokr", **changes))
    saved = PEFT_TYPE_TO_CONFIG_MAPPING["LOKR"].from_pretrained(str(result.adapter))
    assert (saved.r, saved.alpha, saved.decompose_factor) == (3, 3, 4)
    assert saved.rank_dropout_scale is True
    assert saved.rank_pattern == {"q_proj": 2}
    assert all(name.startswith("self_attn.") for name in saved.target_modules)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_norms_are_trained_beside_any_kind(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = run(settings(tiny_llama, tmp_path, method, modules_to_save=["norm"], max_steps=4))
    artifact = read(result.adapter, StoredModel(tiny_llama).describe("base"))
    scales = [delta.scale for delta in artifact.delta.values() if delta.scale is not None]
    assert artifact.kind == f"{method.upper()}+NORMS"
    assert len(scales) == 5
    assert all(bool((scale != 1).any()) for scale in scales)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # PEFT's, of the ranks that AdaLoRA saves by its tensors
def test_a_run_of_adalora_is_not_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    run(settings(tiny_llama, tmp_path, "adalora", max_steps=8))
    with pytest.raises(CheckpointError, match="in no checkpoint"):
        run(settings(tiny_llama, tmp_path, "adalora", max_steps=8), resume=True)


def test_a_prefix_begins_small_unless_it_is_asked_otherwise(tiny_llama: Path, tmp_path: Path) -> None:
    """PEFT's draws of variance 1 hide the text."""
    stds = {}
    for start in ({}, {"init_weights": "zero"}):
        chosen = settings(tiny_llama, tmp_path, "prefix_tuning", method_option=start)
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        model, _ = add_adapter(base, chosen)
        stds[len(start)] = float(model.prompt_encoder["default"].embedding.weight.detach().std())
    assert 0.01 < stds[0] < 0.03
    assert stds[1] == 0


def test_a_prompt_counts_again_after_it_was_switched_off(tiny_llama: Path, tmp_path: Path) -> None:
    """PEFT leaves its patch of ``forward`` on the model; logits were taken 20 positions early then."""
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model, _ = add_adapter(base, settings(tiny_llama, tmp_path, "prompt_tuning"))
    assert virtual_tokens(model) == 20
    with model.disable_adapter():
        assert virtual_tokens(model) == 0
    assert virtual_tokens(model) == 20


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "bone"}, "bone is not trained: PEFT has MiSS"),
    ({"method": "cpt"}, "cpt is not trained: its loss needs"),
    ({"method": "nothing"}, "must be one of lora, full, adalora"),
    ({"method": "LOHA"}, "must be one of"),
    ({"method": "loha", "use_dora": True}, "use_dora: only with method lora, not loha"),
    ({"method": "hra", "quantization": "nf4"}, "quantization: only with method lora"),
    ({"method": "hra", "dtype": "bf16"}, "dtype: method hra trains on an fp32 base"),
    ({"method": "vera", "init": "pissa"}, "init: only with method lora"),
    ({"method": "ia3", "init_adapter": "x"}, "init_adapter: only with method lora"),
    ({"method": "trainable_tokens"}, "needs the tokens: --method-option"),
    ({"method_option": {"r": 3}}, "r is set by an option of its own with method lora"),
    ({"method": "loha", "method_option": {"r": 3}}, "r is set by lora_r"),
    ({"method": "loha", "method_option": {"peft_type": "LORA"}}, "peft_type is set by the trainer"),
    ({"method": "loha", "method_option": {"nothing": 3}}, "loha has no nothing; there are .*module_dropout"),
    ({"method": "adalora", "method_option": {"use_dora": True}}, "use_dora is not served"),
    ({"method": "full", "method_option": {"r": 3}}, "method_option: only with method lora"),
    ({"method": "loha", "method_option": "rank_dropout"}, "must be KEY=VALUE"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(tmp_path, tmp_path, rows=ROWS[:2], **{"lora_r": 4, "dtype": "auto", **changes})
    assert re.search(expected, str(error.value)), error.value


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"method": "ln_tuning", "lora_r": 4}, "--lora-r: method ln_tuning has no such thing"),
    ({"method": "hra", "lora_alpha": 4}, "--lora-alpha: method hra has no such thing"),
    ({"method": "hra", "lora_dropout": 0.5}, "--lora-dropout: method hra has no such thing"),
    ({"method": "hra", "rank_pattern": {"q_proj": 2}}, "--rank-pattern: method hra has no such thing"),
    ({"method": "loha", "method_option": {"rank_dropout": "much"}}, "--method-option rank_dropout=much: "),
    (
        {"method": "ln_tuning", "target_modules": ["q_proj"]},
        "--target-modules q_proj: no norm is",
    ),
    ({"method": "vblora", "method_option": {"vector_length": 7}}, "vector_length"),
]


@pytest.mark.parametrize(("changes", "expected"), UNFIT)
def test_what_a_kind_does_not_have_is_refused(
    tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises((TrainingConfigError, ValidationError), match=re.escape(expected)):
        run(settings(tiny_llama, tmp_path, **changes))
