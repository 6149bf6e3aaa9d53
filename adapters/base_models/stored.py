"""A base model as its files have it: modules, shapes and fingerprint, without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from manylora.adapters.base_models.checkpoint import Checkpoint
from manylora.adapters.base_models.configuration import packed_tensors
from manylora.adapters.base_models.layers import experts_of
from manylora.adapters.base_models.outline import describe_skeleton, skeleton_of
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.experts import ExpertLinear, ExpertStack, older_layers
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
        self.config: Any
        self.skeleton: Any
        self.config, self.skeleton = skeleton_of(directory)
        self.quantized = bool(packed_tensors(self.checkpoint))  # the files have weights in few bits
        self._file_name = _names_in_files(self.skeleton, self.checkpoint)
        self.stacks = {stack.name: stack for stack in experts_of(self.skeleton)}
        self._expert_layers = _layers_in_files(self.config.model_type, self.stacks.values(), self.checkpoint)

    def __getitem__(self, name: str) -> torch.Tensor:
        layers = self.expert_layers(name)
        if layers:  # a matrix of an expert may be two of them, gate and up
            parts = [self.checkpoint[f"{layer.name}.weight"] for layer in layers]
            stack = layers[0].stack
            return torch.cat(parts).view(stack.experts, stack.out_features, stack.in_features)
        return self.checkpoint[self.stored_name(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_name)

    def __len__(self) -> int:
        return len(self._file_name)

    def file_name(self, name: str) -> str | None:
        """Under which name the files have a tensor, if they do and the model has one of that name."""
        return self._file_name.get(name)

    def expert_layers(self, name: str) -> tuple[ExpertLinear, ...]:
        """The layers that a parameter of all experts of a layer is in the files, if they have it so.

        Expert by expert, gate before up.
        """
        return self._expert_layers.get(name, ())

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
        return describe_skeleton(
            self.skeleton, self.config, name=name, fingerprint=fingerprint(self), text=self.text()
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


def _layers_in_files(
    model_type: str, stacks: Iterable[ExpertStack], checkpoint: Checkpoint
) -> dict[str, tuple[ExpertLinear, ...]]:
    """For each parameter of all experts of a layer the layers that the files have in its place, if all."""
    found = {}
    for stack in stacks:
        layers = tuple(older_layers(model_type, [stack]).values())
        infos = [checkpoint.infos.get(f"{layer.name}.weight") for layer in layers]
        sizes = [(layer.out_features, layer.in_features) for layer in layers]
        if layers and all(i is not None and i.shape == size for i, size in zip(infos, sizes, strict=True)):
            found[stack.name] = layers
    return found


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
