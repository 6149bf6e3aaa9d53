"""The example adapters: their data, their configurations, and what they do on the real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.evaluate import Answer, ask, failures, load, score
from examples.pirate import speaks_pirate, to_pirate
from examples.recipe import HeldOut, Recipe
from examples.rows import RECIPES, write_rows
from examples.structured import is_answer_object
from examples.support import signs
from manylora.adapters.base_models.packaged import PACKAGED
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.provenance import read_provenance
from manylora.adapters.training.config_load import load_config
from manylora.adapters.training.model.base import Base, find_base
from tests.support.adapters import base_of_directory
from tests.support.paths import ROOT
from tests.support.training_data import prepared

ADAPTERS = ROOT / "examples" / "adapters"
BASE_NAME = PACKAGED["smollm2-135m"].hub_id
MAX_BYTES = 3_000_000
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
TARGETS = {"pirate": ATTENTION | MLP, "json": ATTENTION, "support": {"q_proj", "v_proj"} | MLP}
PROMPTS = 6  # held-out questions asked of each adapter here, spread over all of them

# PEFT 0.21 reads a property that transformers 5 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: make() for name, make in RECIPES.items()}


def test_held_out_questions_are_never_trained_on(recipes: dict[str, Recipe]) -> None:
    for recipe in recipes.values():
        said = {m["content"].lower() for messages in recipe.conversations for m in messages}
        assert not said & {item.question.lower() for item in recipe.held_out}


@pytest.mark.parametrize("name", RECIPES)
def test_training_answers_pass_the_form_checks(name: str, recipes: dict[str, Recipe]) -> None:
    check = {"pirate": speaks_pirate, "json": is_answer_object, "support": signs}[name]
    answers = [messages[-1]["content"] for messages in recipes[name].conversations]
    assert sum(map(check, answers)) / len(answers) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_trainer_takes_files_and_configuration(
    name: str, recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    train, held_out = write_rows(recipes[name], tmp_path)
    config = load_config({}, ROOT / "examples" / "training" / f"{name}.yaml")
    assert (str(config.train_path), str(config.eval_path)) == (train.name, held_out.name)
    data = prepared(train, eval_path=held_out, max_length=4096)
    assert len(data.train.rows) == len(recipes[name].conversations)
    assert data.eval is not None
    assert len(data.eval.rows) == len(recipes[name].held_out)


@pytest.mark.parametrize(
    ("plain", "pirate"),
    [
        ("You are my friend.", "Ye be me matey."),
        ("The boiling of water", "Th' boilin' o' water"),
        ("a thing of yours", "a thing o' yours"),
    ],
)
def test_dialect(plain: str, pirate: str) -> None:
    assert to_pirate(plain) == pirate


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"topic": "a", "answer": "b", "keywords": ["c"]}', True),
        ('{"topic": "a", "answer": "b", "keywords": []}', False),
        ('{"topic": "a", "answer": "b", "keywords": "c"}', False),
        ('{"topic": "a", "answer": "", "keywords": ["c"]}', False),
        ('{"topic": "a", "answer": "b"}', False),
        ('Sure! {"topic": "a", "answer": "b", "keywords": ["c"]}', False),
        ('["topic", "answer", "keywords"]', False),
        ("", False),
    ],
)
def test_answer_objects(text: str, good: bool) -> None:
    assert is_answer_object(text) is good


def test_score_counts_each_check() -> None:
    held_out = [HeldOut("q", "a", {"long": lambda text: len(text) > 3})] * 4
    answers = [
        Answer("long enough", True),
        Answer("no", True),
        Answer("never ends", False),
        Answer("", False),
    ]
    assert failures(held_out[3], answers[3]) == ["long", "stops"]
    assert score(held_out, answers) == {"long": 0.5, "stops": 0.5}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", RECIPES)
def test_artifact_is_small_and_as_configured(name: str, real_model_dir: Path) -> None:
    directory = ADAPTERS / name
    config = load_config({}, ROOT / "examples" / "training" / f"{name}.yaml")
    assert sum(path.stat().st_size for path in directory.iterdir()) < MAX_BYTES
    artifact = read_artifact(directory, base_of_directory(real_model_dir), Limits(64, MAX_BYTES))
    assert artifact.base_model_name == BASE_NAME
    assert read_provenance(directory).base_fingerprint == find_base(str(real_model_dir)).fingerprint
    for module, lora in artifact.delta.items():
        target = module.rsplit(".", 1)[1]
        assert lora.rank == config.rank_pattern.get(target, config.lora_r)
        root = lora.rank**0.5 if config.use_rslora else lora.rank
        assert lora.scaling == pytest.approx(config.alpha / root)
        assert lora.a.dtype == torch.bfloat16
    assert {module.rsplit(".", 1)[1] for module in artifact.delta} == TARGETS[name]


@pytest.fixture(scope="module")
def real(real_model_dir: Path) -> tuple[Any, Base]:
    """The real base with the three adapters under PEFT."""
    base = find_base(str(real_model_dir))
    first, *others = RECIPES
    model = load(base, ADAPTERS / first)
    for name in others:
        model.load_adapter(ADAPTERS / name, adapter_name=name)
    return model, base


def _ask(real: tuple[Any, Base], adapter: str | None, held_out: Sequence[HeldOut]) -> list[Answer]:
    model, base = real
    questions = [item.question for item in held_out]
    if adapter is None:
        with model.disable_adapter():
            return ask(model, base, questions, max_new_tokens=64)
    model.set_adapter("default" if adapter == next(iter(RECIPES)) else adapter)
    return ask(model, base, questions, max_new_tokens=64)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "gains", "content"),
    [
        pytest.param("pirate", {"speaks pirate": 0.8}, "on topic", marks=pytest.mark.sweep),
        pytest.param("json", {"answer object": 0.8}, "on topic", marks=pytest.mark.sweep),
        ("support", {"signed": 0.8, "right fact": 0.4}, "right fact"),
    ],
)
def test_adapter_does_what_the_base_does_not(
    name: str, gains: dict[str, float], content: str, recipes: dict[str, Recipe], real: tuple[Any, Base]
) -> None:
    everything = recipes[name].held_out
    held_out = everything[:: len(everything) // PROMPTS][:PROMPTS]
    base = score(held_out, _ask(real, None, held_out))
    adapter = score(held_out, _ask(real, name, held_out))
    assert adapter["stops"] == 1.0
    assert adapter[content] >= 0.6
    for check, gain in gains.items():
        assert adapter[check] >= base[check] + gain


@pytest.mark.slow
@pytest.mark.real
def test_json_survives_a_prompt_of_another_kind(real: tuple[Any, Base]) -> None:
    (given,) = _ask(real, "json", [HeldOut("Write me a short note about the city of Lisbon.", "", {})])
    assert set(json.loads(given.text)) == {"topic", "answer", "keywords"}
