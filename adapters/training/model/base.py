"""The base model of a run: its directory, tokenizer and end tokens, and loading it frozen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.base_models.directory import default_data_dir
from manylora.adapters.base_models.generation import NO_GENERATION, Generation, read_generation
from manylora.adapters.base_models.packaged import PACKAGED
from manylora.adapters.errors import BaseModelError
from manylora.adapters.training.data.template import Template
from manylora.adapters.training.errors import TrainingConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Base:
    """A base model on disk with its tokenizer."""

    name: str  # what the user calls it
    directory: Path
    config: Any  # transformers' config
    tokenizer: Any  # Hugging Face fast tokenizer
    eos_ids: frozenset[int]  # tokens at which the server ends a generation
    generation: Generation = NO_GENERATION  # what its files say of generating
    allow_special_tokens: bool = False  # control tokens that are spelled in messages count as such

    @property
    def public_name(self) -> str:
        """What the adapter names as its base: for a packaged model the id that others know it by."""
        packaged = PACKAGED.get(self.name)
        return self.name if packaged is None or packaged.hub_id is None else packaged.hub_id

    @property
    def fingerprint(self) -> str | None:
        """By which the server knows the base; None where its files don't have the model's own tensors."""
        from manylora.adapters.base_models.stored import StoredModel, fingerprint  # noqa: PLC0415  (brings torch)

        try:
            return fingerprint(StoredModel(self.directory))
        except BaseModelError:
            return None

    @property
    def template(self) -> Template:
        return Template(self.tokenizer, self.eos_ids, allow_special_tokens=self.allow_special_tokens)

    @property
    def pad_id(self) -> int:
        """What rows are padded with: never seen and never learned, so any token does."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else min(self.eos_ids, default=0))

    @property
    def max_length(self) -> int | None:
        """Positions the model has, where it says so."""
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)


def find_base(name: str, progress: Any = None, *, allow_special_tokens: bool = False) -> Base:
    """Find (and fetch, where need be) a base model; reads no weights.

    Raises:
        BaseModelError: there is none, its weights are quantized, or its tokenizer can't be used.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415  (slow)

    from manylora.adapters.base_models.configuration import load_config  # noqa: PLC0415  (brings torch)

    directory = resolve_model(name, default_data_dir(), progress)
    try:
        config = load_config(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except BaseModelError:
        raise
    except Exception as error:  # the libraries raise whatever their parts do: there is no common base
        raise BaseModelError(f"{name} can't be read: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise BaseModelError(
            f"{name}: {type(tokenizer).__name__} is not a fast tokenizer (no tokenizer.json)"
        )
    own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    generation = read_generation(directory, config)
    eos_ids = frozenset((*own, *generation.eos_ids))
    return Base(name, directory, config, tokenizer, eos_ids, generation, allow_special_tokens)


def find_shape(name: str) -> Any:
    """The transformers config of a base model, without its weights (a Hub id costs one small file).

    Raises:
        BaseModelError: there is none.
    """
    from transformers import AutoConfig  # noqa: PLC0415  (slow)

    is_local = name in PACKAGED or Path(name).expanduser().exists()
    try:
        return AutoConfig.from_pretrained(resolve_model(name, default_data_dir()) if is_local else name)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{name}: no config can be read: {error}") from error


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        TrainingConfigError: cuda was asked for and there is none.
    """
    import torch  # noqa: PLC0415

    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingConfigError("--device cuda: this machine has no CUDA device that torch can use")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # of the processes of one machine


def pick_dtype(name: str, device: torch.device, *, needs_fp32: bool) -> torch.dtype:
    """The base's dtype for "auto", "bf16" or "fp32"; ``needs_fp32`` decides auto (converted inits do)."""
    import torch  # noqa: PLC0415

    if name == "fp32" or (name == "auto" and needs_fp32):
        return torch.float32
    native = device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.bfloat16 if name == "bf16" or native else torch.float32
