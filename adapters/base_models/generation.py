"""``generation_config.json`` of a model: its end tokens, and what is done where nobody can read it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

GENERATION_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model directory says of generating."""

    content: Mapping[str, Any]  # of generation_config.json; empty where there is none that can be read
    eos_ids: tuple[int, ...]  # ends of a generation by that file, or by config.json where it names none

    def hf(self) -> Any:
        """The settings as transformers has them; only the end tokens where it can't read the others."""
        from transformers import GenerationConfig  # noqa: PLC0415  (slow to import)

        ends = {"eos_token_id": list(self.eos_ids) or None}
        try:
            settings = GenerationConfig.from_dict({**self.content, **ends})
            settings.validate(strict=True)
        except Exception as error:  # it raises whatever its parts do: there is no common base
            reason = str(error).strip().splitlines()
            logger.warning(
                "%s: only its end tokens are used, transformers refuses the rest: %s",
                GENERATION_NAME, reason[0] if reason else type(error).__name__,
            )  # fmt: skip
            return GenerationConfig(**ends)
        return settings


NO_GENERATION = Generation({}, ())


def read_generation(directory: Path, config: Any) -> Generation:
    """The settings beside the model with the transformers ``config``.

    What can't be used is logged, with the name of the file and what is done instead.
    """
    path = directory / GENERATION_NAME
    text = config.get_text_config()
    fallback, _ = _token_ids(getattr(text, "eos_token_id", None), text.vocab_size)
    instead = "the end tokens are those of config.json and of the tokenizer"
    if not path.exists():
        return Generation({}, fallback or ())
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a JSON {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s can't be read: %s; %s", path, error, instead)
        return Generation({}, fallback or ())
    found, fault = _token_ids(content.get("eos_token_id"), text.vocab_size)
    if fault is not None:
        logger.warning("%s: eos_token_id %s; %s", path, fault, instead)
        content = {key: value for key, value in content.items() if key != "eos_token_id"}
    return Generation(content, (fallback or ()) if found is None else found)


def _token_ids(value: Any, vocab_size: int) -> tuple[tuple[int, ...] | None, str | None]:
    """One token id or several; None where there is none. Beside it why ``value`` is no such thing."""
    if value is None:
        return None, None
    values = value if isinstance(value, list) else [value]
    ids = []
    for item in values:
        is_number = isinstance(item, int | float) and not isinstance(item, bool)
        if not is_number or not math.isfinite(item) or item != int(item):
            return None, f"holds {json.dumps(item)[:60]}, which is no token id"
        if not 0 <= item < vocab_size:
            return None, f"holds {int(item)}, and the model has {vocab_size} tokens"
        ids.append(int(item))
    return tuple(dict.fromkeys(ids)), None
