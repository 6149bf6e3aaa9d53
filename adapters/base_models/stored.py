"""A base model as its files have it: modules, shapes and fingerprint, without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.checkpoint import Checkpoint
from manylora.adapters.base_models.configuration import packed_tensors, plain_config
from manylora.adapters.base_models.layers import describe_cache, describe_vocabulary, target_of
from manylora.adapters.base_models.norms import norms_of
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.conventions import BaseText

_SAMPLE = 4096  # elements of each tensor that enter the fingerprint


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of a model's architecture and weights, from a regular sample of each tensor.

    Sampled in bfloat16, so that a model has one fingerprint whatever dtype it is served in.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLE)
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(flat[::step].bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()


class StoredModel(Mapping[str, torch.Tensor]):
    """The tensors of a model's ``state_dict`` as its files have them, read one by one.

    ``skeleton`` is the model without weights, on the meta device; ``checkpoint`` its files.
    """

    def __init__(self, directory: Path) -> None:
        """Look at the model in ``directory``.

        Raises:
            BaseModelError: it is not a causal language model, or its files can't be read.
        """
        self.directory = directory
        self.checkpoint = Checkpoint(directory)
        try:
            self.config: Any = plain_config(directory)
            with torch.device("meta"):
                self.skeleton: Any = AutoModelForCausalLM.from_config(self.config)
        except Exception as error:  # the libraries raise whatever their parts do: there is no common base
            raise BaseModelError(f"{directory} is not a causal language model: {error}") from error
        self.quantized = bool(packed_tensors(self.checkpoint))  # the files have weights in few bits
        self._file_name = _names_in_files(self.skeleton, self.checkpoint)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.checkpoint[self.stored_name(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_name)

    def __len__(self) -> int:
        return len(self._file_name)

    def file_name(self, name: str) -> str | None:
        """Under which name the files have a tensor, if they do and the model has one of that name."""
        return self._file_name.get(name)

    def stored_name(self, name: str) -> str:
        """Under which name the files have the tensor: its own, that of the one it is tied to, or an old one.

        Raises:
            BaseModelError: they have no such tensor.
        """
        stored = self._file_name[name]
        if stored is None:
            raise BaseModelError(
                f"{self.directory} has no tensor {name!r}: transformers fuses or splits its weights on "
                "loading; load it there, save_pretrained it, and use that copy"
            )
        return stored

    def describe(self, name: str) -> BaseModel:
        """What adapters are validated against. Every linear layer but the output head counts as adaptable."""
        head = self.skeleton.get_output_embeddings()
        leaves = {n: m for n, m in self.skeleton.named_modules() if n and not list(m.children())}
        linears = {n: m for n, m in leaves.items() if isinstance(m, nn.Linear | Conv1D) and m is not head}
        norms = norms_of(self.skeleton)
        return BaseModel(
            name=name,
            architecture=type(self.skeleton).__name__,
            model_type=self.config.model_type,
            fingerprint=fingerprint(self),
            modules={n: target_of(n, m) for n, m in linears.items()},
            others=frozenset(leaves) - linears.keys(),
            vocabulary=describe_vocabulary(self.skeleton),
            cache=describe_cache(self.config),
            text=self.text(),
            norms={n: target_of(n, m) for n, m in norms.items()},
        )

    def text(self) -> BaseText:
        """The model's tokenizer and template.

        Raises:
            BaseModelError: transformers can't read them.
        """
        try:
            return ChatTokenizer(AutoTokenizer.from_pretrained(self.directory)).base_text()
        except Exception as error:  # the libraries raise whatever their parts do: there is no common base
            raise BaseModelError(f"the tokenizer in {self.directory} can't be used: {error}") from error


def _names_in_files(skeleton: Any, checkpoint: Checkpoint) -> dict[str, str | None]:
    """For each tensor of the state dict the name that the files have it under, if they do."""
    state = skeleton.state_dict()
    renamed = _renamed(skeleton, checkpoint, state)
    parameters = dict(skeleton.named_parameters(remove_duplicate=False))
    tied: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        tied.setdefault(id(parameter), []).append(name)
    found: dict[str, str | None] = {}
    for name, tensor in state.items():
        same = [name, *tied.get(id(parameters.get(name)), ())]
        names = (n if n in checkpoint else renamed.get(n) for n in same)
        fitting = (n for n in names if n and checkpoint.infos[n].shape == tuple(tensor.shape))
        found[name] = next(fitting, None)
    return found


def _renamed(skeleton: Any, checkpoint: Checkpoint, state: Mapping[str, Any]) -> dict[str, str]:
    """What transformers calls the tensors of the files once they are loaded, where it only renames them.

    Those of GPT-2 have no ``transformer.``, GPT-NeoX's output head is ``embed_out``.
    """
    rules = [rule for rule in get_model_conversion_mapping(skeleton) if isinstance(rule, WeightRenaming)]
    prefix = skeleton.base_model_prefix
    return {rename_source_key(name, rules, [], prefix, state)[0]: name for name in checkpoint}
