"""The original model's answers to the probe, kept from one start to the next.

To ask it takes most of a start: it computes in float32 and, several times, in 16 bits. A decoder is probed
at every start all the same. An answer that was kept can only pass what agrees with it: a decoder that does
not is judged by the model itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from manylora.server.cache_directory import cache_directory
from manylora.server.model.loading.loader import LoadedModel
from manylora.server.model.loading.reference import Reference

logger = logging.getLogger(__name__)

_ASKED = 1  # to be raised when the probe asks something else
WORTH_KEEPING = 0.5  # seconds that asking took
_KEPT = 8  # files; of a large vocabulary one has 35 MB


@dataclass(frozen=True)
class KeptReferences:
    """The files with what one model, loaded in one way, said."""

    directory: Path
    model: str  # of everything that its answers depend on

    @classmethod
    def of(cls, loaded: LoadedModel, decoder: str, dtype: torch.dtype) -> KeptReferences:
        """Those of ``loaded``, asked for a decoder of that name and rounding to ``dtype``."""
        facts: list[Any] = [
            _ASKED,
            torch.__version__,
            transformers.__version__,
            loaded.fingerprint,
            loaded.hf.config.to_json_string(use_diff=False),
            loaded.quantize,
            str(loaded.dtype),
            str(dtype),
            loaded.device.type,
            loaded.max_model_len,
            decoder,
        ]
        return cls(cache_directory("probes"), hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32])

    def read(self, asked: str) -> Reference | None:
        """What the model said to ``asked`` if that was kept and can be read."""
        path = self._path(asked)
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            return Reference(tensors["logits"], tensors["allowed"])
        except (OSError, SafetensorError, KeyError) as error:
            logger.info("%s can't be read, the model is asked again: %s", path, error)
            return None

    def keep(self, asked: str, said: Reference, seconds: float) -> None:
        """Keep what took ``seconds`` to say, unless that is nothing; a disk that refuses is no fault."""
        if seconds < WORTH_KEEPING:
            return
        path = self._path(asked)
        own = path.with_suffix(f".{os.getpid()}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_file({"logits": said.logits.contiguous(), "allowed": said.allowed.contiguous()}, own)
            own.replace(path)
            self._prune()
        except (OSError, SafetensorError) as error:
            logger.info("what the model said to the probe is not kept: %s", error)
            with suppress(OSError):
                own.unlink(missing_ok=True)

    def _path(self, asked: str) -> Path:
        return self.directory / f"{self.model}-{asked}.safetensors"

    def _prune(self) -> None:
        files = sorted(self.directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)
