"""Gains, constants and scaled inputs on a base in 4 or 8 bits equal PEFT on the same base."""

from __future__ import annotations

from pathlib import Path

import pytest

from manylora.server.model.quantize import weight_of
from tests.support.adapter_kinds import PeftPerAdapter, write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.tiny_models import tiny_model

pytest.importorskip("bitsandbytes")

# As in test_quantized_parity, but where PEFT rounds what is summed here: outputs with a trained bias to bf16
# (nf4), inputs that IA3 scales to bf16 or 8 bits. Without quantization it is 20% off (nf4).
TOLERANCE = 5e-3
KINDS = {"dora": 3, "dora-bias": 8, "lora-bias": 1, "bias-all": 5, "ia3": 6, "vera": 1}


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("generic", [False, True], ids=["fused", "generic"])
def test_a_mixed_batch_equals_peft_one_by_one(
    tmp_path: Path, generic: bool, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT 0.21 misreads 4-bit codes once bitsandbytes has packed them for the CPU, and gets norms wrong."""
    if quantize == "nf4":
        monkeypatch.setattr("peft.tuners.lora.dora.dequantize_module_weight", weight_of)
    model = tiny_model(tmp_path / "model", "llama-untied-bias", intermediate_size=128)
    written = write_kinds(tmp_path, model, "llama")
    paths = {name: written[name] for name in KINDS}
    harness = EngineHarness(model, generic=generic, quantize=quantize)
    pages = {name: harness.load(path) for name, path in paths.items()}
    length = 1 if quantize == "int8" else 12  # PEFT's rows in 8 bits take part in each other's outliers
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
    assert all(error <= KINDS[name] * TOLERANCE for name, error in errors.items()), errors
    assert all(effect > 2 * TOLERANCE for effect in effects.values()), effects
