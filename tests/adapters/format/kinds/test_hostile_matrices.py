"""Configs and tensors of matrix kinds that mean harm, or nothing: refused by name, at little cost."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.kinds.matrices import MATRIX_KINDS
from manylora.adapters.format.update import NoUpdate
from manylora.adapters.format.weights.delta import ModuleDelta
from tests.support.adapters import write_artifact
from tests.support.artifact_cases import LIMITS, PREFIX
from tests.support.kind_cases import BASE
from tests.support.matrix_cases import VALID, config_of, tensors_of

HUGE = 10**9


def read(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Artifact:
    return read_artifact(write_artifact(directory, config, tensors), BASE, LIMITS)


def refusal(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """All faults, found without much time or memory."""
    started, memory = monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError) as error:
        read(directory, config, tensors)
    assert monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000, "kilobytes"
    return "; ".join(error.value.faults)


def test_every_kind_has_a_valid_config() -> None:
    assert set(VALID) == {kind.peft_type for kind in MATRIX_KINDS}


@pytest.mark.parametrize("kind", VALID)
def test_the_valid_ones_are_read(tmp_path: Path, kind: str) -> None:
    config = config_of(kind)
    artifact = read(tmp_path, config, tensors_of(config))
    assert artifact.kind == kind
    assert len(artifact.delta) == 4
    for name, delta in artifact.delta.items():
        module = BASE.modules[name]
        a, b = delta.factors(torch.randn(module.out_features, module.in_features))
        assert (b @ a).shape == (module.out_features, module.in_features)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("OFT", {"oft_block_size": HUGE}, "size mismatch"),
        ("OFT", {"oft_block_size": 0, "r": HUGE}, "size mismatch"),
        ("OFT", {"oft_block_size": -4}, "oft_block_size"),
        ("OFT", {"oft_block_size": 0}, "oft_block_size"),
        ("OFT", {"oft_block_size": None}, "PEFT before 0.14"),
        ("OFT", {"r": 2}, "oft_block_size"),
        ("OFT", {"num_cayley_neumann_terms": HUGE}, "num_cayley_neumann_terms"),
        ("OFT", {"coft": True, "eps": 1e300}, "eps"),
        ("BOFT", {"boft_block_size": HUGE}, "boft_block_size"),
        ("BOFT", {"boft_block_size": 3}, "does not divide"),
        ("BOFT", {"boft_n_butterfly_factor": HUGE}, "boft_n_butterfly_factor"),
        ("BOFT", {"boft_n_butterfly_factor": 30}, "does not divide"),
        ("BOFT", {"boft_block_size": 0, "boft_block_num": HUGE}, "does not divide"),
        ("BOFT", {"boft_block_num": 2}, "boft_block_size"),
        ("FOURIERFT", {"n_frequency": HUGE}, "n_frequency is more"),
        ("FOURIERFT", {"n_frequency_pattern": {"q_proj": HUGE}}, "n_frequency is more"),
        ("FOURIERFT", {"n_frequency": 0}, "n_frequency"),
        ("FOURIERFT", {"n_frequency": 10**30}, "n_frequency"),
        ("FOURIERFT", {"random_loc_seed": 1 << 70}, "random_loc_seed"),
        ("FOURIERFT", {"random_loc_seed": "x"}, "random_loc_seed"),
        ("FOURIERFT", {"scaling": math.inf}, "not valid JSON"),
        ("FOURIERFT", {"scaling": 1e30}, "scaling"),
        ("WAVEFT", {"n_frequency": HUGE}, "n_frequency is more"),
        ("WAVEFT", {"n_frequency": HUGE, "proportional_parameters": True}, "n_frequency is more"),
        ("WAVEFT", {"wavelet_family": "db38"}, "wavelet_family"),
        ("WAVEFT", {"wavelet_family": ["db1"]}, "wavelet_family"),
        ("WAVEFT", {"random_loc_seed": -(1 << 70)}, "random_loc_seed"),
        ("RANDLORA", {"r": HUGE}, "r should be"),
        ("RANDLORA", {"r": 60_000}, "r=60000 is more"),
        ("RANDLORA", {"r": 60_000, "save_projection": False}, "r=60000 is more"),
        ("RANDLORA", {"save_projection": False, "projection_prng_key": 1 << 70}, "projection_prng_key"),
        ("RANDLORA", {"save_projection": False}, "unexpected tensors"),
        ("C3A", {"block_size": HUGE}, "does not divide"),
        ("C3A", {"block_size": 3}, "does not divide"),
        ("C3A", {"block_size_pattern": {"q_proj": 0}}, "block_size_pattern"),
        ("ROAD", {"group_size": HUGE}, "does not divide"),
        ("ROAD", {"group_size": 5}, "group_size"),
        ("ROAD", {"variant": "road_9"}, "variant"),
        ("HIRA", {"r": 10**6}, "r should be"),
        ("HIRA", {"r": 60_000}, "size mismatch"),
        ("DEFT", {"r": 10**6}, "r should be"),
        ("DEFT", {"decomposition_method": "svd"}, "decomposition_method"),
        ("PEANUT", {"depth": HUGE}, "depth"),
        ("PEANUT", {"act_fn": "__import__"}, "act_fn"),
        ("PEANUT", {"r": 60_000}, "size mismatch"),
        ("PSOFT", {"r": 60_000}, "r=60000 is more"),
        ("PSOFT", {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": HUGE}, "psoft_svd_lowrank_niter"),
        ("PSOFT", {"num_cayley_neumann_terms": HUGE}, "num_cayley_neumann_terms"),
        ("OSF", {"effective_rank": 0}, "nothing to keep"),
        ("OSF", {"effective_rank": -1}, "effective_rank"),
        ("OSF", {"effective_rank": math.nan}, "not valid JSON"),
        ("OSF", {"rank_pattern": {"(" * 50: 3}}, "rank_pattern"),
        ("FROD", {"save_projection": False}, "save_projection"),
        ("FROD", {"sparse_rate": 7}, "sparse_rate"),
        ("GLORA", {"config_A_B": "lorax"}, "config_A_B"),
        ("GLORA", {"r": 60_000}, "size mismatch"),
        ("SHIRA", {"r": 60_000}, "means more numbers"),
        ("SHIRA", {"r": HUGE}, "r should be"),
        ("SUPERTUNING", {"sparsity": 1.0}, "leaves no entry"),
        ("SUPERTUNING", {"sparsity": -3}, "sparsity"),
        ("SUPERTUNING", {"save_precomputed_indices": False}, "save_precomputed_indices"),
        ("BEFT", {"r": 8}, "not an option"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(tmp_path: Path, kind: str, options: dict[str, Any], said: str) -> None:
    tensors = tensors_of(config_of(kind))
    assert said in refusal(tmp_path, config_of(kind, **options), tensors)


@pytest.mark.parametrize("kind", VALID)
def test_bad_tensors_are_named(tmp_path: Path, kind: str) -> None:
    config = config_of(kind)
    key = sorted(key for key, tensor in tensors_of(config).items() if tensor.is_floating_point())[-1]
    breaks: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        "size mismatch": lambda tensor: torch.cat((tensor, tensor)),
        "missing tensors": lambda _: None,
        "NaN or infinite": lambda tensor: tensor * math.inf,
        "served are": lambda tensor: tensor.long(),
    }
    for index, (said, change) in enumerate(breaks.items()):
        tensors = tensors_of(config)
        changed = change(tensors.pop(key))
        tensors |= {} if changed is None else {key: changed}
        assert said in refusal(tmp_path / str(index), config, tensors).replace(
            "selects modules that have no tensors", "missing tensors"
        )


@pytest.mark.parametrize("kind", ["SHIRA", "SUPERTUNING", "FROD"])
@pytest.mark.parametrize("place", [-1, 96, 1 << 40])
def test_places_outside_of_the_weight_are_refused(tmp_path: Path, kind: str, place: int) -> None:
    config = config_of(kind)
    tensors = tensors_of(config)
    key = next(key for key in sorted(tensors) if "indices" in key)
    tensors[key].view(-1)[0] = place
    deltas = read(tmp_path, config, tensors).delta
    found = {_refusal(name, delta) for name, delta in deltas.items()} - {None}
    assert len(found) == 1
    assert "outside" in str(found)


def _refusal(name: str, delta: ModuleDelta) -> str | None:
    module = BASE.modules[name]
    try:
        delta.factors(torch.randn(module.out_features, module.in_features))
    except NoUpdate as error:
        return str(error)
    return None


@pytest.mark.slow
def test_many_tensors_a_module_fit_in_the_header(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.q_proj" for layer in range(40)]
    base = replace(BASE, modules={name: TargetModule(name, 8, 8) for name in names})
    config = config_of("PEANUT", depth=64, target_modules=["q_proj"])
    tensors = tensors_of(config, base)
    assert len(tensors) == 40 * (2 + 2 * 64)
    assert len(read_artifact(write_artifact(tmp_path, config, tensors), base, LIMITS).delta) == 40


def test_indices_saved_on_windows(tmp_path: Path) -> None:
    """PEFT saves them as floats there."""
    config = config_of("SHIRA")
    tensors = tensors_of(config)
    key = f"{PREFIX}.0.q_proj.shira_indices"
    tensors[key].copy_(torch.arange(16) % 8)
    whole = read(tmp_path / "whole", config, tensors).delta["model.layers.0.q_proj"].factors(None)
    tensors[key] = tensors[key].float()
    floats = read(tmp_path / "floats", config, tensors).delta["model.layers.0.q_proj"].factors(None)
    assert all(torch.equal(one, other) for one, other in zip(whole, floats, strict=True))
    tensors[key][0, 3] = 2.5
    assert "no whole numbers" in refusal(tmp_path / "half", config, tensors)


def test_bases_of_modules_that_differ_are_refused(tmp_path: Path) -> None:
    config = config_of("RANDLORA")
    tensors = tensors_of(config)
    tensors[f"{PREFIX}.0.q_proj.randlora_A"] += 1
    delta = read(tmp_path, config, tensors).delta["model.layers.0.q_proj"]
    with pytest.raises(NoUpdate, match="is not that of the adapter"):
        delta.factors(None)


@pytest.mark.parametrize("kind", ["OSF", "PSOFT", "FROD"])
def test_weights_too_large_to_decompose_are_refused(tmp_path: Path, kind: str) -> None:
    wide = {name: TargetModule(name, 5000, 5000) for name in BASE.modules}
    config = config_of(kind)
    write_artifact(tmp_path, config, tensors_of(config))
    with pytest.raises(ArtifactError, match="2048"):
        read_artifact(tmp_path, replace(BASE, modules=wide), LIMITS)


def test_of_an_approximate_decomposition_the_size_does_not_matter(tmp_path: Path) -> None:
    wide = {name: TargetModule(name, 5000, 3000) for name in BASE.modules}
    config = config_of("PSOFT") | {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 2}
    write_artifact(tmp_path, config, tensors_of(config))
    artifact = read_artifact(tmp_path, replace(BASE, modules=wide), LIMITS)
    delta = next(iter(artifact.delta.values()))
    weight = torch.randn(3000, 5000, generator=torch.Generator().manual_seed(0))
    a, b = delta.factors(weight)
    assert (a.shape, b.shape) == ((delta.rank, 5000), (3000, delta.rank))
    assert b.isfinite().all()
