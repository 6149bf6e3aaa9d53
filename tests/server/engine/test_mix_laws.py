"""What a mix is, for any members: the base plus the weighted sum of their deltas, in whatever batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapter_set import AdapterSet, prompt_of, recorded_logits
from tests.support.adapters import write_kind
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model

TOLERANCE = 1e-4  # of the largest |logit|, in float32
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Kind:
    """The config of a random adapter."""

    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    seed: int


KINDS = st.builds(
    Kind,
    r=st.integers(1, 24),
    lora_alpha=st.floats(1, 32).map(lambda alpha: round(alpha, 2)),
    use_rslora=st.booleans(),
    use_dora=st.booleans(),
    target_modules=st.sets(st.sampled_from(PARTS), min_size=1).map(lambda parts: tuple(sorted(parts))),
    layers_to_transform=st.sampled_from([None, (0,), (1,)]),
    seed=st.integers(0, 5),
)
WEIGHTS = st.floats(-2, 2).map(lambda weight: round(weight, 3))
Mix = list[tuple[int, float]]  # which of the adapters, and its weight
MIXES = st.lists(st.lists(st.tuples(st.integers(0, 3), WEIGHTS), max_size=5), min_size=1, max_size=6)


@dataclass
class RandomAdapters:
    """One tiny model that serves adapters as they are drawn, and their deltas beside it."""

    model: Path
    root: Path
    harness: EngineHarness
    loaded: dict[Kind, tuple[AdapterPages, dict[str, ModuleDelta]]] = field(default_factory=dict)

    def load(self, kind: Kind) -> tuple[AdapterPages, dict[str, ModuleDelta]]:
        if kind not in self.loaded:
            config: dict[str, Any] = {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(kind).items()
            }
            path = write_kind(self.root / str(len(self.loaded)), self.model, peft_type="LORA", **config)
            self.loaded[kind] = self.harness.load(path), dict(read(path, self.harness.base).delta)
        return self.loaded[kind]

    @torch.inference_mode()
    def expected(self, members: list[tuple[dict[str, ModuleDelta], float]], ids: list[int]) -> torch.Tensor:
        """Logits [T, V] of the base whose weights have the sum of the members' deltas added, in float64."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float64).eval()
        base = {name: parameter.clone() for name, parameter in model.named_parameters()}
        for deltas, weight in members:
            for name, delta in deltas.items():
                parameter = model.get_submodule(name).weight
                parameter += weight * _change(base[f"{name}.weight"], delta)
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits


def _change(weight: torch.Tensor, delta: ModuleDelta) -> torch.Tensor:
    """What the adapter alone does to ``weight`` [out, in]: s·B·A, and DoRA's new norms of the rows."""
    total = weight + delta.scaling * (delta.b.double() @ delta.a.double())
    if delta.magnitude is not None:
        total = total * (delta.magnitude.double() / total.norm(dim=1))[:, None]
    return total - weight


@pytest.fixture(scope="module")
def random_adapters(tmp_path_factory: pytest.TempPathFactory) -> RandomAdapters:
    model = tiny_model(tmp_path_factory.mktemp("model"), "llama", seed=3)
    return RandomAdapters(
        model, tmp_path_factory.mktemp("adapters"), EngineHarness(model, adapter_bytes=256 << 20)
    )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(kinds=st.lists(KINDS, min_size=4, max_size=4), mixes=MIXES)
def test_a_mix_is_the_base_plus_the_weighted_sum_of_deltas(
    random_adapters: RandomAdapters, kinds: list[Kind], mixes: list[Mix]
) -> None:
    """Random ranks, scales, kinds, targets, weights; members that occur twice; several mixes in a batch."""
    adapters = [random_adapters.load(kind) for kind in kinds]
    harness = random_adapters.harness
    harness.new_engine()
    rows = [
        harness.sequence(prompt_of(3 + 7 * i, i), *((adapters[k][0], w) for k, w in mix if w), max_tokens=2)
        for i, mix in enumerate(mixes)
    ]
    with recorded_logits() as logits:
        harness.run(*rows)
    for mix, row in zip(mixes, rows, strict=True):
        expected = random_adapters.expected([(adapters[k][1], w) for k, w in mix], row.token_ids[:-1])
        found = torch.stack(logits[row.id])
        assert_logits_match(found, expected[row.num_prompt_tokens - 1 :], TOLERANCE, str(mix))


@pytest.mark.slow
def test_32_mixes_of_two_in_one_batch_are_the_same_as_one_by_one(adapter_set: AdapterSet) -> None:
    pairs = list(combinations(adapter_set.pages, 2))
    mixes = [(*pairs[i % len(pairs)], 0.1 + 0.05 * i, 0.9 - 0.07 * i) for i in range(32)]

    def rows() -> list[Any]:
        return [
            adapter_set.harness.sequence(
                prompt_of(4 + i % 5, i),
                (adapter_set.pages[one], first),
                (adapter_set.pages[other], second),
                max_tokens=4,
            )
            for i, (one, other, first, second) in enumerate(mixes)
        ]

    together, alone = rows(), rows()
    assert len({row.mix.digest for row in together}) == 32
    with recorded_logits() as logits:
        adapter_set.harness.new_engine()
        in_one_batch = adapter_set.harness.run(*together)
        one_by_one = []
        for row in alone:
            adapter_set.harness.new_engine()
            one_by_one += adapter_set.harness.run(row)
    for row, other, answer, expected in zip(together, alone, in_one_batch, one_by_one, strict=True):
        assert answer.token_ids == expected.token_ids
        assert_logits_match(torch.stack(logits[row.id]), torch.stack(logits[other.id]), TOLERANCE)
