"""The real model in 4 bits: it still knows what it knew, and adapters still change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.adapter_set import AdapterSet, Ask, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.paths import ROOT
from tests.support.peft_oracle import Peft

pytestmark = pytest.mark.real
pytest.importorskip("bitsandbytes")

EXAMPLES = ROOT / "examples" / "adapters"


@pytest.mark.sweep
def test_nf4_answers_as_peft_does_on_the_same_base(real_model_dir: Path, tmp_path: Path) -> None:
    paths = {
        "pirate": EXAMPLES / "pirate",
        "random": write_adapter(tmp_path / "random", real_model_dir, targets="all-linear", scale=0.08),
    }
    adapter_set = AdapterSet(real_model_dir, paths, quantize="nf4", dtype="bf16", num_blocks=64)
    assert adapter_set.harness.decoder.kernels.startswith("cpu-")
    encode = adapter_set.harness.loaded.tokenizer.encode
    prompt = tuple(encode("The capital of France is"))
    asks = [Ask(name, prompt, max_tokens=4) for name in adapter_set.names]
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    assert "Paris" in answers[0].text
    base = torch.stack(logits[rows[0].id]).float()
    peft = Peft(real_model_dir, paths, torch.bfloat16, quantize="nf4")
    for ask, row, answer in zip(asks, rows, answers, strict=True):
        ids = [*prompt, *answer.token_ids][:-1]
        wanted = peft.logits(ids, ask.adapter)[len(prompt) - 1 :]
        found = torch.stack(logits[row.id]).float()
        assert relative(found, wanted) < 0.05  # bf16, over thirty layers
        assert ask.adapter is None or relative(found[:1], base[:1]) > 0.1


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
