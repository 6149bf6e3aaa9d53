"""Whatever an artifact holds, reading and packing it ends in an adapter or in a named refusal.

``MANYLORA_FUZZ_ARTIFACTS`` is the number of cases, ``MANYLORA_FUZZ_SEED`` the first of their seeds.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TrainableTokensConfig

from manylora.adapters.errors import AdapterTooLarge, ArtifactError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapters import write_adapter, write_kind
from tests.support.engine_harness import EngineHarness
from tests.support.mutated_artifacts import Case, mutated, read_case
from tests.support.soft_prompts import write_soft_prompt
from tests.support.tiny_models import VOCAB, tiny_model
from tests.support.vocabulary_adapters import GROWN, make, make_any

CASES = int(os.environ.get("MANYLORA_FUZZ_ARTIFACTS", "1000"))
SEED = int(os.environ.get("MANYLORA_FUZZ_SEED", "0"))
LIMITS = Limits(max_rank=32, max_bytes=4 << 20)


class Served:
    """A tiny server's model and pool, and valid adapters for it of many kinds."""

    def __init__(self, root: Path, *, tied: bool) -> None:
        model = tiny_model(root / "model", tie_word_embeddings=tied)
        self.harness = EngineHarness(model)
        tables: dict[str, dict[str, Any]] = {
            "lora": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
            "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
            "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 70]},
            "grown": {"target_modules": ["q_proj", "embed_tokens"], "rows": GROWN},
        }
        for seed, (name, options) in enumerate(tables.items()):
            make(root / name, model, seed=seed, **options)
        write_adapter(root / "plain", model, rank=4, targets="all-linear", rank_pattern={"q_proj": 2})
        write_kind(root / "dora", model, peft_type="LORA", r=4, target_modules=["q_proj"], use_dora=True)
        ia3: dict[str, Any] = {
            "target_modules": ["q_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
        write_kind(root / "ia3", model, peft_type="IA3", **ia3)
        write_kind(root / "vera", model, peft_type="VERA", r=8, target_modules=["q_proj", "v_proj"])
        write_kind(root / "norms", model, peft_type="LN_TUNING", target_modules=["norm", "input_layernorm"])
        make_any(root / "rows", model, TrainableTokensConfig(token_indices=[3, 70]), seed=9)
        for name in ("prompt", "cpt", "multitask", "prefix"):
            write_soft_prompt(root / name, model, name)
        write_soft_prompt(root / "classes", model, "prompt", labels=["a", "b"])
        further: dict[str, dict[str, Any]] = {
            "HRA": {"r": 3},
            "LOHA": {"r": 2},
            "LOKR": {"r": 2},
            "MISS": {"r": 8, "init_weights": "bat"},
            "UNILORA": {"r": 2, "theta_d_length": 30, "save_indices": True},
            "VBLORA": {"r": 2, "num_vectors": 9, "vector_length": 16, "save_only_topk_weights": True},
        }
        for kind, options in further.items():
            write_kind(root / kind, model, peft_type=kind, target_modules=["q_proj", "v_proj"], **options)
        others = ("plain", "dora", "ia3", "vera", "norms", "rows")
        kinds = (*tables, *others, "prompt", "cpt", "multitask", "prefix", "classes", *further)
        self.cases: dict[str, Case] = {name: read_case(root / name) for name in kinds}
        self.names = [*self.harness.base.modules, "model.embed_tokens", "lm_head", "model.norm"]
        self.root = root

    def load(self, directory: Path) -> AdapterPages:
        """The whole way of a published adapter onto the device, whose room is then given back."""
        artifact = read_artifact(directory, self.harness.base, LIMITS)
        pool = self.harness.pool
        packed = pool.pack(
            artifact.digest,
            artifact.delta,
            artifact.activation,
            vocabulary=artifact.vocabulary,
            prompt=artifact.prompt,
        )
        pages = pool.reserve(packed)
        assert pages is not None
        pool.write(pages, packed)
        pool.release(pages)
        return pages


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"), tied=request.param)


@pytest.mark.slow
@pytest.mark.timeout(300 + CASES // 10)  # seconds
def test_any_mutated_artifact_is_served_or_refused_by_name(served: Served) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(SEED, SEED + CASES // 2):
        directory = mutated(served.cases, served.names, seed).write(served.root / f"case-{seed}")
        try:
            served.load(directory)
            outcomes["served"] += 1
        except (ArtifactError, AdapterTooLarge) as refusal:
            outcomes["refused"] += 1
            str(refusal).encode()
        except Exception as error:
            raise AssertionError(f"seed {seed} ({directory})") from error
        shutil.rmtree(directory)
    assert outcomes["served"] > CASES // 100, "some mutations leave an adapter that can be served"
    assert outcomes["refused"] > CASES // 4
    served.harness.pool.check()


def _saved(served: Served, name: str, rows: dict[str, int]) -> Case:
    """An adapter whose tables have so many rows; 0: the file has none of that table."""
    case = served.cases[name]
    tensors = {key: tensor for key, tensor in case.tensors.items() if "layers" in key}
    for table, count in rows.items():
        if count:
            generator = torch.Generator().manual_seed(count)
            tensors[f"base_model.model.{table}.weight"] = torch.randn(count, 64, generator=generator)
    return Case(dict(case.config), tensors)


SIZES = [0, 1, VOCAB - 152, VOCAB - 24, VOCAB - 1, VOCAB, VOCAB + 1, 320, 384, GROWN]


@pytest.mark.slow
@pytest.mark.parametrize("saves", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], None])
def test_tables_of_any_sizes_are_served_whole_or_refused_by_name(
    served: Served, saves: list[str] | None, tmp_path: Path
) -> None:
    """One short and the other whole, padded, larger or absent."""
    vocabulary = served.harness.base.vocabulary
    assert vocabulary is not None
    for embedding in SIZES:
        for head in SIZES:
            case = _saved(served, "saved", {"model.embed_tokens": embedding, "lm_head": head})
            case.config["modules_to_save"] = saves
            directory = case.write(tmp_path / f"{embedding}-{head}")
            sizes = {size for size in (embedding, head) if size}
            refusal = ""
            try:
                own = served.load(directory).vocabulary
            except ArtifactError as error:
                refusal = str(error)
            if refusal:
                named = ("fewer than the base's", "missing tensors", "have", "lacks the table")
                assert any(part in refusal for part in named)
                continue
            assert len(sizes) <= 1, "two sizes are one too many"
            assert min(sizes, default=VOCAB) >= VOCAB
            assert (VOCAB if own is None else own.size) == max(sizes, default=VOCAB)
