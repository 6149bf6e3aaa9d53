"""LoRA adapters of llama.cpp: one GGUF file, with its names and its order of rows; hostile files included."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Limits
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.foreign.convert import convert
from tests.support.foreign_adapters import (
    LIMITS,
    Tensors,
    assert_same_change,
    converted,
    llama_cpp_tensors,
    peft_adapter,
    read,
    tiny_base,
    write_gguf,
    written,
)


@pytest.fixture(scope="module")
def llama() -> BaseModel:
    return tiny_base("llama")


@pytest.fixture
def tensors(tmp_path: Path, llama: BaseModel) -> Tensors:
    """Of the PEFT adapter in ``tmp_path/peft``, as llama.cpp has them."""
    return llama_cpp_tensors(peft_adapter(tmp_path / "peft", llama, "llama")[1], 4, 2)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_it_is_the_same_adapter(tmp_path: Path, llama: BaseModel, tensors: Tensors, kind: str) -> None:
    write_gguf(tmp_path / "in" / "support.gguf", tensors, kind=kind)
    found = converted(tmp_path / "in", tmp_path / "out", llama)
    assert found.conversion.details()["format"] == "GGUF"
    assert found.conversion.details()["file"] == "support.gguf"
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    peft = written(tmp_path / "peft")
    assert all(torch.equal(written(tmp_path / "out")[key], peft[key].to(dtype)) for key in peft)
    if kind == "F32":
        assert_same_change(read(tmp_path / "out", llama), read(tmp_path / "peft", llama))


def test_quantized_tensors_are_dequantized(tmp_path: Path, llama: BaseModel, tensors: Tensors) -> None:
    some = {k: t for k, t in tensors.items() if k.endswith("lora_a") and t.shape[1] == 32}
    some |= {k[:-1] + "b": tensors[k[:-1] + "b"] for k in some}
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 6.0)
    for name, tensor in some.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if name.endswith("a") else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "in").mkdir()
    (tmp_path / "q.gguf").rename(tmp_path / "in" / "q.gguf")
    found = converted(tmp_path / "in", tmp_path / "out", llama)
    assert "dequantized to float32" in found.conversion.details()["rules"]
    peft = written(tmp_path / "peft")
    for key, tensor in written(tmp_path / "out").items():
        assert (tensor - peft[key]).abs().max() < 0.01, key


def test_alpha_of_zero_is_a_scale_of_one(tmp_path: Path, llama: BaseModel, tensors: Tensors) -> None:
    write_gguf(tmp_path / "in" / "a.gguf", tensors, alpha=0.0)
    converted(tmp_path / "in", tmp_path / "out", llama)
    assert {delta.scaling for delta in read(tmp_path / "out", llama).delta.values()} == {1.0}


def test_embeddings_and_the_output_head(tmp_path: Path, llama: BaseModel) -> None:
    """llama.cpp has A of the embeddings with a row for each token, and the rest as PEFT has it."""
    a, b = torch.rand(4, 32), torch.rand(32, 4)
    tensors = {"token_embd.weight.lora_a": a.T, "token_embd.weight.lora_b": b}
    tensors |= {"output.weight.lora_a": a + 1, "output.weight.lora_b": b + 1}
    write_gguf(tmp_path / "in" / "a.gguf", tensors)
    converted(tmp_path / "in", tmp_path / "out", llama)
    prefix = "base_model.model"
    expected = {f"{prefix}.model.embed_tokens.lora_embedding_A": a, f"{prefix}.lm_head.lora_B.weight": b + 1}
    found = written(tmp_path / "out")
    assert len(found) == 4
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert read(tmp_path / "out", llama).vocabulary is not None


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a model": ({"general_type": "model"}, "no adapter: its general.type is 'model'"),
    "another type": ({"adapter_type": "control"}, "adapter.type 'control'"),
    "another base": ({"architecture": "qwen2"}, "made for the architecture 'qwen2'"),
    "negative": ({"alpha": -1.0}, "adapter.lora.alpha"),
    "NaN": ({"alpha": float("nan")}, "adapter.lora.alpha"),
    "infinite": ({"alpha": float("inf")}, "adapter.lora.alpha"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_means_something_else(
    tmp_path: Path, llama: BaseModel, tensors: Tensors, case: str
) -> None:
    options, message = REFUSED[case]
    write_gguf(tmp_path / "in" / "a.gguf", tensors, **options)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=message):
        convert(tmp_path / "in", llama, LIMITS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.0.attn_q.weight", "unexpected tensors 'blk.0.attn_q.weight'"),
        ("blk.9.attn_q.weight.lora_a", "unexpected tensors 'blk.9"),
        ("blk.0.ffn_gate_exps.weight.lora_a", "unexpected tensors"),
        ("output_norm.weight", "unexpected tensors"),
        ("output.weight.lora_a", "missing tensors: A or B of 'output'"),
    ],
)
def test_a_tensor_too_many(
    tmp_path: Path, llama: BaseModel, tensors: Tensors, name: str, message: str
) -> None:
    write_gguf(tmp_path / "in" / "a.gguf", {**tensors, name: torch.ones(4, 32)})
    with pytest.raises(ArtifactError, match=message):
        convert(tmp_path / "in", llama, LIMITS)


def test_bases_of_which_the_order_of_rows_is_not_known(
    tmp_path: Path, llama: BaseModel, tensors: Tensors
) -> None:
    from dataclasses import replace

    write_gguf(tmp_path / "in" / "a.gguf", tensors)
    with pytest.raises(ArtifactError, match=r"llama\.cpp's order of its rows is not known"):
        convert(tmp_path / "in", replace(llama, model_type="deepseek_v3"), LIMITS)
    with pytest.raises(ArtifactError, match="attention heads are not known"):
        convert(tmp_path / "in", replace(llama, heads=None), LIMITS)


def test_several_files_are_a_fault(tmp_path: Path, llama: BaseModel, tensors: Tensors) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / "in" / name, tensors)
    with pytest.raises(ArtifactError, match=r"several files that may be the adapter: 'a.gguf', 'b.gguf'"):
        convert(tmp_path / "in", llama, LIMITS)


def test_more_bytes_than_allowed(tmp_path: Path, llama: BaseModel, tensors: Tensors) -> None:
    write_gguf(tmp_path / "in" / "a.gguf", tensors)
    with pytest.raises(ArtifactError, match="the limit is 1,000"):
        convert(tmp_path / "in", llama, Limits(64, 1000))


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _file(*, tensors: int = 0, entries: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def _tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _string(name) + dims + struct.pack("<IQ", kind, offset)


HUGE = (1 << 64) - 1
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "magic alone": b"GGUF",
    "another magic": b"GGML" + bytes(40),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "a version of tomorrow": _file(version=4),
    "2^64 tensors": _file(tensors=HUGE),
    "2^64 entries": _file(entries=HUGE),
    "many entries that are not there": _file(entries=65536),
    "a long key": _file(entries=1, rest=struct.pack("<Q", HUGE) + b"x"),
    "a long text": _file(entries=1, rest=_string(b"k") + struct.pack("<IQ", 8, 1 << 62)),
    "an unknown type": _file(entries=1, rest=_string(b"k") + struct.pack("<I", 77)),
    "a long array": _file(entries=1, rest=_string(b"k") + struct.pack("<IIQ", 9, 0, HUGE)),
    "a long array of texts": _file(entries=1, rest=_string(b"k") + struct.pack("<IIQ", 9, 8, HUGE)),
    "an array of arrays": _file(entries=1, rest=_string(b"k") + struct.pack("<IIQ", 9, 9, 1)),
    "a key twice": _file(entries=2, rest=(_string(b"k") + struct.pack("<IB", 0, 1)) * 2),
    "no UTF-8": _file(entries=1, rest=_string(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "no alignment": _file(entries=1, rest=_string(b"general.alignment") + struct.pack("<II", 4, 0)),
    "an odd alignment": _file(entries=1, rest=_string(b"general.alignment") + struct.pack("<II", 4, 33)),
    "alignment as text": _file(
        entries=1, rest=_string(b"general.alignment") + struct.pack("<I", 8) + _string(b"x")
    ),
    "a size that overflows": _file(tensors=1, rest=_tensor(b"t", (1 << 32, 1 << 32))),
    "a size of 2^64": _file(tensors=1, rest=_tensor(b"t", (HUGE,))),
    "a size of 0": _file(tensors=1, rest=_tensor(b"t", (0, 4))),
    "no dimensions": _file(tensors=1, rest=_tensor(b"t", ())),
    "many dimensions": _file(tensors=1, rest=_string(b"t") + struct.pack("<I", 1 << 31)),
    "beyond the end": _file(tensors=1, rest=_tensor(b"t", (4, 4), offset=1 << 60)),
    "an odd offset": _file(tensors=1, rest=_tensor(b"t", (4,), offset=3) + bytes(200)),
    "one over another": _file(tensors=2, rest=_tensor(b"t", (8,)) + _tensor(b"u", (8,)) + bytes(200)),
    "one twice": _file(tensors=2, rest=_tensor(b"t", (8,)) * 2 + bytes(200)),
    "a type of tomorrow": _file(tensors=1, rest=_tensor(b"t", (8,), kind=9999) + bytes(200)),
    "a broken block": _file(tensors=1, rest=_tensor(b"t", (8,), kind=8) + bytes(200)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, llama: BaseModel, case: str) -> None:
    (tmp_path / "a.gguf").write_bytes(HOSTILE[case])
    with pytest.raises(ArtifactError) as error:
        convert(tmp_path, llama, LIMITS)
    assert len(str(error.value)) < 1000


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path, llama: BaseModel, tensors: Tensors) -> None:
    """Bytes changed, cut out and put in, mostly in the header."""
    whole = write_gguf(tmp_path / "whole" / "a.gguf", tensors).read_bytes()
    draw = random.Random(7)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(min(len(content), 4000) if draw.random() < 0.8 else len(content))
            kind = draw.random()
            if kind < 0.6:
                content[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
            elif kind < 0.8:
                del content[place : place + draw.choice([1, 8, 100])]
            else:
                content[place:place] = bytes(draw.choice([1, 8]))
        (tmp_path / "in" / "a.gguf").write_bytes(content)
        try:
            found = convert(tmp_path / "in", llama, LIMITS)
            assert found is not None
            found.write(tmp_path / "out")
            read(tmp_path / "out", llama)
        except ArtifactError:
            refused += 1
    assert refused > 100
