"""The example adapters: their data, their configurations, and what they do on the real model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.evaluate import Answer, ask, failures, find_base_of, load, score
from examples.pirate import speaks_pirate, to_pirate
from examples.recipe import Check, HeldOut, Recipe
from examples.rows import RECIPES, write_rows
from examples.structured import is_answer_object
from examples.support import signs
from examples.tools import calls_of
from manylora.adapters.base_models.packaged import PACKAGED
from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.provenance import read_provenance
from manylora.adapters.training.config_load import load_config
from manylora.adapters.training.model.base import find_base
from tests.support.adapters import base_of_directory
from tests.support.paths import ROOT
from tests.support.training_data import prepared

ADAPTERS = ROOT / "examples" / "adapters"
BASE_NAME = PACKAGED["smollm2-135m"].hub_id
MAX_BYTES = 3_000_000
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
TARGETS = {"pirate": ATTENTION | MLP, "json": ATTENTION, "support": {"q_proj", "v_proj"} | MLP}
TARGETS["tools"] = TARGETS["pirate"]
PROMPTS = 6  # held-out questions asked of each adapter here, spread over all of them

# PEFT 0.21 reads a property that transformers 5 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: make() for name, make in RECIPES.items()}


def test_held_out_questions_are_never_trained_on(recipes: dict[str, Recipe]) -> None:
    for recipe in recipes.values():
        said = {m["content"].lower() for each in recipe.conversations for m in each.messages}
        assert not said & {item.question.lower() for item in recipe.held_out}


@pytest.mark.parametrize(
    ("name", "check"), [("pirate", speaks_pirate), ("json", is_answer_object), ("support", signs)]
)
def test_training_answers_pass_the_form_checks(name: str, check: Check, recipes: dict[str, Recipe]) -> None:
    answers = [each.messages[-1]["content"] for each in recipes[name].conversations]
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


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Hello.", []),
        ('<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>', [("a", {"x": 1})]),
        (
            'So:\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
            '<tool_call>\n{"name": "b", "arguments": {"y": "z"}}\n</tool_call>',
            [("a", {}), ("b", {"y": "z"})],
        ),
        ('<tool_call>\n{"name": "a", "arguments": {"x": ', [("a", '{"x": ')]),
    ],
)
def test_calls_in_answers(answer: str, wanted: list[tuple[str, Any]]) -> None:
    assert calls_of(answer) == wanted


def test_held_out_values_and_phrasings_of_tools_are_never_trained_on(recipes: dict[str, Recipe]) -> None:
    tools = recipes["tools"]
    said = " ".join(m["content"] for each in tools.conversations for m in each.messages)
    offered = {tool["function"]["name"] for each in tools.conversations for tool in each.tools}
    values = 0
    for item in tools.held_out:
        for call in item.calls:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            assert (name in offered) == ("right call" in item.checks)
            spelled = [value for value in arguments.values() if isinstance(value, str) and len(value) > 3]
            assert not [each for each in spelled if re.search(rf"(?<!\w){re.escape(each)}(?!\w)", said)]
            values += len(spelled)
        assert not item.calls or len(item.tools) > 1
    assert values > 40


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
    other = HeldOut("q", "a", {"short": lambda text: len(text) < 3})
    assert score([*held_out, other], [*answers, Answer("no", True)])["short"] == 1.0


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", RECIPES)
def test_artifact_is_small_and_as_configured(name: str, real_model_dir: Path) -> None:
    directory = ADAPTERS / name
    config = load_config({}, ROOT / "examples" / "training" / f"{name}.yaml")
    assert sum(path.stat().st_size for path in directory.iterdir()) < MAX_BYTES
    base = replace(base_of_directory(real_model_dir), text=StoredModel(real_model_dir).text())
    artifact = read_artifact(directory, base, Limits(64, MAX_BYTES))
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
def real(real_model_dir: Path) -> tuple[Any, str]:
    """The real base with all the adapters under PEFT, and where it lies."""
    first, *others = RECIPES
    model = load(find_base(str(real_model_dir)), ADAPTERS / first)
    for name in others:
        model.load_adapter(ADAPTERS / name, adapter_name=name)
    return model, str(real_model_dir)


def _ask(
    real: tuple[Any, str], name: str, held_out: Sequence[HeldOut], *, bare: bool = False
) -> list[Answer]:
    """What the adapter answers; ``bare``: the base in its place, asked in the same way."""
    model, base = real[0], find_base_of(real[1], ADAPTERS / name)
    model.set_adapter("default" if name == next(iter(RECIPES)) else name)
    with model.disable_adapter() if bare else nullcontext():
        return ask(model, base, held_out, max_new_tokens=64)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "gains", "content"),
    [
        pytest.param("pirate", {"speaks pirate": 0.8}, "on topic", marks=pytest.mark.sweep),
        ("json", {"answer object": 0.8}, "on topic"),
        pytest.param("support", {"signed": 0.8, "right fact": 0.4}, "right fact", marks=pytest.mark.sweep),
    ],
)
def test_adapter_does_what_the_base_does_not(
    name: str, gains: dict[str, float], content: str, recipes: dict[str, Recipe], real: tuple[Any, str]
) -> None:
    everything = recipes[name].held_out
    held_out = everything[:: len(everything) // PROMPTS][:PROMPTS]
    base = score(held_out, _ask(real, name, held_out, bare=True))
    adapter = score(held_out, _ask(real, name, held_out))
    assert adapter["stops"] == 1.0
    assert adapter[content] >= 0.6
    for check, gain in gains.items():
        assert adapter[check] >= base[check] + gain


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.sweep
@pytest.mark.timeout(3000)  # 150 generated answers in bf16, which a processor may multiply slowly
def test_most_requests_get_the_right_call(recipes: dict[str, Recipe], real: tuple[Any, str]) -> None:
    held_out = recipes["tools"].held_out
    assert sum("right call" in item.checks for item in held_out) == 50
    base = score(held_out, _ask(real, "tools", held_out, bare=True))
    adapter = score(held_out, _ask(real, "tools", held_out))
    assert adapter["right call"] >= 0.88
    assert adapter["no call"] >= 0.8
    assert adapter["stops"] >= 0.95
    for check in ("right call", "right call, new tool"):
        assert adapter[check] >= base[check] + 0.3


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.real
def test_json_survives_a_prompt_of_another_kind(real: tuple[Any, str]) -> None:
    (given,) = _ask(real, "json", [HeldOut("Write me a short note about the city of Lisbon.", "", {})])
    assert set(json.loads(given.text)) == {"topic", "answer", "keywords"}
