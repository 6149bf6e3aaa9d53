"""On a base in 4 or 8 bits a mixed batch equals PEFT on bitsandbytes' dequantized weights, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_set import AdapterSet, write_adapter_set
from tests.support.few_bits import assert_equals_peft
from tests.support.peft_oracle import LOGITS_TOLERANCE, Peft
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes")

# Of the largest logit. A base that is not quantized differs by 20 to 60% (nf4), 2 to 7% (int8).
TOLERANCE = {"fp32": LOGITS_TOLERANCE, "bf16": 4e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    assert_equals_peft(adapter_set, peft, plain, TOLERANCE[dtype], tells_bits=dtype == "fp32")
