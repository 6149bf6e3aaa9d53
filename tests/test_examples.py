"""The example adapters: their data, their recipe on a tiny model, and what they do on the real one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoTokenizer

from adapters.artifact import Limits, read_artifact
from examples.chat import IGNORED, Encoded, batches, encode
from examples.evaluate import Answer, answer, failures, score
from examples.pirate import speaks_pirate, to_pirate
from examples.recipe import HeldOut, Recipe
from examples.rows import RECIPES
from examples.structured import is_answer_object
from examples.support import signs
from examples.train import BASE_NAME, cosine_with_warmup, load_base, train
from server.model.tokenizer import Tokenizer
from tests.adapter_factory import base_of_directory
from tests.tiny import byte_tokenizer, tiny_model

ADAPTERS = Path(__file__).parents[1] / "examples" / "adapters"
MAX_BYTES = 3_000_000
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
    held_out = [HeldOut("q", {"long": lambda text: len(text) > 3})] * 4
    answers = [
        Answer("long enough", True),
        Answer("no", True),
        Answer("never ends", False),
        Answer("", False),
    ]
    assert failures(held_out[3], answers[3]) == ["long", "stops"]
    assert score(held_out, answers) == {"long": 0.5, "stops": 0.5}


def test_only_answers_and_end_tokens_are_trained_on() -> None:
    tokenizer = byte_tokenizer()
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ahoy"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Arr"},
    ]
    chat = encode(tokenizer, messages)
    supervised = [label for label in chat.labels if label != IGNORED]
    assert tokenizer.decode(supervised) == "Ahoy<|im_end|>Arr<|im_end|>"
    whole = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
    assert tokenizer.decode(chat.input_ids) == whole
    assert all(label in (IGNORED, token) for token, label in zip(chat.input_ids, chat.labels, strict=True))


def test_batches_hold_every_chat_once() -> None:
    chats = [Encoded([n] * (1 + n % 7), [n] * (1 + n % 7)) for n in range(1, 101)]
    seen: list[int] = []
    for batch in batches(chats, 8, pad_id=0, rng=random.Random(1)):
        assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
        assert batch.attention_mask.any(dim=0).all(), "a column is padding only"
        seen += batch.input_ids[:, 0].tolist()
    assert sorted(seen) == list(range(1, 101))


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [cosine_with_warmup(step, 50) for step in range(50)]
    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == factors[4] == 1.0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] < 0.01


def test_recipe_makes_an_artifact_that_serves(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    recipe = Recipe(
        name="tiny",
        summary="Says ahoy.",
        data="One line.",
        conversations=[turn] * 24,
        held_out=[HeldOut("Hello", {"ahoy": lambda text: "Ahoy" in text})],
        targets=("q_proj", "v_proj", "down_proj"),
        rank=4,
        alpha=8,
        rslora=True,
        rank_pattern={"v_proj": 8},
    )
    train(recipe, base, tmp_path / "out", Console(quiet=True))
    artifact = read_artifact(tmp_path / "out", base_of_directory(base), Limits(64, MAX_BYTES))
    assert artifact.rank == 8
    assert all(lora.b.abs().max() > 0 for lora in artifact.delta.values())
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "q_proj 4, v_proj 8, down_proj 4" in card


@pytest.mark.real
@pytest.mark.parametrize("name", RECIPES)
def test_server_and_trainer_render_the_same_tokens(
    name: str, recipes: dict[str, Recipe], real_model_dir: Path
) -> None:
    server, trainer = Tokenizer.load(real_model_dir), AutoTokenizer.from_pretrained(real_model_dir)
    for messages in recipes[name].conversations[:60]:
        chat = encode(trainer, messages)
        end = len(chat.labels) - chat.labels[::-1].index(IGNORED)  # the last answer starts here
        assert server.encode_chat(messages[:-1]) == chat.input_ids[:end]
        assert chat.labels[-1] in server.eos_ids


@pytest.mark.real
@pytest.mark.parametrize("name", RECIPES)
def test_artifact_is_small_and_valid(name: str, recipes: dict[str, Recipe], real_model_dir: Path) -> None:
    directory, recipe = ADAPTERS / name, recipes[name]
    assert sum(path.stat().st_size for path in directory.iterdir()) < MAX_BYTES
    artifact = read_artifact(directory, base_of_directory(real_model_dir), Limits(64, MAX_BYTES))
    assert artifact.base_model_name == BASE_NAME
    for module, lora in artifact.delta.items():
        target = module.rsplit(".", 1)[1]
        assert lora.rank == recipe.rank_pattern.get(target, recipe.rank)
        assert lora.scaling == pytest.approx(recipe.alpha / (lora.rank**0.5 if recipe.rslora else lora.rank))
        assert lora.a.dtype == torch.bfloat16
    assert {module.rsplit(".", 1)[1] for module in artifact.delta} == set(recipe.targets)


@pytest.fixture(scope="module")
def real(real_model_dir: Path) -> tuple[Any, Any]:
    """The real base with the three adapters under PEFT, and its tokenizer."""
    first, *others = RECIPES
    model = PeftModel.from_pretrained(load_base(real_model_dir), ADAPTERS / first, adapter_name=first)
    for name in others:
        model.load_adapter(ADAPTERS / name, adapter_name=name)
    return model.eval(), AutoTokenizer.from_pretrained(real_model_dir)


def _ask(real: tuple[Any, Any], adapter: str | None, held_out: Sequence[HeldOut]) -> list[Answer]:
    model, tokenizer = real
    questions = [item.question for item in held_out]
    if adapter is None:
        with model.disable_adapter():
            return answer(model, tokenizer, questions, max_new_tokens=64)
    model.set_adapter(adapter)
    return answer(model, tokenizer, questions, max_new_tokens=64)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "gains", "content"),
    [
        ("pirate", {"speaks pirate": 0.8}, "on topic"),
        ("json", {"answer object": 0.8}, "on topic"),
        ("support", {"signed": 0.8, "right fact": 0.4}, "right fact"),
    ],
)
def test_adapter_does_what_the_base_does_not(
    name: str, gains: dict[str, float], content: str, recipes: dict[str, Recipe], real: tuple[Any, Any]
) -> None:
    everything = recipes[name].held_out
    held_out = everything[:: len(everything) // PROMPTS][:PROMPTS]
    base = score(held_out, _ask(real, None, held_out))
    adapter = score(held_out, _ask(real, name, held_out))
    assert adapter["stops"] == 1.0
    assert adapter[content] >= 0.6
    for check, gain in gains.items():
        assert adapter[check] >= base[check] + gain


@pytest.mark.real
def test_json_survives_a_prompt_of_another_kind(real: tuple[Any, Any]) -> None:
    (given,) = _ask(real, "json", [HeldOut("Write me a short note about the city of Lisbon.", {})])
    assert set(json.loads(given.text)) == {"topic", "answer", "keywords"}
