"""The base of a run, with a chat template of the run's own where its configuration names one."""

from __future__ import annotations

from pathlib import Path

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.model.base import Base, find_base

MAX_CHARS = 1 << 20


def base_of(config: TrainConfig) -> Base:
    """The base that ``config`` names, as its conversations are written.

    Raises:
        BaseModelError: there is none, or it can't be used.
        TrainingConfigError: the template can't be used.
    """
    base = find_base(config.base_model, allow_special_tokens=config.allow_special_tokens)
    if config.chat_template is not None:
        use_template(base, config.chat_template)
    return base


def use_template(base: Base, path: Path) -> None:
    """Have ``base`` render conversations with the Jinja template in ``path``, and save it with the adapter.

    Raises:
        TrainingConfigError: it can't be read, or it can't write a question.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingConfigError(f"--chat-template {path}: can't be read: {error}") from error
    if not 0 < len(text.strip()) <= len(text) <= MAX_CHARS:
        raise TrainingConfigError(f"--chat-template {path}: is empty, or has over {MAX_CHARS} characters")
    base.tokenizer.chat_template = text
    if getattr(base.tokenizer, "response_template", None) is not None:
        base.tokenizer.response_template = None  # of answers by the base's template
    try:
        asked = base.template.prompt_ids([{"role": "user", "content": "Hello"}], ())
    except ChatTemplateError as error:
        raise TrainingConfigError(f"--chat-template {path}: {error}") from error
    if not asked:
        raise TrainingConfigError(f"--chat-template {path}: writes nothing for a question")
