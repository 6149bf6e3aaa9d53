"""How many positions a soft prompt puts before those of the text."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, PeftType

_IN_THE_CACHE = (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)  # keys and values, which have no logits


def virtual_tokens(model: Any) -> int:
    """Logits that ``model`` gives before that of the first token, 0 where no soft prompt is switched on."""
    if not isinstance(model, PeftModel) or "forward" in vars(model):  # as PEFT switches a soft prompt off
        return 0
    config = model.active_peft_config
    if not config.is_prompt_learning or config.peft_type in _IN_THE_CACHE:
        return 0
    return int(config.num_virtual_tokens)
