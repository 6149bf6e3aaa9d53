"""On the simulated device: bases in few bits, comparing, and what is composed of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.merge.compose import compose, save
from manylora.adapters.merge.recipe import Member, recipe_of
from manylora.server.comparison.divergence import distances, scores
from manylora.server.engine.sequence import ResolvedMix, Sequence
from manylora.server.kernels.reference.quantized import CodedLinear
from manylora.server.model.decoders.merging import merge
from tests.support.adapter_kinds import write_kinds
from tests.support.adapter_set import prompt_of
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.grouped_checkpoints import Grouping, write_grouped
from tests.support.simulated_device import OnDevice
from tests.support.simulated_engine import check
from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]

LIMITS = Limits(max_rank=128, max_bytes=1 << 30)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "linear"},
    {"method": "svd", "rank": 4},
    {"method": "dare_ties", "rank": 4, "density": 0.5, "seed": 1},
)


def base_of(kind: str, directory: Path) -> tuple[Path, str]:
    """A model whose widths fit the kind, and how it is to be quantized when it is loaded."""
    model = tiny_model(directory / "model", intermediate_size=128, head_dim=16)
    if kind in {"nf4", "int8"}:
        return model, kind
    return write_grouped(model, directory / "few", Grouping(kind, act_order=kind == "gptq")), "none"


@pytest.mark.parametrize(
    "kind", ["nf4", *(pytest.param(k, marks=pytest.mark.sweep) for k in ("int8", "awq"))]
)
def test_bases_in_few_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of the base, of adapters that look at its weights, and of a merged copy."""
    model, quantize = base_of(kind, tmp_path)
    kinds = write_kinds(tmp_path / "kinds", model, "llama")
    paths = [kinds[name] for name in ("plain", "dora", "ia3")]

    def run(harness: EngineHarness) -> list[list[int]]:
        layers = [m for m in harness.loaded.hf.modules() if isinstance(m, CodedLinear)]
        assert len({isinstance(layer.weight_of_codes(), OnDevice) for layer in layers}) == 1
        pages = [harness.load(path) for path in paths]
        artifact = read_artifact(paths[0], harness.base, LIMITS)
        copy = harness.decoder.merged()
        assert [*merge(harness.decoder, [(artifact.delta, 0.7)], copy)][-1] == 1.0
        mixes: list[Any] = [(), *(((own, 1.0),) for own in pages), ()]
        rows = [harness.sequence(prompt_of(9 + i, i), *mix, max_tokens=3) for i, mix in enumerate(mixes)]
        rows[-1].mix = ResolvedMix(merged=copy, digest=b"copy")
        return [answer.token_ids for answer in harness.run(*rows)]

    check(model, run, monkeypatch, quantize=quantize)
    assert "matrices are unpacked" not in caplog.text, "they are multiplied from their codes"


@pytest.mark.sweep
def test_a_gptq_base_with_inputs_out_of_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = base_of("gptq", tmp_path)
    path = write_adapter(tmp_path / "one", model, seed=1)

    def run(harness: EngineHarness) -> list[list[int]]:
        rows = [
            harness.sequence(prompt_of(9), *mix, max_tokens=3) for mix in ((), ((harness.load(path), 1.0),))
        ]
        return [answer.token_ids for answer in harness.run(*rows)]

    check(model, run, monkeypatch)


def logits_of(harness: EngineHarness, tokens: tuple[int, ...], first: int, *mix: Any) -> torch.Tensor:
    """What a comparison measures: the logits of positions that are given, from ``first`` on."""
    like = harness.sequence(tokens, *mix, max_tokens=0)
    asked = Sequence(like.id, tokens, like.params, like.mix, logits_from=first)
    (answer,) = harness.run(asked)
    rows = [delta.logits.rows for delta in answer.deltas if delta.logits is not None]
    assert not any(isinstance(part, OnDevice) for part in rows)
    return torch.cat(rows)


def test_comparing(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a text under two models arrive on the host, in chunks, and are measured there."""
    path = write_adapter(tmp_path / "one", tiny_llama, seed=1)
    tokens, measured = prompt_of(60), list[list[float]]()

    def run(harness: EngineHarness) -> list[int]:
        own = harness.load(path)
        base, adapted = (logits_of(harness, tokens, 20, *mix) for mix in ((), ((own, 1.0),)))
        assert len(base) == len(adapted) == 40
        found = distances(base, adapted)
        measured.append([*found.kl, *found.js, *found.logits])
        return scores(base, tokens[20:]).top1

    check(tiny_llama, run, monkeypatch)
    assert measured[0] == pytest.approx(measured[1], rel=1e-3, abs=1e-5)


def test_what_is_composed(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of artifacts on the host, for a base on the device; then served there."""
    kinds = write_kinds(tmp_path / "kinds", tiny_llama, "llama")
    paths = [kinds["plain"], write_adapter(tmp_path / "one", tiny_llama, seed=1)]
    times: list[int] = []

    def run(harness: EngineHarness) -> list[Any]:
        times.append(len(times))
        members = [Member(p.name, read_artifact(p, harness.base, LIMITS), 0.5) for p in paths]
        rows = []
        for how in METHODS:
            out = tmp_path / f"{how['method']}-{times[-1]}"
            save(compose(members, recipe_of(**how), harness.base), out)
            assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
            rows.append(harness.sequence(prompt_of(12), (harness.load(out), 1.0), max_tokens=4))
        return [answer.token_ids for answer in harness.run(*rows)]

    check(tiny_llama, run, monkeypatch)
