"""Gains, constants and scaled inputs on a base in 4 or 8 bits equal PEFT on the dequantized base."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.adapter_kinds import PeftPerAdapter, write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import LOGITS_TOLERANCE
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes")

KINDS = ("dora", "dora-bias", "lora-bias", "bias-all", "ia3", "vera")


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("generic", [False, True], ids=["fused", "generic"])
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, generic: bool, quantize: str) -> None:
    model = tiny_model(tmp_path / "model", "llama-untied-bias", intermediate_size=128)
    written = write_kinds(tmp_path, model, "llama")
    paths = {name: written[name] for name in KINDS}
    harness = EngineHarness(model, generic=generic, quantize=quantize)
    pages = {name: harness.load(path) for name, path in paths.items()}
    length = 12
    rows = {
        name: harness.sequence(prompt_of(length, i), (pages[name], 1.0), max_tokens=1)
        for i, name in enumerate(paths)
    }
    with recorded_logits() as logits:
        harness.run(*rows.values())
    quantized, plain = PeftPerAdapter(model, paths, quantize=quantize), PeftPerAdapter(model, paths)
    errors, effects = {}, {}
    for i, (name, row) in enumerate(rows.items()):
        found = logits[row.id][0].float()
        wanted, unquantized = (peft.logits(prompt_of(length, i), name)[-1] for peft in (quantized, plain))
        errors[name] = float((found - wanted).abs().max() / wanted.abs().max())
        effects[name] = float((found - unquantized).abs().max() / wanted.abs().max())
    assert all(error <= LOGITS_TOLERANCE for error in errors.values()), errors
    assert all(effect > 10 * LOGITS_TOLERANCE for effect in effects.values()), effects
