"""How hidden states become embeddings, by the files that sentence-transformers keeps beside a model.

``modules.json`` lists the steps, and ``1_Pooling/config.json`` says how the states of a text's tokens become
one vector, in today's words (``pooling_mode``) or in those of older versions (one flag a mode).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from manylora.adapters.disk import sync_path
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import (
    MODULES_NAME,
    POOLING_NAME,
    FileFault,
    open_regular,
    parse_json_object,
)

logger = logging.getLogger(__name__)


class Pooling(StrEnum):
    """How the hidden states of a text's tokens become one vector, by vLLM's names."""

    LAST = "LAST"  # that of the last token
    MEAN = "MEAN"  # the mean of all


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """What is done unless a request says otherwise; the default is OpenAI's for a model that writes."""

    pooling: Pooling = Pooling.LAST
    normalize: bool = True  # to length 1

    def __str__(self) -> str:
        return f"{self.pooling.lower()}, {'normalized' if self.normalize else 'not normalized'}"


_MAX_BYTES = 1 << 16
_MODES = {"lasttoken": Pooling.LAST, "mean": Pooling.MEAN}
_FLAGS = {  # of older versions, and the mode that each stands for
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_STEPS = ("Transformer", "Pooling", "Normalize")


def read_pooling(directory: Path) -> PoolingConfig:
    """What the files of a base say; the default where there are none, or where they ask for another thing."""
    files = {}
    for name in (MODULES_NAME, POOLING_NAME):
        try:
            with open_regular(directory / name) as file:
                files[name] = file.read(_MAX_BYTES)
        except FileFault:
            continue
    try:
        return parse_pooling(files) or PoolingConfig()
    except FileFault as fault:
        logger.warning("embeddings are of the last token, normalized: %s", fault)
        return PoolingConfig()


def parse_pooling(files: Mapping[str, bytes]) -> PoolingConfig | None:
    """What the files, by name, say; None if there are none of this kind.

    Raises:
        FileFault: they ask for something that is not done here, or can't be read.
    """
    steps = _steps(files.get(MODULES_NAME))
    if POOLING_NAME not in files:
        if "Pooling" in steps:
            raise FileFault(f"{MODULES_NAME} names a step Pooling, but there is no {POOLING_NAME}")
        return None
    other = next((step for step in steps if step not in _STEPS), None)
    if other is not None:
        raise FileFault(f"{MODULES_NAME} has a step {shown(other)}: served are {', '.join(_STEPS)}")
    mode = _mode(parse_json_object(files[POOLING_NAME], POOLING_NAME))
    if mode not in _MODES:
        raise FileFault(f"{POOLING_NAME} asks for {shown(mode)}: served are {', '.join(_MODES)}")
    return PoolingConfig(_MODES[mode], "Normalize" in steps)


def _steps(content: bytes | None) -> tuple[str, ...]:
    """The classes in ``modules.json``, without the packages that they are in."""
    if content is None:
        return ()
    steps = parse_json_object(b'{"steps": ' + content + b"}", MODULES_NAME)["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise FileFault(f"{MODULES_NAME} is not a list of steps")
    return tuple(str(step.get("type")).rpartition(".")[2] for step in steps)


def _mode(config: Mapping[str, Any]) -> str:
    """The one mode that is asked for, or the several as a text; mean where none is, as in the library."""
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for flag, mode in _FLAGS.items() if config.get(flag) is True] or "mean"
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return given if isinstance(given, str) else str(given)


def write_pooling(pooling: PoolingConfig, width: int, directory: Path) -> None:
    """Write the files into ``directory``, which exists, and flush them.

    In the words of older versions, which newer ones and vLLM read as well. ``width``: of a hidden state.
    """
    modes = {flag: _MODES.get(mode) == pooling.pooling for flag, mode in _FLAGS.items()}
    config = {"word_embedding_dimension": width, **modes, "include_prompt": True}
    names = [("Transformer", ""), ("Pooling", "1_Pooling")]
    names += [("Normalize", "2_Normalize")] if pooling.normalize else []
    steps = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(names)
    ]
    for _, path in names:
        (directory / path).mkdir(exist_ok=True)
    for name, value in ((POOLING_NAME, config), (MODULES_NAME, steps)):
        (directory / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        sync_path(directory / name)
