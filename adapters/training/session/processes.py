"""Which of the processes of a distributed run this one is."""

from __future__ import annotations

import os


def spreads_the_model() -> bool:
    """Whether accelerate spreads weights (FSDP) or their gradients and states (DeepSpeed) over processes."""
    return any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED"))


def is_main_process() -> bool:
    """Whether this process writes the files of the run."""
    return int(os.environ.get("RANK", "0")) == 0
