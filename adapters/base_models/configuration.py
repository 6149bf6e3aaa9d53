"""The transformers config of a model directory, as far as it is true of the weights beside it.

Copies of models carry a ``quantization_config`` along that was undone when their weights were written, and
some have lost one. So the tensors decide what a model is made of.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.adapters.base_models.checkpoint import FLOATS, Checkpoint
from manylora.adapters.base_models.directory import GGUF_LINK
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown

logger = logging.getLogger(__name__)

_COUNTS = frozenset({"I64", "U64", "BOOL", "C64"})  # never hold weights
BITSANDBYTES = "bitsandbytes"
_BITSANDBYTES_PART = re.compile(
    r"\.SCB$|\.quant_state\.bitsandbytes__[a-z0-9]+$"
)  # of a layer, in each of its forms
_GROUPED = ("gptq", "awq")  # methods whose repositories are served as they are


@dataclass(frozen=True)
class PackedFormat:
    """How the weights of a model are quantized already."""

    method: str  # "gguf", "gptq", "awq" or "bitsandbytes"
    settings: Mapping[str, Any] = field(default_factory=dict)  # of GPTQ and AWQ: the ``quantization_config``


def load_config(directory: Path) -> Any:
    """The transformers config of a model, without a quantization that its weights do not have.

    Raises:
        BaseModelError: the weights are stored in few bits, or the files can't be read.
        OSError, ValueError: transformers can't read the config.
    """
    packed = packed_format(directory)
    if packed is not None:
        raise BaseModelError(
            f"{directory} holds weights that are quantized already ({packed.method}), which can be served "
            "but not trained on: take the original model, which nf4 or int8 can quantize when it is loaded"
        )
    return plain_config(directory)


def packed_format(directory: Path) -> PackedFormat | None:
    """How the weights of a model are quantized already; None: they are not.

    Raises:
        BaseModelError: in a way that nothing here can load, or the files can't be read.
    """
    if (directory / GGUF_LINK).is_symlink():
        return PackedFormat("gguf")
    checkpoint = Checkpoint(directory)
    packed = packed_tensors(checkpoint)
    if not packed:
        return None
    if any(_BITSANDBYTES_PART.search(name) for name in checkpoint.infos):
        return PackedFormat(BITSANDBYTES)
    settings = _quantization_config(directory)
    method = settings.get("quant_method")
    if method in _GROUPED:
        return PackedFormat(method, settings)
    how = f"by {shown(method)}" if method is not None else "in a way that its config.json does not name"
    raise BaseModelError(
        f"{directory} holds weights that are quantized already, {how} ({packed[0]}): take the original "
        "model, which nf4 or int8 can quantize when it is loaded"
    )


def _quantization_config(directory: Path) -> Mapping[str, Any]:
    """What ``config.json`` says of a quantization."""
    try:
        content = json.loads((directory / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{directory / 'config.json'} can't be read: {error}") from None
    settings = content.get("quantization_config") if isinstance(content, dict) else None
    return settings if isinstance(settings, dict) else {}


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
