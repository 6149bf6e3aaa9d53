"""What the libraries tell that nobody who trains an adapter can act on. Called before they are imported."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """No word of an optional download that is not wanted, nor of what PEFT calls in transformers."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
