"""What a valid artifact says, and what may be in its configuration without changing that."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from tests.support.adapters import lora_config, lora_tensors, write_adapter, write_artifact
from tests.support.artifact_cases import BASE, LIMITS, Q_A, Q_B, faults_of, valid, write_raw


@pytest.mark.parametrize(
    "harmless",
    [
        {"new": None}, {"new": False}, {"new": []}, {"new": {}}, {"new": ""},
        {"task_type": None}, {"lora_dropout": 0.1}, {"fan_in_fan_out": True}, {"inference_mode": False},
        {"base_model_name_or_path": "another/base"}, {"revision": "main"}, {"peft_version": "9.9.9"},
        {"init_lora_weights": False}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "mica"}, {"eva_config": {"rho": 2.0}},
        {"corda_config": {"corda_method": "kpm"}}, {"loftq_config": {"loftq_bits": 4}},
        {"megatron_core": "megatron.core"}, {"qalora_group_size": 32}, {"ensure_weight_tying": True},
        {"rank_pattern": None, "alpha_pattern": None}, {"target_modules": ["q_proj", "v_proj", "c_attn"]},
        {"rank_pattern": {"up_proj": 8}}, {"layers_to_transform": [0, 1, 5]}, {"layers_to_transform": []},
        {"exclude_modules": ["up_proj"]}, {"exclude_modules": ".*up_proj"}, {"exclude_modules": ""},
    ],
)  # fmt: skip
def test_harmless_settings(tmp_path: Path, harmless: dict[str, Any]) -> None:
    config, tensors = valid()
    artifact = read_artifact(write_artifact(tmp_path, config | harmless, tensors), BASE, LIMITS)
    assert len(artifact.delta) == 4


def test_what_a_valid_artifact_says(tmp_path: Path) -> None:
    options: dict[str, Any] = {"base_model_name_or_path": "org/base", "peft_version": "0.21.2"}
    write_adapter(
        tmp_path,
        BASE,
        rank=4,
        alpha=8,
        targets="all-linear",
        rank_pattern={"up_proj": 9},
        dtype=torch.bfloat16,
        **options,
    )
    artifact = read_artifact(tmp_path, BASE, LIMITS)
    assert list(artifact.delta) == list(BASE.modules), "forward order"
    up = artifact.delta["model.layers.1.up_proj"]
    assert (up.a.shape, up.b.shape, up.rank, up.scaling) == ((9, 8), (12, 9), 9, 8 / 9)
    assert up.a.dtype == torch.bfloat16
    assert artifact.rank == 9
    assert artifact.nbytes == sum(w.a.nbytes + w.b.nbytes for w in artifact.delta.values())
    assert (artifact.base_model_name, artifact.peft_version) == ("org/base", "0.21.2")
    assert re.fullmatch(r"[0-9a-f]{64}", artifact.digest)


def test_the_values_are_those_of_the_file(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        config = lora_config(rank=4, rslora=True)
        tensors = lora_tensors(BASE, config, dtype=dtype)
        artifact = read_artifact(write_artifact(tmp_path, config, tensors), BASE, LIMITS)
        q = artifact.delta["model.layers.0.q_proj"]
        assert torch.equal(q.a, tensors[Q_A])
        assert torch.equal(q.b, tensors[Q_B])
        assert q.scaling == 16 / math.sqrt(4)


def test_mixed_dtypes_at_odd_offsets(tmp_path: Path) -> None:
    """The format does not ask for alignment: half-precision tensors of odd size may come first."""
    config, tensors = valid()
    order = sorted(tensors)
    tensors = {
        key: tensors[key].to(torch.bfloat16 if i % 2 else torch.float32) for i, key in enumerate(order)
    }
    header: dict[str, Any] = {}
    data = b""
    for key, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        dtype = "BF16" if tensor.dtype == torch.bfloat16 else "F32"
        header[key] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header["pad"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    write_artifact(tmp_path, config, {})
    for entry in header.values():
        if entry["dtype"] != "U8":
            entry["data_offsets"] = [offset + 1 for offset in entry["data_offsets"]]
    write_raw(tmp_path, header, b"\0" + data)
    assert any("tensors of U8" in fault for fault in faults_of(tmp_path))  # and no crash on odd addresses


def test_the_digest_depends_on_every_byte_and_not_on_the_layout(tmp_path: Path) -> None:
    config, tensors = valid()
    first = read_artifact(write_artifact(tmp_path, config, tensors), BASE, LIMITS).digest
    (tmp_path / CONFIG_NAME).write_text(json.dumps(dict(reversed(config.items())), indent=3))
    assert read_artifact(tmp_path, BASE, LIMITS).digest == first
    raw = bytearray((tmp_path / WEIGHTS_NAME).read_bytes())
    raw[-1] ^= 1
    (tmp_path / WEIGHTS_NAME).write_bytes(raw)
    second = read_artifact(tmp_path, BASE, LIMITS).digest
    config["lora_alpha"] = 17
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    assert len({first, second, read_artifact(tmp_path, BASE, LIMITS).digest}) == 3
