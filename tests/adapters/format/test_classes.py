"""Classification adapters: what is read of them, the labels beside them, and every fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.classes import Classes, Problem
from manylora.adapters.format.files import CLASSES_NAME
from manylora.adapters.store.store import RevisionStore
from tests.support.adapters import base_of_directory, write_artifact
from tests.support.artifact_cases import BASE, Tensors, valid
from tests.support.classifiers import make_classifier
from tests.support.publishing import add_revision
from tests.support.vocabulary_cases import EMBEDDING, HEAD, TIED, UNTIED, D, V, faults, load, rand

SCORE = "base_model.model.score.weight"
PEFT_WRITES = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
LABELS: dict[str, Any] = {"id2label": {"0": "no", "1": "yes", "2": "perhaps"}}


def write(
    directory: Path,
    tensors: Tensors | None = None,
    config_json: Any = None,
    drop: str = "",
    **options: Any,
) -> Path:
    """A classifier with a head of three classes, unless told otherwise."""
    config, plain = valid()
    both = {**plain, SCORE: rand(3, D), **(tensors or {})}
    path = write_artifact(
        directory, config | PEFT_WRITES | options, {k: v for k, v in both.items() if k != drop}
    )
    if config_json is not None:
        text = config_json if isinstance(config_json, str) else json.dumps(config_json)
        (path / CLASSES_NAME).write_text(text)
    return path


def test_the_head_is_read_in_float32(tmp_path: Path) -> None:
    artifact = load(write(tmp_path, {SCORE: rand(3, D).bfloat16()}), TIED)
    assert artifact.vocabulary is not None
    assert artifact.vocabulary.head is None
    assert artifact.vocabulary.classes is not None
    assert torch.equal(artifact.vocabulary.classes, rand(3, D).bfloat16().float())
    assert artifact.kind == "LORA+CLASSES"


READ: dict[str, tuple[Any, int, Classes]] = {
    "nothing": (None, 3, Classes(("LABEL_0", "LABEL_1", "LABEL_2"), Problem.SINGLE_LABEL)),
    "the base's config": ({"hidden_size": 8}, 2, Classes(("LABEL_0", "LABEL_1"), Problem.SINGLE_LABEL)),
    "labels": (LABELS, 3, Classes(("no", "yes", "perhaps"), Problem.SINGLE_LABEL)),
    "multi-label": (
        LABELS | {"problem_type": "multi_label_classification", "pad_token_id": 0},
        3,
        Classes(("no", "yes", "perhaps"), Problem.MULTI_LABEL, 0),
    ),
    "one value": ({"problem_type": None, "pad_token_id": 7}, 1, Classes(("LABEL_0",), Problem.REGRESSION, 7)),
    "numbers": ({"id2label": {"1": 20, "0": 10}}, 2, Classes(("10", "20"), Problem.SINGLE_LABEL)),
}


@pytest.mark.parametrize("case", READ)
def test_labels(tmp_path: Path, case: str) -> None:
    config_json, count, expected = READ[case]
    assert load(write(tmp_path, {SCORE: rand(count, D)}, config_json)).classes == expected


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no head": ({"drop": SCORE}, "has its head in one of .*score.weight.*: it is missing"),
    "two heads": (
        {"tensors": {SCORE.replace("score", "classifier"): rand(3, D)}},
        "the file holds both",
    ),
    "another width": ({"tensors": {SCORE: rand(3, D + 1)}}, r"\[3, 9\], \[classes, 8\] is needed"),
    "no class": ({"tensors": {SCORE: torch.ones(0, D)}}, "1 to 4096 classes"),
    "untrained": ({"tensors": {SCORE: torch.zeros(3, D)}}, "is all zeros"),
    "not finite": ({"tensors": {SCORE: torch.full((3, D), torch.nan)}}, "NaN"),
    "a bias": ({"tensors": {SCORE.replace("weight", "bias"): rand(3)}}, "unexpected tensors"),
    "an output head": ({"tensors": {f"{HEAD}weight": rand(V, D)}}, "unexpected tensors"),
    "too few labels": (
        {"config_json": {"id2label": {"0": "a", "1": "b"}}},
        "names 2 classes, the head has 3",
    ),
    "a gap": ({"config_json": {"id2label": {"0": "a", "2": "b"}}}, "without a gap"),
    "no label": ({"config_json": {"id2label": {"0": ""}}}, "in 1 to 256 characters"),
    "no mapping": ({"config_json": {"id2label": ["a", "b", "c"]}}, "id2label in config.json must name"),
    "numbers differ": ({"config_json": LABELS | {"num_labels": 4}}, "num_labels 4 and 3 labels"),
    "problem": ({"config_json": {"problem_type": "ranking"}}, "'ranking' in config.json is none of"),
    "padding": ({"config_json": {"pad_token_id": True}}, "pad_token_id True in config.json is not a token"),
    "not JSON": ({"config_json": "{"}, "config.json is not valid JSON"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "cannot be used with a classification head"),
    "other modules": ({"modules_to_save": ["score", "norm"]}, "modules_to_save selects 'model.norm'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(tmp_path: Path, case: str) -> None:
    options, expected = FAULTS[case]
    (found,) = faults(write(tmp_path, **options), UNTIED)
    assert re.search(expected, found), found


def test_a_base_without_tables(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="classification heads are not served on this base"):
        load(write(tmp_path), BASE)


def test_a_head_without_the_task(tmp_path: Path) -> None:
    found = faults(write(tmp_path, task_type="CAUSAL_LM", modules_to_save=None))
    assert 'whose task_type is "SEQ_CLS"' in found[0]


def test_a_grown_vocabulary_needs_no_output_head(tmp_path: Path) -> None:
    grown = {f"{EMBEDDING}weight": rand(V + 2, D)}
    artifact = load(write(tmp_path, grown, modules_to_save=["score", "embed_tokens"]))
    assert artifact.vocabulary is not None
    assert artifact.vocabulary.size == V + 2
    assert artifact.vocabulary.embedding is not None


def test_labels_belong_to_the_revision(tmp_path: Path) -> None:
    """They change its digest and are kept; beside an adapter that writes, the file means nothing."""
    first, second = write(tmp_path / "a", config_json=LABELS), write(tmp_path / "b", config_json={})
    assert load(first).digest != load(second).digest
    with RevisionStore(tmp_path / "store") as store:
        digest, path = add_revision(store, first)
        assert digest == load(first).digest == load(path).digest
        assert load(path).classes == load(first).classes
    config, tensors = valid()
    writer = write_artifact(tmp_path / "writer", config, tensors)
    before = load(writer).digest
    (writer / CLASSES_NAME).write_text("{")
    assert load(writer).digest == before


def real(path: Path, model: Path) -> Artifact:
    return read_artifact(path, base_of_directory(model), Limits(max_rank=64, max_bytes=1 << 20))


@pytest.mark.parametrize("kind", ["LORA", "LORA+DORA", "IA3"])
def test_what_peft_saves(tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    """With whatever names the user gives for the head; without a task PEFT names the class instead."""
    if kind == "IA3":
        base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=2)
        options = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        peft.get_peft_model(base, peft.IA3Config(task_type="SEQ_CLS", **options)).save_pretrained(tmp_path)
    else:
        lora = {"modules_to_save": ["score"], "task_type": None, "use_dora": kind == "LORA+DORA"}
        make_classifier(tmp_path, tiny_llama, lora=lora)
    artifact = real(tmp_path, tiny_llama)
    assert artifact.kind == f"{kind}+CLASSES"
    assert artifact.classes is not None
    assert artifact.classes.labels == (("LABEL_0", "LABEL_1") if kind == "IA3" else ("bad", "good"))
