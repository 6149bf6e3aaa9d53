"""How a base's hidden states become embeddings, by the files that sentence-transformers keeps beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from manylora.adapters.format.files import FileFault, open_regular, parse_json_object

logger = logging.getLogger(__name__)


class Pooling(StrEnum):
    """How the hidden states of a text's tokens become one vector, by vLLM's names."""

    LAST = "LAST"  # that of the last token
    MEAN = "MEAN"  # the mean of all


_MAX_BYTES = 1 << 16
_MODES = {"pooling_mode_lasttoken": Pooling.LAST, "pooling_mode_mean_tokens": Pooling.MEAN}


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """What is done unless a request says otherwise; the default is OpenAI's for a model that writes."""

    pooling: Pooling = Pooling.LAST
    normalize: bool = True  # to length 1


def read_pooling(directory: Path) -> PoolingConfig:
    """What ``1_Pooling/config.json`` and ``modules.json`` say; the defaults for what they leave out."""
    modules = _read(directory / "modules.json")
    config = _read(directory / "1_Pooling" / "config.json")
    if config is None:
        return PoolingConfig()
    asked = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    known = [_MODES[name] for name in asked if name in _MODES]
    if len(asked) != 1 or not known:
        logger.warning("embeddings are of the last token: 1_Pooling/config.json asks for %s", asked)
    steps = modules.values() if modules is not None else ()
    normalize = any(str(step.get("type")).endswith(".Normalize") for step in steps if isinstance(step, dict))
    return PoolingConfig(known[0] if len(asked) == 1 and known else Pooling.LAST, normalize)


def _read(path: Path) -> Mapping[str, Any] | None:
    """The object in ``path``, or the items of the list in it by their number; None if there is none."""
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES)
    except FileFault:
        return None
    try:
        if not content.lstrip().startswith(b"["):
            return parse_json_object(content, path.name)
        items = parse_json_object(b'{"items": ' + content + b"}", path.name)["items"]
        return {str(number): item for number, item in enumerate(items)}
    except FileFault as fault:
        logger.warning("embeddings are as without %s: %s", path.name, fault)
        return None
