"""On a base in 4 or 8 bits a mixed batch equals PEFT on bitsandbytes' dequantized weights, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_set import (
    AdapterSet,
    Ask,
    prompt_of,
    recorded_logits,
    write_adapter_set,
)
from tests.support.peft_oracle import LOGITS_TOLERANCE, Peft
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes")

# Of the largest logit. A base that is not quantized differs by 20 to 60% (nf4), 2 to 7% (int8).
TOLERANCE = {"fp32": LOGITS_TOLERANCE, "bf16": 4e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LENGTHS = (37, 1, 50, 9, 16, 33, 17)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("family", "generic", "dtype"),
    [("llama", False, "bf16"), ("llama", False, "fp32"), ("llama", True, "fp32"), ("gpt2", True, "fp32")],
)
def test_a_mixed_batch_equals_peft_one_by_one(
    tmp_path: Path, family: str, generic: bool, dtype: str, kind: str
) -> None:
    sizes = {"intermediate_size": 128} if family == "llama" else {}
    model = tiny_model(tmp_path / "model", family, **sizes)
    paths = write_adapter_set(tmp_path / "adapters", model, family)
    adapter_set = AdapterSet(model, paths, generic=generic, quantize=kind, dtype=dtype, max_batch_tokens=48)
    assert isinstance(adapter_set.harness.decoder, FusedDecoder) != generic
    assert (adapter_set.harness.decoder.kernels == "pytorch") == (dtype == "fp32")  # else native ones
    peft, plain = Peft(model, paths, DTYPES[dtype], quantize=kind), Peft(model, paths)
    asks = [
        Ask(name, prompt_of(length, seed), max_tokens=4)
        for seed, (name, length) in enumerate(zip(adapter_set.names, LENGTHS, strict=True))
    ]
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    for ask, row, answer in zip(asks, rows, answers, strict=True):
        ids = [*ask.prompt, *answer.token_ids][:-1]
        found = torch.stack(logits[row.id]).float()
        wanted = peft.logits(ids, ask.adapter)[len(ask.prompt) - 1 :]
        unquantized = plain.logits(ids, ask.adapter)[len(ask.prompt) - 1 :]
        scale = wanted.abs().max()
        assert (found - wanted).abs().max() <= TOLERANCE[dtype] * scale, ask.adapter
        if dtype == "fp32":
            assert (found - unquantized).abs().max() > 10 * TOLERANCE[dtype] * scale, ask.adapter
