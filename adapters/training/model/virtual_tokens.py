"""What a soft prompt puts before a text: how many positions, and what it begins with."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, PeftType

_IN_THE_CACHE = (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)  # keys and values, which have no logits
_PREFIX_STD = 0.02


def virtual_tokens(model: Any) -> int:
    """Logits that ``model`` gives before that of the first token, 0 where no soft prompt is switched on."""
    if not isinstance(model, PeftModel):
        return 0
    if getattr(model.forward, "__self__", model) is model.base_model:  # so PEFT switches a soft prompt off
        return 0
    config = model.active_peft_config
    if not config.is_prompt_learning or config.peft_type in _IN_THE_CACHE:
        return 0
    return int(config.num_virtual_tokens)


def begin_near_the_base(model: Any) -> None:
    """Make what PEFT draws at random for a prefix small, so that training begins near the base.

    It draws from a normal distribution of variance 1, and such keys and values hide the text: a short run
    would be spent on getting back. A start that an option asks for is left alone.
    """
    config, encoder = model.active_peft_config, model.prompt_encoder[model.active_adapter]
    if config.init_weights is None and not config.prefix_projection:
        with torch.no_grad():
            encoder.embedding.weight.mul_(_PREFIX_STD)
