"""The files of a merged model by which it reads and writes text and stops: as it was served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from manylora.adapters.base_models.generation import GENERATION_NAME, read_generation
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.files import (
    SPECIAL_TOKENS_NAME,
    TEMPLATE_NAME,
    TEXT_NAMES,
    TOKENIZER_CONFIG_NAME,
    VOCABULARY_NAMES,
)
from manylora.adapters.format.text.conventions import AdapterText, BaseText
from manylora.adapters.merge.export_plan import ExportPlan
from manylora.adapters.merge.texts import to_json, tokenizer_files


def served_texts(plan: ExportPlan) -> dict[str, bytes]:
    """By name, the files of tokenizer, template and end tokens.

    Raises:
        BaseModelError: those of the base can't be read.
    """
    source, text, base = plan.stored.directory, plan.text, plan.stored.text()
    files = {name: (source / name).read_bytes() for name in TEXT_NAMES if (source / name).is_file()}
    settings = _settings(files, source)
    if text.template is not None:
        files[TEMPLATE_NAME] = text.template.encode()
        if settings.pop("chat_template", None) is not None:  # would be a second one
            files[TOKENIZER_CONFIG_NAME] = to_json(settings)
    if text.tokenizer_digest is not None:
        for name in (*VOCABULARY_NAMES, SPECIAL_TOKENS_NAME):
            files.pop(name, None)  # of the base's tokenizer
        files |= tokenizer_files(text, base, settings)
    generation = _generation(source, plan.stored.config, text, base)
    return files if generation is None else {**files, GENERATION_NAME: generation}


def _settings(files: dict[str, bytes], source: Path) -> dict[str, Any]:
    """The base's ``tokenizer_config.json``."""
    if TOKENIZER_CONFIG_NAME not in files:
        return {}
    try:
        content: dict[str, Any] = json.loads(files[TOKENIZER_CONFIG_NAME].decode("utf-8-sig"))
    except ValueError as error:
        raise BaseModelError(f"{source / TOKENIZER_CONFIG_NAME} can't be read: {error}") from None
    return content


def _generation(source: Path, config: Any, text: AdapterText, base: BaseText) -> bytes | None:
    """``generation_config.json`` with every token that ends an answer; None where config.json has them."""
    found = read_generation(source, config)
    ends = list(dict.fromkeys((*_end_of(text, base), *_end_of(AdapterText(), base), *found.eos_ids)))
    if not found.content and tuple(ends) == found.eos_ids:
        return None
    others: dict[str, Any] = dict(found.content)
    if not others:
        text_config = config.get_text_config()
        others = {key: getattr(text_config, key, None) for key in ("bos_token_id", "pad_token_id")}
        others = {key: value for key, value in others.items() if value is not None}
    return to_json({**others, "eos_token_id": ends[0] if len(ends) == 1 else ends or None})


def _end_of(text: AdapterText, base: BaseText) -> tuple[int, ...]:
    """The end token of a tokenizer, if it has one."""
    end = (base.special if text.special is None else text.special).get("eos_token")
    if end is None:
        return ()
    found = Tokenizer.from_str(
        base.load() if text.tokenizer is None else text.tokenizer.to_json(base)
    ).token_to_id(end)
    return () if found is None else (found,)
