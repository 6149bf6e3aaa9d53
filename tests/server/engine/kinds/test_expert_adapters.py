"""LoRA on routed experts, as PEFT puts it on their stacked weights, equals PEFT's, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.experts import SERVED
from manylora.server.engine.sequence import Sequence
from manylora.server.model.decoders.families import FAMILIES
from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.expert_adapters import BOTH, write_older, write_stacked
from tests.support.peft_oracle import Peft, assert_logits_match, read
from tests.support.tiny_models import EXPERT_FAMILIES, tiny_model

MLPS = r".*\.[02]\.mlp\.(gate|down)_proj"  # of layers without experts
ASKED: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": BOTH, "target_modules": []},
    "gate and up": {"target_parameters": ["gate_up_proj"], "target_modules": ["q_proj", "o_proj"]},
    "down": {"target_parameters": ["1.mlp.experts.down_proj"], "target_modules": [], "use_rslora": True},
    "patterns": {
        "target_parameters": BOTH,
        "target_modules": ["v_proj"],
        "rank_pattern": {"experts.gate_up_proj": 2, "v_proj": 3},
        "alpha_pattern": {"down_proj": 3},
    },
    "attention": {"target_modules": ["q_proj", "v_proj"]},
}


class Summed:
    """A base whose weights have the changes of a mix added to them, experts' too."""

    def __init__(self, model: Path, base: Any, members: list[tuple[Path, float]]) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        for path, weight in members:
            for name, delta in read(path, base).delta.items():
                change = weight * (delta.scaled_b() @ delta.a.float())
                stack, _, expert = name.rpartition(".")
                if expert.isdecimal():
                    self.model.get_parameter(stack).data[int(expert)] += change
                else:
                    self.model.get_submodule(name).weight.data += change

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dense"), [*((family, []) for family in EXPERT_FAMILIES), ("qwen3_moe", [0, 2])]
)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, dense: list[int]) -> None:
    """In chunks, beside the base and a mix; each adapter changes what the base says.

    ``dense`` are the layers that have an MLP for all tokens.
    """
    sizes: dict[str, Any] = (
        {"num_hidden_layers": 4, "intermediate_size": 112, "mlp_only_layers": dense} if dense else {}
    )
    model = tiny_model(tmp_path / "model", family, **sizes)
    paths = {name: write_stacked(tmp_path / name, model, options) for name, options in ASKED.items()}
    if dense:  # PEFT takes these names for those of experts in older files
        paths["mlp"] = write_adapter(tmp_path / "mlp", model, targets=MLPS, scale=0.3)
    harness = EngineHarness(model, max_batch_tokens=24)
    assert isinstance(harness.decoder, FusedDecoder)
    pages = {name: harness.load(path) for name, path in paths.items()}
    rows = [
        harness.sequence(prompt_of(9 + 4 * i, i), (own, 1.0), max_tokens=4)
        for i, own in enumerate(pages.values())
    ]
    mixed = (("both", 0.6), ("patterns", -0.5), ("attention", 1.0))
    mix = harness.sequence(prompt_of(14), *((pages[name], weight) for name, weight in mixed), max_tokens=4)
    plain = harness.sequence(prompt_of(14), max_tokens=4)
    with recorded_logits() as logits:
        answers = harness.run(*rows, mix, plain)
    base = Peft(model, {})
    for name, row, answer in zip(paths, rows, answers, strict=False):
        ids = [*row.token_ids[: row.num_prompt_tokens], *answer.token_ids[:-1]]
        if name == "mlp":
            expected = Summed(model, harness.base, [(paths[name], 1.0)]).logits(ids)
        else:
            expected = Peft(model, {name: paths[name]}).logits(ids, name)
        expected = expected[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=name)
        without = base.logits(ids, None)[row.num_prompt_tokens - 1 :]
        assert float((expected - without).abs().max()) > 0.05 * float(without.abs().max()), name
    for row, answer, members in ((mix, answers[-2], mixed), (plain, answers[-1], ())):
        ids = [*row.token_ids[: row.num_prompt_tokens], *answer.token_ids[:-1]]
        oracle = Summed(model, harness.base, [(paths[name], weight) for name, weight in members])
        assert_logits_match(torch.stack(logits[row.id]), oracle.logits(ids)[row.num_prompt_tokens - 1 :])


def test_native_kernels_are_as_close_as_bf16_allows(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "mixtral")
    path = write_stacked(tmp_path / "both", model, ASKED["both"])
    found, ids = [], prompt_of(30)
    for dtype in ("fp32", "bf16"):
        harness = EngineHarness(model, dtype=dtype)
        row = harness.sequence(ids, (harness.load(path), 1.0), max_tokens=1)
        with recorded_logits() as logits:
            harness.run(row)
        found.append(logits[row.id][0].float())
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.1


def _renamed(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if ".base_layer." in key]:
        tensors[key.replace(".base_layer", "")] = tensors.pop(key)


def _short(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.endswith("experts.lora_A.weight"))
    tensors[key] = tensors[key][:-1].contiguous()


def _router(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["target_parameters"] = ["mlp.gate.weight"]


def _unnamed(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["target_parameters"] = ["experts.down_proj"]


def _other_rank(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["r"] = 5


def _zero(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.zero_()


def _huge(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["r"] = 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, "no tensors: .*gate_up_proj"),
        (_short, "size mismatch for .*experts.lora_A.weight"),
        (_router, "names 'mlp.gate.weight': only the weights of the experts and of linear layers"),
        (_unnamed, "target_parameters does not name the weights of those experts"),
        (_other_rank, "size mismatch for .*experts"),
        (_zero, "would do nothing"),
        (_huge, "rank 100000|r is|r should"),
    ],
)
def test_damaged_adapters_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], message: str
) -> None:
    model = tiny_model(tmp_path / "model", "mixtral", num_hidden_layers=1)
    path = write_stacked(tmp_path / "a", model, ASKED["both"])
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    change(config, tensors)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=message):
        EngineHarness(model).load(path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "experts"), [("mixtral", 6), ("qwen3_moe", 8)])
def test_files_that_were_written_before_experts_were_stacked(
    tmp_path: Path, family: str, experts: int
) -> None:
    """PEFT brings them into today's form when it loads them; here they are read under their own names."""
    sizes = {"intermediate_size": 48} if family == "mixtral" else {}
    model = tiny_model(tmp_path / "model", family, **sizes)
    path = write_older(tmp_path / "older", model, family, experts)
    harness = EngineHarness(model)
    prompt = prompt_of(12)
    row = harness.sequence(prompt, (harness.load(path), 1.0), max_tokens=3)
    plain = harness.sequence(prompt, max_tokens=3)
    with recorded_logits() as logits:
        answer, _ = harness.run(row, plain)
    expected = Peft(model, {"older": path}).logits([*prompt, *answer.token_ids[:-1]], "older")
    assert_logits_match(torch.stack(logits[row.id]), expected[len(prompt) - 1 :])
    difference = (logits[row.id][0] - logits[plain.id][0]).abs().max()
    assert float(difference) > 0.05 * float(logits[plain.id][0].abs().max())


def test_from_the_prefix_cache_and_after_preemption(tmp_path: Path) -> None:
    """The same tokens as from an engine with room for all and nothing cached."""
    model = tiny_model(tmp_path / "model", "qwen3_moe", num_hidden_layers=1)
    harness = EngineHarness(model, max_batch_tokens=48)
    names = ("both", "gate and up", "patterns")
    pages = [harness.load(write_stacked(tmp_path / name, model, ASKED[name])) for name in names]

    def rows() -> list[Sequence]:
        members = [(), *(((page, 1.0),) for page in pages), ((pages[0], 0.5), (pages[2], -1.0))]
        return [harness.sequence(prompt_of(40, i % 2), *m, max_tokens=24) for i, m in enumerate(members)]

    cold = [answer.token_ids for answer in harness.run(*rows())]
    assert len({tuple(tokens) for tokens in cold}) == len(cold)
    assert [answer.token_ids for answer in harness.run(*rows())] == cold
    harness.new_engine(num_blocks=12)
    again = rows()
    assert [answer.token_ids for answer in harness.run(*again)] == cold
    assert sum(row.num_preemptions for row in again) > 0


@pytest.mark.parametrize("option", ["use_dora", "lora_bias"])
def test_what_peft_can_not_put_on_experts_is_refused_by_name(tmp_path: Path, option: str) -> None:
    model = tiny_model(tmp_path / "model", "mixtral", num_hidden_layers=1, intermediate_size=48)
    stacked = write_stacked(tmp_path / "stacked", model, ASKED["both"])
    older = write_older(tmp_path / "older", model, "mixtral", 6, layers=1)
    harness = EngineHarness(model)
    for path, message in ((stacked, f"{option} cannot be used with target_parameters"), (older, "w1")):
        config = path / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), option: True}))
        with pytest.raises(ArtifactError, match=message):
            harness.load(path)


def test_the_generic_decoder_refuses_them_by_name(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "mixtral", num_hidden_layers=1)
    path = write_stacked(tmp_path / "a", model, ASKED["both"])
    with pytest.raises(ArtifactError, match="not the parameters of experts"):
        EngineHarness(model, generic=True).load(path)


def test_the_families_whose_experts_adapters_change_are_those_that_run_fused() -> None:
    assert {name for name, family in FAMILIES.items() if family.experts is not None} == SERVED
