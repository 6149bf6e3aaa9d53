"""A GGUF file that holds a whole model, checked, and its tensors by the names of the Hugging Face model.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from manylora.adapters.base_models.gguf.architectures import ARCHITECTURES, Architecture
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import FileFault, open_regular
from manylora.adapters.format.foreign.gguf.architectures import rotary_order
from manylora.adapters.format.foreign.gguf.reader import (
    PLAIN,
    GgufTensor,
    Metadata,
    read_blocks,
    read_gguf_header,
    read_tensor,
)

Texts = Literal["all", "short", "long"]
# Factors of the rotary frequencies, which the configuration takes up.
_ROPE_FACTORS: Mapping[str, Texts] = {
    "rope_freqs.weight": "all",
    "rope_factors_short.weight": "short",
    "rope_factors_long.weight": "long",
}
_MAX_HEADER = 128 << 20  # bytes; a vocabulary of 260,000 tokens with its merges takes some 15 million
_WHOLE = frozenset(
    f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "scores")
)  # arrays of metadata that are kept


class GgufModel:
    """A GGUF file of a known architecture. Its tensors are read when they are asked for, and not kept."""

    def __init__(self, path: Path) -> None:
        """Read the header of the file.

        Raises:
            BaseModelError: it is no GGUF file, is damaged, or holds something that is not read; in one line.
        """
        self.path = path
        self.name = path.name
        with self._faults(), open_regular(path) as file:
            header = read_gguf_header(file, self.name, whole=_WHOLE, max_bytes=_MAX_HEADER)
        self.metadata: Metadata = header.metadata
        self._check_kind()
        self.architecture: Architecture = self._architecture()
        self._factors = {
            texts: header.tensors[name] for name, texts in _ROPE_FACTORS.items() if name in header.tensors
        }
        self.tensors: Mapping[str, GgufTensor] = {
            self._named(name): tensor for name, tensor in header.tensors.items() if name not in _ROPE_FACTORS
        }

    @property
    def digest(self) -> str:
        """Hex digest of what a directory is made from: the header, and the rotary factors.

        Raises:
            BaseModelError: the file has become shorter.
        """
        content: list[Any] = [sorted(self.metadata.items()), sorted(self.tensors.items())]
        found = ((texts, self.rope_factors(texts)) for texts in self._factors)
        content += [(texts, factors.tolist()) for texts, factors in found if factors is not None]
        return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def quantized(self) -> bool:
        """Whether any tensor is in fewer than 16 bits."""
        return any(tensor.kind not in PLAIN for tensor in self.tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """A tensor by Hugging Face's name, its rows in Hugging Face's order: stored values, or float32.

        Raises:
            BaseModelError: the file has become shorter, or the type can't be dequantized.
        """
        with self._faults(), open_regular(self.path) as file:
            tensor = self._ordered(name, read_tensor(file, self.name, self.tensors[name]))
        offset = self.architecture.norm_offset
        return tensor.float() - offset if offset and name.endswith("norm.weight") else tensor

    def blocks(self, name: str) -> torch.Tensor:
        """The bytes [out, bytes of a row] of a quantized matrix, its rows in Hugging Face's order.

        Raises:
            BaseModelError: the file has become shorter.
        """
        tensor = self.tensors[name]
        with self._faults(), open_regular(self.path) as file:
            raw = torch.frombuffer(read_blocks(file, self.name, tensor), dtype=torch.uint8)
        return self._ordered(name, raw.view(tensor.shape[0], -1))

    def rope_factors(self, texts: Texts = "all") -> torch.Tensor | None:
        """By how much each rotary frequency is divided [hd / 2] in texts of that kind; None: not said.

        Raises:
            BaseModelError: the file has become shorter.
        """
        if texts not in self._factors:
            return None
        with self._faults(), open_regular(self.path) as file:
            return read_tensor(file, self.name, self._factors[texts])

    def value(self, key: str) -> Any:
        """An entry of the architecture's metadata; None if it is not there."""
        return self.metadata.get(f"{self.architecture.name}.{key}")

    def number(self, key: str) -> int:
        """A count of the architecture's metadata.

        Raises:
            BaseModelError: it is missing, or no positive whole number.
        """
        value = self.value(key)
        if type(value) is not int or value <= 0:
            raise self.fault(key, "not a count")
        return value

    def positive(self, key: str, otherwise: float | None = None) -> float:
        """A finite number above 0 of the architecture's metadata; ``otherwise`` if it is not there.

        Raises:
            BaseModelError: it is missing and nothing is to be taken otherwise, or it is no such number.
        """
        value = self.value(key)
        if value is None and otherwise is not None:
            return otherwise
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise self.fault(key, "not a positive number")
        return value

    def fault(self, key: str, what: str) -> BaseModelError:
        """The error that an entry of the architecture's metadata is ``what``."""
        return BaseModelError(
            f"{self.name}: {self.architecture.name}.{key} is {shown(self.value(key))}, {what}"
        )

    def _ordered(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not self.architecture.rotary_pairs:
            return tensor
        for part, key in (("q_proj", "attention.head_count"), ("k_proj", "attention.head_count_kv")):
            if f".self_attn.{part}." in name:
                heads = self.number(key)
                if len(tensor) % (2 * heads):
                    raise BaseModelError(f"{self.name}: {name} has {len(tensor)} rows for {heads} heads")
                ordered = torch.empty_like(tensor)
                ordered[rotary_order(len(tensor), heads)] = tensor
                return ordered
        return tensor

    def _check_kind(self) -> None:
        kind = self.metadata.get("general.type", "model")
        if kind != "model":
            raise BaseModelError(f"{self.name} holds no model: its general.type is {shown(kind)}")
        parts = self.metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise BaseModelError(
                f"{self.name} is one of {shown(parts)} parts: join them with llama.cpp's gguf-split --merge"
            )

    def _architecture(self) -> Architecture:
        name = self.metadata.get("general.architecture")
        found = ARCHITECTURES.get(name) if isinstance(name, str) else None
        if found is None:
            raise BaseModelError(
                f"{self.name}: architecture {shown(name)} is not read from GGUF files: "
                f"{', '.join(sorted(ARCHITECTURES))} are"
            )
        return found

    def _named(self, name: str) -> str:
        found = self.architecture.module_name(name)
        if found is None:
            raise BaseModelError(
                f"{self.name}: tensor {shown(name)} is not known to {self.architecture.name}"
            )
        return found

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FileFault as fault:
            raise BaseModelError(str(fault)) from None
