"""On a base that came quantized a mixed batch equals PEFT on the dequantized model, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from manylora.adapters.base_models.catalog import resolve_model
from tests.support.adapter_set import AdapterSet, write_adapter_set
from tests.support.few_bits import assert_equals_peft
from tests.support.gguf_models import write_gguf_model, write_gguf_values
from tests.support.grouped_checkpoints import Grouping, write_dequantized, write_grouped
from tests.support.peft_oracle import Peft
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow


def kind_of(name: str) -> str:
    return "Q8_0" if "attn_v" in name or "ffn_down" in name else "Q4_0"


def bases(tmp_path: Path, method: str) -> tuple[Path, Path]:
    """A tiny model in few bits, and the same with the weights that these stand for."""
    model = tiny_model(tmp_path / "model")
    if method == "gguf":
        file = write_gguf_model(model, tmp_path / "base.gguf", kind_of)
        values = write_gguf_values(model, tmp_path / "values", kind_of)
        return resolve_model(str(file), tmp_path / "data"), values
    how = Grouping(method)
    return (
        write_grouped(model, tmp_path / "few", how),
        write_dequantized(model, tmp_path / "values", how),
    )


@pytest.mark.parametrize("method", ["gguf", "gptq", "awq"])
@pytest.mark.parametrize("generic", [False, True])
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, method: str, generic: bool) -> None:
    few, values = bases(tmp_path, method)
    paths = write_adapter_set(tmp_path / "adapters", values, "llama")
    adapter_set = AdapterSet(few, paths, generic=generic, max_batch_tokens=48)
    assert adapter_set.harness.base.quantization == method
    assert_equals_peft(adapter_set, Peft(values, paths), Peft(tmp_path / "model", paths))
