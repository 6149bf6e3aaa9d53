"""The transformers config of a model directory, as far as it is true of the weights beside it.

Copies of models carry a ``quantization_config`` along that was undone when their weights were written, and
some have lost one. So the tensors decide what a model is made of.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from manylora.adapters.base_models.checkpoint import FLOATS, Checkpoint
from manylora.adapters.errors import BaseModelError

logger = logging.getLogger(__name__)

_COUNTS = frozenset({"I64", "U64", "BOOL", "C64"})  # never hold weights


def load_config(directory: Path) -> Any:
    """The transformers config of a model, without a quantization that its weights do not have.

    Raises:
        BaseModelError: the weights are stored in few bits, or the files can't be read.
        OSError, ValueError: transformers can't read the config.
    """
    packed = packed_tensors(Checkpoint(directory))
    if packed:
        raise BaseModelError(
            f"{directory} holds weights that are quantized already ({packed[0]}): take the original model, "
            "which nf4 or int8 can quantize when it is loaded"
        )
    return plain_config(directory)


def plain_config(directory: Path) -> Any:
    """The transformers config of a model as if its weights were plain, with a log line if it says otherwise.

    Raises:
        OSError, ValueError: transformers can't read the config.
    """
    from transformers import AutoConfig  # noqa: PLC0415  (slow to import)

    config = AutoConfig.from_pretrained(directory)
    if getattr(config, "quantization_config", None) is not None:
        logger.info("%s: its quantization_config is left out: weights are taken as stored", directory)
        del config.quantization_config
    return config


def packed_tensors(checkpoint: Checkpoint) -> list[str]:
    """The tensors that hold weights in few bits, whatever the config says of them.

    The masks that old checkpoints hold as bytes, [1, 1, n, n], are none.
    """
    return sorted(
        name
        for name, info in checkpoint.infos.items()
        if info.dtype not in FLOATS
        and info.dtype not in _COUNTS
        and len(info.shape) > 1
        and info.shape[:2] != (1, 1)
    )
