"""Files of further kinds that lie: each is refused by name, before anything large is made."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.support import Treatment
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.shared.tinylora import TinyLora
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES
from manylora.server.model.pages.pool import PagePool
from tests.support.adapters import write_artifact
from tests.support.artifact_cases import LIMITS, PREFIX
from tests.support.kind_cases import (
    BASE,
    FURTHER,
    Change,
    Q,
    drop,
    faults_of,
    fill,
    poison,
    put,
    read,
    set_key,
    valid,
)

MODULES = (*BASE.modules.values(), *BASE.norms.values())
NUMBERS: tuple[Any, ...] = (10**6, 10**9, 10**30, -1, 0, 1.5, "x", [], {}, True)
HUGE = NUMBERS[:3]
ANY_NUMBER = {  # of the keys, those that allow large numbers
    "projection_seed", "proj_seed", "projection_prng_key", "alpha", "lora_alpha", "decompose_factor",
    "mini_r", "topk",
}  # fmt: skip


class Ramp:
    """A base whose weights differ."""

    def weight(self, module: int) -> torch.Tensor:
        described = MODULES[module]
        count = described.out_features * described.in_features
        return (torch.arange(count) % 7 - 3.0).view(described.out_features, described.in_features)

    def bias(self, module: int) -> torch.Tensor | None:
        return torch.full((MODULES[module].out_features,), 0.5) if MODULES[module].bias else None


def pack(artifact: Artifact) -> None:
    pool = PagePool(MODULES, 1 << 20, torch.float32, torch.device("cpu"), Ramp())
    pool.pack(artifact.digest, artifact.delta)


@pytest.mark.parametrize("kind", FURTHER)
def test_they_are_valid_before_they_are_changed(tmp_path: Path, kind: str) -> None:
    artifact = read(tmp_path, kind)
    assert artifact.kind == FURTHER[kind]["peft_type"]
    assert set(artifact.delta) == {n for n in BASE.modules if n.endswith(("q_proj", "up_proj"))}
    pack(artifact)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FURTHER)
def test_every_tensor_is_needed_in_its_shape_and_finite(tmp_path: Path, kind: str) -> None:
    for i, (key, tensor) in enumerate(valid(kind)[1].items()):
        missing = "missing tensors|modules that have no tensors"
        assert re.search(missing, faults_of(tmp_path / f"{i}a", kind, drop(key))[0]), key
        for name, shape in (("b", (*tensor.shape, 1)), ("c", (tensor.shape[0] + 1, *tensor.shape[1:]))):
            larger = torch.zeros(shape, dtype=tensor.dtype)
            (fault,) = faults_of(tmp_path / f"{i}{name}", kind, put(key, larger))
            assert re.fullmatch(rf"size mismatch for '{re.escape(key)}'.*", fault), fault
        if tensor.dtype is torch.uint8:
            (fault,) = faults_of(tmp_path / f"{i}d", kind, put(key, tensor.float()))
            assert fault == f"{key!r} holds F32, integers are needed"
        else:
            if tensor.numel() > 1:
                (fault,) = faults_of(tmp_path / f"{i}d", kind, poison(key))
                assert re.search("NaN or infinite values in", fault), fault
            (fault,) = faults_of(tmp_path / f"{i}e", kind, put(key, tensor.to(torch.int32)))
            assert "has tensors of I32" in fault


def numbers_of(kind: str) -> list[str]:
    """The keys of its config that are served, and not common to all kinds."""
    options = KINDS_OF_UPDATES[FURTHER[kind]["peft_type"]].options
    common = {"peft_type", "task_type", "auto_mapping", "target_modules", "modules_to_save", "bias"}
    return [o.key for o in options if o.treatment is Treatment.SERVED and o.key not in common]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FURTHER)
def test_numbers_of_any_size(tmp_path: Path, kind: str) -> None:
    """An artifact that can be laid out, or an ArtifactError; within a second, whatever the number is."""
    config, tensors = valid(kind)
    directory = write_artifact(tmp_path, config, tensors)
    for key in numbers_of(kind):
        for value in NUMBERS:
            write_artifact(directory, config | {key: value}, tensors)
            start = perf_counter()
            with suppress(ArtifactError):
                pack(read_artifact(directory, BASE, LIMITS))
                assert value not in HUGE or key in ANY_NUMBER, (key, value)
            assert perf_counter() - start < 1.0, (key, value)


FAULTS: list[tuple[str, Change, str]] = [
    ("adalora", set_key("rank_pattern", {"model.layers.7.q_proj.lora_E": [1, 0, 1, 0]}), "pattern names"),
    ("adalora", set_key("rank_pattern", {"model.layers.0.q_proj.lora_E": [1, 0]}), "lists of 4 flags"),
    ("adalora", set_key("rank_pattern", {"model.layers.0.q_proj.lora_E": 2}), "lists of 4 flags"),
    ("adalora", set_key("rank_pattern", {"model.layers.0.q_proj.lora_E": [1, 0, 1, 2]}), "lists of 4 flags"),
    ("adalora", set_key("use_dora", True), "use_dora=True is not served"),
    ("adalora", put(f"{Q}.lora_A.weight", torch.ones(4, 8)), "unexpected tensors.*ADALORA adapter.*no such"),
    ("bone", set_key("init_weights", "mini"), "init_weights should be true, false or 'bat'"),
    ("bone", put(f"{Q}.miss_block", torch.ones(4, 8)), "unexpected tensors.*BONE adapter.*no such tensors"),
    ("gralora", set_key("r", 6), "gralora_k=4 does not divide r=6"),
    ("gralora", set_key("exclude_modules", ["q_proj"]), "'exclude_modules' is not an option"),
    ("hra_gs", set_key("r", 9), "apply_GS needs an r up to the 8 inputs of 'model.layers.0.q_proj'"),
    ("loha", put(f"{PREFIX}.0.v_proj.hada_w1_a", torch.ones(4, 2)), "unexpected.*target_modules does"),
    ("lokr", set_key("decompose_factor", 0.5), "decompose_factor should be a whole number"),
    ("miss", set_key("r", 9), "r=9 is more than the 8 inputs of 'model.layers.0.q_proj'"),
    ("miss", set_key("init_weights", "bone"), "init_weights should be true, false or 'bat' or 'mini'"),
    ("miss_bat", set_key("r", 3), "'bat' needs an r that divides the 8 inputs and 8 outputs of 'model.l"),
    ("miss_mini", set_key("mini_r", 5), "mini_r=5 does not divide the 8 outputs of 'model.layers.0.q_proj'"),
    ("pvera", set_key("sample_at_inference", True), "sample_at_inference=True is not served"),
    ("pvera_seed", put("base_model.pvera_A", torch.ones(10, 8)), "unexpected tensors"),
    ("tinylora", set_key("weight_tying", 1.5), "weight_tying should be a number from 0 to 1"),
    ("tinylora", put("base_model.tinylora_v.9", torch.ones(3)), "unexpected tensors .*tinylora_v.9"),
    ("tinylora_seed", set_key("projection_seed", -1), "projection_seed should be a seed"),
    ("vblora", set_key("vector_length", 3), "vector_length=3 does not divide the sizes of 'model.layers.0.q"),
    ("vblora", set_key("topk", 6), "topk=6 is more than num_vectors=5"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "expected"), FAULTS)
def test_every_fault_is_told(tmp_path: Path, kind: str, change: Change, expected: str) -> None:
    faults = faults_of(tmp_path, kind, change)
    assert any(re.search(expected, fault) for fault in faults), faults
    assert len(faults) == 1, faults


WORTHLESS: list[tuple[str, Change, str]] = [
    ("adalora", fill("lora_E", 0.0), "would do nothing"),
    ("delora", fill("delora_B", 0.0), "would do nothing"),
    ("gralora", fill(".weight", 0.0), "^$"),
    ("hra", fill("0.q_proj.hra_u", 0.0), "a column of hra_u is zero in 'model.layers.0.q_proj'"),
    ("hra", fill("hra_u", 1.0), "^$"),
    ("hra_gs", fill("1.up_proj.hra_u", 1.0), "columns of hra_u are linearly dependent in 'model.layers.1.up"),
    ("loha", fill("hada_w2_b", 0.0), "would do nothing"),
    ("loha", fill("_b", 3e38), "the change of the weight is not finite in 'model.layers.0.q_proj'"),
    ("lokr", fill("lokr_w2_a", 0.0), "would do nothing"),
    ("miss", fill("miss_block", 0.0), "would do nothing"),
    ("miss_bat", fill("miss_block", 0.0), "would do nothing"),
    ("tinylora", fill("v.0", 0.0), "^$"),
    ("unilora", fill("theta_d", 0.0), "would do nothing"),
    (
        "unilora_saved",
        fill("indices_B", 9),
        "unilora_indices name numbers that unilora_theta_d does",
    ),
    ("vblora", fill("bank", 0.0), "would do nothing"),
    ("vblora_top", fill("A_topk_indices", 5), "topk_indices name vectors that the bank does not have"),
]


@pytest.mark.parametrize(("kind", "change", "expected"), WORTHLESS)
def test_tensors_that_make_no_change(tmp_path: Path, kind: str, change: Change, expected: str) -> None:
    """``^$``: those that still change something, in another way."""
    artifact = read(tmp_path, kind, change)
    if expected == "^$":
        pack(artifact)
        return
    with pytest.raises(ArtifactError, match=expected):
        pack(artifact)


def test_an_untrained_hra_whose_reflections_cancel_out(tmp_path: Path) -> None:
    def pair(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        config["r"] = 4
        for key, tensor in tensors.items():
            tensors[key] = tensor[:, :2].repeat_interleave(2, dim=1)

    with pytest.raises(ArtifactError, match="would do nothing"):
        pack(read(tmp_path, "hra", pair))


def test_indices_that_are_drawn_anew_are_bounded(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "unilora", set_key("r", 60_000))
    assert re.match(r"rank 60000 of .* is above the limit", fault)
    faults = Faults()
    TinyLora(64, 1 << 20, 0.0, seed=1).lay_out([TargetModule("m", 64, 64)], faults)
    with pytest.raises(ArtifactError, match="drawn anew they may have"):
        faults.raise_any()
