"""What the scores of a classification adapter mean: its labels, and how scores become probabilities.

The head itself is one of the adapter's tensors (``vocabulary_tensors``). What it means is said, if at all, by
transformers' ``config.json`` beside it; the rules for what that leaves out are transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.files import CLASSES_NAME, FileFault, parse_json_object

MAX_CLASSES = 4096
MAX_LABEL = 256  # characters


class Problem(StrEnum):
    """What the scores of a classifier are (single label, multi label, regression), by transformers' names."""

    SINGLE_LABEL = "single_label_classification"  # logits of one distribution: softmax
    MULTI_LABEL = "multi_label_classification"  # logits that are independent of each other: sigmoid
    REGRESSION = "regression"  # the values themselves


@dataclass(frozen=True, slots=True)
class Classes:
    """What ``config.json`` says of a head; None for what it leaves out."""

    labels: tuple[str, ...] | None = None  # in the order of the head's rows
    problem: Problem | None = None
    pad_id: int | None = None  # the token that never is the last one of a text

    def complete(self, count: int) -> Classes:
        """Fill what is left out with what transformers assumes of a head with ``count`` rows."""
        labels, problem = self.labels, self.problem
        if labels is None:
            labels = tuple(f"LABEL_{index}" for index in range(count))
        if problem is None:
            problem = Problem.REGRESSION if count == 1 else Problem.SINGLE_LABEL
        return Classes(labels, problem, self.pad_id)


def read_classes(files: Mapping[str, bytes], faults: Faults) -> Classes:
    """What the files of :func:`manylora.adapters.format.files.read_text_files` say about the classes."""
    if CLASSES_NAME not in files:
        return Classes()
    try:
        config = parse_json_object(files[CLASSES_NAME], CLASSES_NAME)
    except FileFault as fault:
        faults.add(str(fault))
        return Classes()
    labels = _labels(config, faults)
    count = config.get("num_labels")
    if labels is not None and count is not None and count != len(labels):
        faults.add(f"{CLASSES_NAME} has num_labels {shown(count)} and {len(labels)} labels (id2label)")
    return Classes(labels, _problem(config.get("problem_type"), faults), _pad_id(config, faults))


def _labels(config: Mapping[str, Any], faults: Faults) -> tuple[str, ...] | None:
    given = config.get("id2label")
    if given is None:
        return None
    names = given if isinstance(given, dict) else {}
    labels = [names.get(str(index)) for index in range(len(names))]
    if labels and len(labels) <= MAX_CLASSES and all(_is_label(label) for label in labels):
        return tuple(str(label) for label in labels)
    faults.add(
        f"id2label in {CLASSES_NAME} must name the classes from 0 on without a gap, at most {MAX_CLASSES} of "
        f"them, each in 1 to {MAX_LABEL} characters: {shown(given)}"
    )
    return None


def _is_label(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    return 1 <= len(str(value)) <= MAX_LABEL


def _problem(value: object, faults: Faults) -> Problem | None:
    if value is None or value in tuple(Problem):
        return None if value is None else Problem(str(value))
    faults.add(f"problem_type {shown(value)} in {CLASSES_NAME} is none of {', '.join(Problem)}")
    return None


def _pad_id(config: Mapping[str, Any], faults: Faults) -> int | None:
    value = config.get("pad_token_id")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    faults.add(f"pad_token_id {shown(value)} in {CLASSES_NAME} is not a token id")
    return None
