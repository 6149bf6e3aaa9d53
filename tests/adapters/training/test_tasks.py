"""Preferences, classes and quantized bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoConfig, AutoTokenizer

from manylora.adapters.format.provenance import read_provenance
from manylora.adapters.training.errors import GateFailed, TrainingConfigError
from manylora.adapters.training.run.export import write_artifact
from tests.support.classifiers import request_scores, scores_of
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import assert_logits_match
from tests.support.tiny_models import tiny_model
from tests.support.training_runs import LABELS, PAIRS, config, losses, run

pytestmark = pytest.mark.slow


def test_preferences(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, tmp_path, PAIRS, task="dpo", eval_split=0.2)
    result = run(settings)
    curve = losses(result)
    assert curve[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: the reference is the base itself
    assert curve[-1] < 0.3
    base, adapter = result.baseline.base, result.baseline.adapter
    assert adapter["better answer likelier"] == 1.0
    assert adapter["margin"] > base["margin"] + 1
    harness = EngineHarness(tiny_llama)
    harness.load(result.adapter)


def test_classes(tiny_llama: Path, tmp_path: Path) -> None:
    result = run(config(tiny_llama, tmp_path, LABELS, task="classification", eval_split=0.2, max_steps=20))
    assert result.baseline.adapter["accuracy"] >= result.baseline.base["accuracy"] + 0.25
    assert AutoConfig.from_pretrained(result.adapter).id2label == {0: "0", 1: "1"}
    model = AutoPeftModelForSequenceClassification.from_pretrained(result.adapter, num_labels=2).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in ("bad 90", "good 91")]
    assert [int(row.argmax()) for row in logits] == [0, 1]
    harness = EngineHarness(tiny_llama)
    pages, ids = harness.load(result.adapter), [tokenizer(text).input_ids for text in ("bad 90", "good 91")]
    answers = harness.run(*(request_scores(harness, tuple(text), pages) for text in ids))
    for answer, expected in zip(answers, logits, strict=True):
        assert_logits_match(scores_of(answer)[None], expected[None], 1e-4)


def test_other_labels_are_not_published(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_llama, tmp_path, LABELS, task="classification", max_steps=2)

    def swapped(model: Any, *rest: Any, **options: Any) -> None:
        write_artifact(model, *rest, **options)
        model.config.id2label = {0: "1", 1: "0"}

    monkeypatch.setattr("manylora.adapters.training.run.train.write_artifact", swapped)
    with pytest.raises(GateFailed, match=r"config\.json beside the adapter names other classes"):
        run(settings)
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers have inputs in multiples of 64."""
    return tiny_model(tmp_path_factory.mktemp("wide"), intermediate_size=128)


@pytest.mark.filterwarnings("ignore:.*MatMul8bitLt.*", "ignore:.*inputs will be cast.*")
@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.sweep)])
def test_quantized_bases(kind: str, wide: Path, tmp_path: Path) -> None:
    result = run(config(wide, tmp_path, quantization=kind, dtype="bf16"))
    assert losses(result)[-1] < 0.8 * losses(result)[0]
    assert result.baseline.adapter["loss"] < 0.8 * result.baseline.base["loss"]
    harness = EngineHarness(wide)
    harness.load(result.adapter)
    provenance = read_provenance(result.adapter)
    assert provenance.base_fingerprint == harness.base.fingerprint
    assert provenance.warning("none") == (
        f"it was trained on a base in {kind} and runs on one in 16 or 32 bits: answers may differ a little"
    )
    assert provenance.warning(kind) is None


def test_nf4_on_a_cpu_names_the_layer_that_does_not_fit(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingConfigError, match=r"layers\.0\.mlp\.down_proj \(96 to 64\)"):
        run(config(tiny_llama, tmp_path, quantization="nf4"))


def test_a_tracker_that_is_not_installed(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingConfigError, match="--report-to nonesuch: not a tracker that is installed"):
        run(config(tiny_llama, tmp_path, report_to=["nonesuch"]))
