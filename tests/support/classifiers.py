"""Classification adapters, made and computed by plain PEFT on transformers' own classification models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForSequenceClassification

from manylora.adapters.training.model.targets import targets
from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.kernels.inputs import AdapterPages
from tests.support.engine_harness import Answer, EngineHarness


def _base(directory: Path, dtype: torch.dtype, **config: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype, **config).eval()


def make_classifier(
    directory: Path,
    model: Path,
    *,
    labels: Seq[str] = ("bad", "good"),
    seed: int = 0,
    config_json: bool = True,
    dtype: torch.dtype = torch.float32,
    lora: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Save what ``get_peft_model`` makes with random weights; ``config`` is the base's, ``lora`` PEFT's."""
    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D and embeddings
        base = _base(model, torch.float32, **names, **config)
        options: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": targets(base, ("attention",))}
        adapted = peft.get_peft_model(base, peft.LoraConfig(**{**options, **(lora or {})}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        adapted.to(dtype).save_pretrained(directory)
    if config_json:
        base.config.save_pretrained(directory)
    return directory


class PeftClassifier:
    """A classification adapter that plain PEFT runs, on the model that its config.json describes."""

    def __init__(
        self, directory: Path, model: Path, labels: int = 2, dtype: torch.dtype = torch.float32, **config: Any
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = _base(model, dtype, num_labels=labels, **config)
            self._model = peft.PeftModel.from_pretrained(base, directory).eval()

    @torch.inference_mode()
    def scores(self, ids: Seq[int]) -> torch.Tensor:
        """What the head says of one text, float32 [classes]."""
        scores: torch.Tensor = self._model(input_ids=torch.tensor([ids])).logits[0]
        return scores.float()


def request_scores(harness: EngineHarness, prompt: tuple[int, ...], pages: AdapterPages) -> Sequence:
    """A sequence that wants the classes of ``prompt``."""
    sequence = harness.sequence(prompt, (pages, 1.0), max_tokens=0)
    sequence.next_logits = len(prompt) - 1
    return sequence


def scores_of(answer: Answer) -> torch.Tensor:
    """The scores of an answer, delivered once, float32 [classes]."""
    (delivered,) = (delta.logits for delta in answer.deltas if delta.logits is not None)
    assert answer.last.finish_reason is FinishReason.STOP
    assert not answer.token_ids
    return delivered.rows[0]
