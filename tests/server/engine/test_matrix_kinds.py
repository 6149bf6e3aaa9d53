"""Kinds with a dense, sparse, orthogonal or block-wise change of weights, in one batch: each equals PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server.kernels.buffers import ReusedMemory
from manylora.server.model.pages.packed_file import Packing, read_packed, serialize
from tests.support.adapter_kinds import HookedModel, PeftPerAdapter
from tests.support.adapter_set import LLAMA_TARGETS, TARGETS, prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of PEFT's FRoD

FAMILIES = [
    pytest.param("llama-untied-bias", False, id="llama", marks=pytest.mark.slow),
    pytest.param("gpt2", True, id="gpt2"),
    pytest.param("qwen2", False, id="qwen2", marks=[pytest.mark.slow, pytest.mark.sweep]),
    pytest.param("llama", True, id="llama-generic", marks=[pytest.mark.slow, pytest.mark.sweep]),
]


def write_all(root: Path, model: Path, family: str) -> dict[str, Path]:
    """An adapter of every case, and a plain one."""
    attention, _ = TARGETS.get(family, LLAMA_TARGETS)
    plain = write_adapter(root / "plain", model, targets=attention, seed=99)
    return {**write_matrix_kinds(root, model, family), "plain": plain}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "generic"), FAMILIES)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, generic: bool) -> None:
    model = tiny_model(tmp_path / "model", family)
    paths = write_all(tmp_path, model, family)
    harness = EngineHarness(model, generic=generic, max_batch_tokens=48)
    pages = {name: harness.load(path) for name, path in paths.items()}
    names = [None, *paths]
    rows = [
        harness.sequence(
            prompt_of(3 + 5 * i % 31, i), *([] if name is None else [(pages[name], 1.0)]), max_tokens=3
        )
        for i, name in enumerate(names)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    oracle = PeftPerAdapter(model, paths)
    for name, row, answer in zip(names, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = oracle.logits(ids, name)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(name))
        assert expected.argmax(-1).tolist() == answer.token_ids
        base = oracle.logits(ids, None)[row.num_prompt_tokens - 1 :]
        if name is not None:
            assert float((expected - base).abs().max()) > 0.01 * float(base.abs().max()), f"{name}: idle"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "generic"), [("llama-untied-bias", False), ("gpt2", True)], ids=["llama", "gpt2"]
)
def test_every_kind_as_a_member_of_a_mix(tmp_path: Path, family: str, generic: bool) -> None:
    """At weight w an adapter changes every module by w times its change."""
    model = tiny_model(tmp_path / "model", family)
    paths = write_all(tmp_path, model, family)
    harness = EngineHarness(model, generic=generic)
    pages = {name: harness.load(path) for name, path in paths.items()}
    others = [*paths][1:] + [*paths][:1]
    mixes = [((name, 0.4), (other, -0.3)) for name, other in zip(paths, others, strict=True)]
    rows = [
        harness.sequence(prompt_of(5 + i % 9, i), *((pages[n], w) for n, w in mix), max_tokens=2)
        for i, mix in enumerate(mixes)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    hooked_model = HookedModel(model, harness.base, paths)
    for mix, row, answer in zip(mixes, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = hooked_model.logits(ids, mix)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(mix))


@pytest.mark.slow
def test_packed_files_hold_all_of_them(tmp_path: Path) -> None:
    """What comes back from the packed file is what was packed, so a reload answers as before."""
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    harness = EngineHarness(model)
    packing = Packing.of(harness.pool.modules, "weights", harness.pool.data.dtype)
    for path in write_matrix_kinds(tmp_path, model, "llama-untied-bias").values():
        artifact = read(path, harness.base)
        packed = harness.pool.pack(artifact.digest, artifact.delta)
        (path / packing.file_name).write_bytes(b"".join(serialize(packed, packing)))
        again = read_packed(path, artifact.digest, packing, 1 << 30, ReusedMemory(0))
        assert again is not None
        assert torch.equal(again.data, packed.data)
        assert (again.offset == packed.offset).all()
        assert (again.rank == packed.rank).all()
        assert (again.vectors is None) == (packed.vectors is None)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["pytorch", "native"])
def test_in_bf16_it_errs_no_more_than_peft(tmp_path: Path, kernels: str) -> None:
    """PSOFT is far off in both: its space is that of the rounded weights. So is PEFT's FRoD."""
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    paths = write_matrix_kinds(tmp_path, model, "llama-untied-bias")
    harness = EngineHarness(model, dtype="bf16", kernels=kernels)
    pages = {name: harness.load(path) for name, path in paths.items()}
    rows = [
        harness.sequence(prompt_of(30, i), (pages[name], 1.0), max_tokens=1) for i, name in enumerate(paths)
    ]
    with recorded_logits() as logits:
        harness.run(*rows)
    exact, rounded = PeftPerAdapter(model, paths), PeftPerAdapter(model, paths, torch.bfloat16)
    ours, theirs = {}, {}
    for i, (name, row) in enumerate(zip(paths, rows, strict=True)):
        want = exact.logits(prompt_of(30, i), name)[-1]
        ours[name] = float((logits[row.id][0].float() - want).norm() / want.norm())
        theirs[name] = float((rounded.logits(prompt_of(30, i), name)[-1] - want).norm() / want.norm())
    del ours["frod"], theirs["frod"]
    assert sum(ours.values()) <= 1.3 * sum(theirs.values()) + 1e-3, (ours, theirs)
    assert all(error < 3 * theirs[name] + 0.02 for name, error in ours.items()), (ours, theirs)
