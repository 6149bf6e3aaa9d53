"""The publish gate: an adapter is only published if, read back from disk, it is what was trained.

The adapter on disk is put on a pristine base with plain PEFT, and its logits on a few rows are compared with
those of the model that was trained, rounded as the file is. How far they may differ is told by what the
adapter does to the logits: an adapter that lost a part of itself is far off on that scale, while the rounding
of a conversion is not. A model that was trained in full is judged in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manylora.adapters.fidelity.measures import relative_distance
from manylora.adapters.format.classes import read_classes
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.files import (
    CLASSES_NAME,
    CONFIG_NAME,
    POOLING_NAME,
    read_config,
    read_text_files,
)
from manylora.adapters.format.pooling import read_pooling
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import IGNORED, EncodedTexts
from manylora.adapters.training.errors import GateFailed
from manylora.adapters.training.model.embedding import text_vectors
from manylora.adapters.training.model.forward import class_logits, learned_ids, learned_logits
from manylora.adapters.training.session.session import Session

ROWS = 4  # that are compared
POSITIONS = 64  # learned positions of each, its last ones
MAX_LOSS_OF_EFFECT = 0.05  # difference allowed, as a share of the adapter's effect on the logits
FLOOR = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # or as a share of the logits: what rounding does
QUANTIZED_FLOOR = 5e-2  # its kernels round otherwise in training than in inference
WORSE_END = 1.0  # nats by which the end of a turn may become less likely than with the base ...
LIKELY_END = -0.7  # ... unless it is still likely (a probability of a half)


@dataclass(frozen=True, slots=True)
class GateLogits:
    """Logits of one model on the rows that the gate compares; the vectors of their texts where it embeds."""

    logits: Tensor  # float32 [positions, vocabulary or classes], or [texts, D]
    end: float | None  # mean log-probability of the tokens that end a turn; None if no row has one


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate measured; all but ``end_*`` are distances of logits relative to the trained model's."""

    difference: float  # of the reloaded adapter from the trained model
    effect: float  # of the trained adapter from the base
    allowed: float  # difference
    end_base: float | None  # mean log-probability of the end of a turn
    end_adapter: float | None


def gate_logits(model: Any, session: Session) -> GateLogits:
    """The logits of ``model`` on a few rows: held-out ones where there are any."""
    was_training = model.training
    model.eval()
    items: Sequence[Item] = (session.prepared.eval or session.prepared.train).sequences[:ROWS]
    pad_id = session.base.pad_id
    if session.config.task == "classification":
        logits = class_logits(model, [learned_ids(item)[0] for item in items], pad_id)
        model.train(was_training)
        return GateLogits(logits, None)
    if session.config.task == "embedding":
        texts = [text for item in items if isinstance(item, EncodedTexts) for text in item.texts]
        vectors = text_vectors(model, texts, pad_id, session.pooling)
        model.train(was_training)
        return GateLogits(vectors, None)
    rows = [_last_positions(*learned_ids(item)) for item in items]
    parts, ends = [], []
    for logits, labels in learned_logits(model, rows, pad_id):
        parts.append(logits)
        if int(labels[-1]) in session.base.eos_ids:
            ends.append(float(logits[-1].log_softmax(-1)[labels[-1]]))
    model.train(was_training)
    return GateLogits(torch.cat(parts), sum(ends) / len(ends) if ends else None)


def _last_positions(ids: list[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Keep only the last learned labels, so that little memory does for any row."""
    learned = [index for index, label in enumerate(labels) if label != IGNORED][-POSITIONS:]
    kept = set(learned)
    return ids, [label if index in kept else IGNORED for index, label in enumerate(labels)]


def check(trained: GateLogits, reloaded: GateLogits, base: GateLogits, session: Session) -> GateResult:
    """Judge the adapter that was read back by its logits, those of the trained model and of the base.

    Raises:
        GateFailed: it is not what was trained, does nothing, or unlearned to end its turns.
    """
    product = session.config.product
    effect = relative_distance(trained.logits, base.logits)
    difference = relative_distance(trained.logits, reloaded.logits)
    is_quantized = session.config.quantization != "none"
    floor = QUANTIZED_FLOOR if is_quantized else FLOOR[session.loader.dtype]
    allowed = max(MAX_LOSS_OF_EFFECT * effect, floor)
    result = GateResult(difference, effect, allowed, base.end, reloaded.end)
    if not difference <= allowed:  # also when it is no number
        raise GateFailed(
            f"the {product} on disk is not what was trained: its {compared(session.config)} differ "
            f"by {difference:.2%} where the training changed them by {effect:.2%}; nothing was published"
        )
    if effect == 0:
        raise GateFailed(
            f"the {product} changes nothing: its {compared(session.config)} are the base's; nothing was "
            f"published"
        )
    _check_end(result, product)
    return result


def compared(config: TrainConfig) -> str:
    """What of an adapter is compared with the model that was trained."""
    return "vectors" if config.task == "embedding" else "logits"


def check_pooling(session: Session) -> None:
    """Check that the server will pool as the run did, by the files beside the adapter.

    Raises:
        GateFailed: it will not.
    """
    if session.config.task == "embedding" and read_pooling(session.folder.partial) != session.pooling:
        raise GateFailed(f"{POOLING_NAME} beside the adapter pools otherwise; nothing was published")


def check_classes(session: Session) -> None:
    """Check that the server will read the labels that were trained, in their order, beside the adapter.

    Raises:
        GateFailed: they are not.
    """
    if session.config.task != "classification":
        return
    faults, partial = Faults(), session.folder.partial
    classes = read_classes(read_text_files(partial, read_config(partial / CONFIG_NAME)), faults)
    faults.raise_any()
    found = classes.complete(len(session.prepared.classes))
    if found.labels != session.prepared.classes or found.pad_id != session.base.pad_id:
        raise GateFailed(f"{CLASSES_NAME} beside the adapter names other classes; nothing was published")


def _check_end(result: GateResult, product: str) -> None:
    base, adapter = result.end_base, result.end_adapter
    if base is not None and adapter is not None and adapter < min(base - WORSE_END, LIKELY_END):
        raise GateFailed(
            f"the {product} does not end its turns: the log-probability of the end token fell from "
            f"{base:.2f} to {adapter:.2f}; nothing was published"
        )
