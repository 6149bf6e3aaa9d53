"""On a base in 4 or 8 bits a mixed batch equals PEFT on the same quantized base, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server.model.fused import FusedDecoder
from tests.support.adapter_set import AdapterSet, Ask, prompt_of, recorded_logits, write_adapter_set
from tests.support.peft_oracle import Peft
from tests.support.tiny_models import tiny_model

pytest.importorskip("bitsandbytes")

# Activations are rounded to bf16 or to 8 bits on their way into each layer: where a sum differs in its last
# bit they may fall on either side. A base that is not quantized differs by 20 to 60% (nf4), 2 to 7% (int8).
TOLERANCE = 5e-3
LENGTHS = (37, 1, 50, 9, 16, 33, 17)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(("family", "generic"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, generic: bool, kind: str) -> None:
    sizes = {"intermediate_size": 128} if family == "llama" else {}
    model = tiny_model(tmp_path / "model", family, **sizes)
    paths = write_adapter_set(tmp_path / "adapters", model, family)
    adapter_set = AdapterSet(model, paths, generic=generic, quantize=kind, max_batch_tokens=48)
    assert isinstance(adapter_set.harness.decoder, FusedDecoder) != generic
    assert adapter_set.harness.decoder.kernels == "pytorch"
    peft, plain = Peft(model, paths, quantize=kind), Peft(model, paths)
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
        wanted = one_token_at_a_time(peft, ids, ask.adapter)[len(ask.prompt) - 1 :]
        unquantized = plain.logits(ids, ask.adapter)[len(ask.prompt) - 1 :]
        scale = wanted.abs().max()
        assert (found - wanted).abs().max() <= TOLERANCE * scale, ask.adapter
        assert (found - unquantized).abs().max() > 2 * TOLERANCE * scale, ask.adapter


@torch.inference_mode()
def one_token_at_a_time(peft: Peft, ids: list[int], adapter: str | None) -> torch.Tensor:
    """PEFT's logits [T, V], each token alone: together, 8-bit rows take part in each other's outliers."""
    cache, found = None, []
    with peft.running(adapter) as model:
        for token in ids:
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits[0, -1].float())
    return torch.stack(found)
