"""Merged models: equal to the adapters beside the base, in bounded memory, and never half-written."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.errors import ArtifactError, MergeFailed, StoreError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.pooling import PoolingConfig
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import ExportPlan, plan_export
from manylora.adapters.merge.recipe import Member
from manylora.adapters.merge.weights import merged_weight
from manylora.server.model.decoders.quantize import quantization_config
from tests.support.adapter_kinds import write_kinds
from tests.support.adapters import write_adapter
from tests.support.members import LIMITS
from tests.support.peft_oracle import summed
from tests.support.tiny_models import tiny_model

TIED = ("llama", "gpt2", "gemma3")
FAMILIES = ("llama", "llama-untied-bias", "qwen2", "gpt2", "gemma3")


class ExportCase:
    """A base on disk and adapters for it."""

    def __init__(self, root: Path, family: str = "llama", **base: Any) -> None:
        self.root = root
        self.directory = tiny_model(root / "base", family, **base)
        self.stored = StoredModel(self.directory)
        self.base = self.stored.describe("base")
        self.conv: dict[str, Any] = {"fan_in_fan_out": True} if family == "gpt2" else {}

    def member(self, name: str, weight: float, **options: Any) -> Member:
        options = {"targets": "all-linear", **self.conv, **options}
        directory = write_adapter(self.root / name, self.directory, scale=0.1, **options)
        return Member(name, read_artifact(directory, self.base, LIMITS), weight)

    def plan(self, *members: Member, **options: Any) -> ExportPlan:
        return plan_export(self.stored, "base", members, **options)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(5))
    return model(input_ids=ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def assert_close(found: torch.Tensor, wanted: torch.Tensor, error: float) -> None:
    assert float((found - wanted).abs().max() / wanted.abs().max()) < error


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_adapter_is_what_peft_merges(tmp_path: Path, family: str) -> None:
    case = ExportCase(tmp_path, family)
    member = case.member("one", 1.0, rank=6, alpha=9, rslora=True)
    exported = export(case.plan(member), tmp_path / "out")
    peft = PeftModel.from_pretrained(loaded(case.directory), member.artifact.directory)
    merged: Any = peft.merge_and_unload()
    found = loaded(tmp_path / "out")
    assert_close(logits(found), logits(merged), 1e-4)
    tied = found.get_input_embeddings().weight is found.get_output_embeddings().weight
    assert tied == bool(found.config.tie_word_embeddings) == (family in TIED)
    assert exported.verification is not None
    assert exported.verification.error < 1e-3
    assert exported.verification.effect > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-untied-bias", "gpt2"])
def test_other_kinds_are_what_peft_merges(tmp_path: Path, family: str) -> None:
    """DoRA, biases, IA3 and VeRA, each alone."""
    case = ExportCase(tmp_path, family)
    for kind, directory in write_kinds(tmp_path / "kinds", case.directory, family).items():
        member = Member(kind, read_artifact(directory, case.base, LIMITS), 1.0)
        found = export(case.plan(member), tmp_path / kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on biases, projections and Conv1D
            peft: Any = PeftModel.from_pretrained(loaded(case.directory), directory)
            merged = logits(peft.merge_and_unload())
        assert_close(logits(loaded(tmp_path / kind)), merged, 1e-4)
        assert found.verification is not None
        assert found.verification.error < 1e-3


def test_biases_that_the_base_has_no_place_for(tmp_path: Path) -> None:
    case = ExportCase(tmp_path)
    with pytest.raises(ArtifactError, match=r"add biases that the base has no place for.*q_proj.bias"):
        case.plan(case.member("a", 1.0, lora_bias=True))


def test_several_are_their_weighted_sum(tmp_path: Path) -> None:
    case = ExportCase(tmp_path)
    members = [
        case.member("a", 0.7, rank=4, seed=1),
        case.member("b", -0.5, rank=8, seed=2, targets=("q_proj", "down_proj"), rslora=True),
        case.member("c", 1.5, rank=3, seed=3, rank_pattern={"q_proj": 7}, alpha_pattern={"up_proj": 3}),
    ]
    export(case.plan(*members), tmp_path / "out")
    oracle = summed(case.directory, case.base, [(m.artifact.directory, m.weight) for m in members])
    assert_close(logits(loaded(tmp_path / "out")), logits(oracle), 1e-4)


def test_untouched_tensors_stay_as_they_are(tmp_path: Path) -> None:
    case = ExportCase(tmp_path)
    export(case.plan(case.member("a", 1.0, targets=("q_proj",))), tmp_path / "out")
    before = load_file(case.directory / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert after.keys() == before.keys()
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_dtype_of_choice_and_its_rounding(tmp_path: Path, dtype: torch.dtype, error: float) -> None:
    case = ExportCase(tmp_path)
    exported = export(case.plan(case.member("a", 1.0), dtype=dtype), tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == dtype
    assert exported.verification is not None
    assert 0 < exported.verification.error < error
    assert exported.nbytes * 2 == sum(
        t.nbytes for t in load_file(case.directory / "model.safetensors").values()
    )
    assert (
        f"differ by {exported.verification.error:.2g} of their spread"
        in (tmp_path / "out" / "README.md").read_text()
    )


def test_memory_is_bounded_by_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ExportCase(tmp_path)
    member = case.member("a", 1.0)
    limit = 100_000
    sizes: list[int] = []

    def watched(tensors: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        sizes.append(sum(t.nbytes for t in tensors.values()))
        save_file(dict(tensors), *args, **kwargs)

    monkeypatch.setattr("manylora.adapters.format.saving.save_file", watched)
    exported = export(case.plan(member, max_shard_bytes=limit), tmp_path / "out")
    assert len(sizes) == exported.shards > 3
    assert max(sizes) <= limit
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(case.stored.checkpoint)
    assert index["metadata"]["total_size"] == sum(sizes) == exported.nbytes
    again = StoredModel(tmp_path / "out")  # shards are read like one file
    whole = export(plan_export(again, "again", [Member("a", member.artifact, -1.0)]), tmp_path / "back")
    assert whole.shards == 1
    assert_close(logits(loaded(tmp_path / "back")), logits(loaded(case.directory)), 1e-4)


@pytest.mark.slow
def test_text_goes_along(tmp_path: Path) -> None:
    case = ExportCase(tmp_path)
    plain, other = case.member("plain", 1.0), case.member("other", 1.0, seed=4)
    export(case.plan(plain), tmp_path / "out")
    base, found = (AutoTokenizer.from_pretrained(d) for d in (case.directory, tmp_path / "out"))
    assert found.chat_template == base.chat_template
    assert found.encode("Hello") == base.encode("Hello")
    (other.artifact.directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    other = Member("other", read_artifact(other.artifact.directory, case.base, LIMITS), 1.0)
    export(case.plan(plain, other), tmp_path / "own")
    assert AutoTokenizer.from_pretrained(tmp_path / "own").chat_template.endswith("}}!")
    (plain.artifact.directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}?")
    third = Member("plain", read_artifact(plain.artifact.directory, case.base, LIMITS), 1.0)
    with pytest.raises(ArtifactError, match="different tokenizers or chat templates"):
        case.plan(third, other)


def test_a_wrong_merge_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ExportCase(tmp_path)
    plan = case.plan(case.member("a", 1.0))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("manylora.adapters.merge.export.merged_weight", lambda weight, _: weight.float())
    with pytest.raises(MergeFailed, match=r"differ by .* nothing was written"):
        export(plan, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert export(plan, tmp_path / "unchecked", compute_dtype=None).verification is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_told_from_a_wrong_merge(
    tmp_path: Path, seed: int, depth: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ExportCase(tmp_path, num_hidden_layers=depth, seed=seed)
    plan = case.plan(case.member("a", 1.0, seed=seed), dtype=dtype)
    found = export(plan, tmp_path / "out").verification
    assert found is not None
    assert found.error <= found.limit < found.effect  # a merge without the adapter would be found out
    monkeypatch.setattr(
        "manylora.adapters.merge.export.merged_weight",
        lambda weight, deltas: merged_weight(weight, [(delta, 0.5 * factor) for delta, factor in deltas]),
    )
    with pytest.raises(MergeFailed, match="rounding explains"):
        export(plan, tmp_path / "half")


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ExportCase(tmp_path)
    plan = case.plan(case.member("a", 1.0))
    free = plan.nbytes
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    with pytest.raises(StoreError, match=r"needs .* GB free: make room"):
        export(plan, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ExportCase(tmp_path)
    plan = case.plan(case.member("a", 1.0), max_shard_bytes=100_000)
    calls = []

    def full(tensors: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        calls.append(tensors)
        if len(calls) == 3:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(dict(tensors), *args, **kwargs)

    monkeypatch.setattr("manylora.adapters.format.saving.save_file", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="No space left on device; nothing was left behind"):
        export(plan, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_what_can_not_be_merged(tmp_path: Path) -> None:
    case = ExportCase(tmp_path)
    a = case.member("a", 1.0)
    alora = case.member("alora", 1.0, alora_invocation_tokens=[1, 2], targets=("q_proj",))
    with pytest.raises(ArtifactError, match="alora acts only from certain tokens on"):
        case.plan(a, alora)
    vectors = Member("vectors", replace(a.artifact, pooling=PoolingConfig()), 1.0)
    with pytest.raises(ArtifactError, match="vectors embeds and says how"):
        case.plan(vectors)
    with pytest.raises(ArtifactError, match="nothing is left to merge"):
        case.plan(a, Member("b", a.artifact, -1.0))
    tensors = load_file(case.directory / "model.safetensors")
    renamed = {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}
    save_file(renamed, case.directory / "model.safetensors")
    with pytest.raises(ArtifactError, match="transformers fuses or splits"):
        plan_export(StoredModel(case.directory), "base", [a])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "old"), [("gpt_neox", "embed_out.weight"), ("gpt2", "wte.weight")])
def test_files_with_names_that_transformers_changes(tmp_path: Path, family: str, old: str) -> None:
    """GPT-NeoX's output head, and GPT-2 as it is on the Hub: ``wte`` for ``transformer.wte``."""
    case = ExportCase(tmp_path, family)
    file = case.directory / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert old in tensors
    stored = StoredModel(case.directory)
    assert stored.describe("base").fingerprint == case.base.fingerprint
    member = case.member("a", 1.0)
    export(plan_export(stored, "base", [member]), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(tensors)
    peft: Any = PeftModel.from_pretrained(loaded(case.directory), member.artifact.directory)
    assert_close(logits(loaded(tmp_path / "out")), logits(peft.merge_and_unload()), 1e-4)


def test_a_quantized_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    case = ExportCase(tmp_path)
    settings = quantization_config("int8")
    model = AutoModelForCausalLM.from_pretrained(case.directory, quantization_config=settings)
    model.save_pretrained(tmp_path / "few")
    with pytest.raises(ArtifactError, match="holds quantized weights"):
        plan_export(StoredModel(tmp_path / "few"), "few", [case.member("a", 1.0)])


def test_equal_members_add_up(tmp_path: Path) -> None:
    case = ExportCase(tmp_path)
    a = case.member("a", 0.25)
    (member,) = case.plan(a, a, Member("same", a.artifact, 0.5)).members
    assert math.isclose(member.weight, 1.0)
