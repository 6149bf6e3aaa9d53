"""A rank's part of a model, read from the files: no process ever holds more than its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manylora.adapters.base_models.configuration import packed_format, plain_config
from manylora.adapters.base_models.generation import Generation, read_generation
from manylora.adapters.base_models.stored import StoredModel, fingerprint
from manylora.adapters.errors import BaseModelError
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.model.decoders.extraction import target_modules
from manylora.server.model.decoders.families import FAMILIES
from manylora.server.model.loading.loader import LoadedModel, check_room, context_length
from manylora.server.model.loading.long_rope import settle_factors
from manylora.server.model.pages.tables import BaseTables
from manylora.server.model.parallel.parts.sharding import WHOLE, Cut, Sharding, unsupported
from manylora.server.model.parallel.parts.streamed import streamed
from manylora.server.model.parallel.setup import RankSetup
from manylora.server.model.text.tokenizer import Tokenizer

OPTION = "--tensor-parallel-size"


@dataclass(frozen=True)
class Share:
    """One rank's part of a model, as a Hugging Face model with fewer heads and inner features."""

    hf: Any
    sharding: Sharding
    max_model_len: int


def check_divisible(directory: Path, count: int, quantize: str, max_model_len: int | None) -> None:
    """Refuse a model that can't be served by ``count`` ranks, before any process is started.

    Raises:
        ConfigError: says why; or ``max_model_len`` exceeds what the model can do.
        BaseModelError: there is no model.
    """
    packed = packed_format(directory)
    stored = quantize if packed is None else packed.method
    if stored != "none":
        raise ConfigError(
            f"{OPTION} {count}: a base in few bits ({stored}) is not divided; take one in 16 or 32 bits"
        )
    config = _config(directory)
    context_length(config, max_model_len)
    reason = unsupported(config, count)
    if reason is not None:
        raise ConfigError(f"{OPTION} {count}: {reason}")


def _config(directory: Path) -> Any:
    try:
        return plain_config(directory)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{directory} is not a causal language model: {error}") from error


def load_share(setup: RankSetup) -> Share:
    """The part of the model that a rank has, on its device.

    Raises:
        ModelRefused: the files lack a tensor.
        ConfigError: the device's memory is too small, or the context that is wanted too large.
    """
    try:
        stored = StoredModel(setup.directory)
        generation = read_generation(setup.directory, stored.config)
        sharding = Sharding.of(stored.config, setup.rank, setup.count)
        model = _build(stored, sharding, generation, setup.dtype)
    except BaseModelError as error:
        raise ModelRefused(str(error)) from error
    max_len = context_length(stored.config, setup.max_model_len)
    settle_factors(model, max_len)
    check_room(model, setup.device)
    model = model.to(setup.device)
    if _is_tied(stored.skeleton):  # moving has made two tensors of what was a part of the other
        _put_head(model, _own_rows(model.get_input_embeddings().weight, sharding))
    return Share(model.eval().requires_grad_(False), sharding, max_len)


def _build(stored: StoredModel, sharding: Sharding, generation: Generation, dtype: torch.dtype) -> Any:
    tied, output = _is_tied(stored.skeleton), _output(stored.skeleton)
    cuts = _cuts(stored, sharding)
    weights = {
        name: _read(stored, name, cuts.get(name.rpartition(".")[0], WHOLE), sharding).to(dtype)
        for name in stored
        if name != output
    }
    if not tied:  # transformers knows only whole heads: what stands in is one number, seen in all places
        weights[output] = torch.zeros((), dtype=dtype).expand(
            stored.checkpoint.infos[stored.stored_name(output)].shape
        )
    model, report = type(stored.skeleton).from_pretrained(
        None,
        config=sharding.config(stored.config),
        dtype=dtype,
        state_dict=weights,
        generation_config=generation.hf(),
        output_loading_info=True,
    )
    if wrong := sorted([*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]):
        raise ModelRefused(f"{stored.directory}: {len(wrong)} weights don't fit the model ({wrong[0]})")
    if tied:
        head = _own_rows(model.get_input_embeddings().weight, sharding)
    else:
        head = stored.checkpoint.part(stored.stored_name(output), sharding.tokens, None).to(dtype)
    _put_head(model, head)
    return model


def _is_tied(model: Any) -> bool:
    """Whether embeddings and output head are one tensor."""
    tied: bool = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return tied


def _output(model: Any) -> str:
    """The name of the output head's weight."""
    head = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def _cuts(stored: StoredModel, sharding: Sharding) -> dict[str, Cut]:
    """Of every linear layer in the blocks, by its name."""
    family = FAMILIES[stored.config.model_type]
    return {
        f"model.layers.{layer}.{name}": cut
        for layer in range(stored.config.num_hidden_layers)
        for name, cut in sharding.of_names(family)
    }


def _read(stored: StoredModel, name: str, cut: Cut, sharding: Sharding) -> torch.Tensor:
    """The own part of a tensor. A bias that is added to a sum of all ranks is rank 0's, zero elsewhere."""
    where = stored.stored_name(name)
    if cut is WHOLE:
        return stored[name]
    if len(stored.checkpoint.infos[where].shape) == 1:
        bias = cut.of_outputs(stored[name])
        return bias if cut.inputs is None or sharding.rank == 0 else torch.zeros_like(bias)
    parts = [stored.checkpoint.part(where, rows, cut.inputs) for rows in cut.outputs or (None,)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _own_rows(embedding: torch.Tensor, sharding: Sharding) -> torch.Tensor:
    return embedding[sharding.tokens.start : sharding.tokens.stop]


def _put_head(model: Any, weight: torch.Tensor) -> None:
    model.get_output_embeddings().weight = nn.Parameter(weight.detach(), requires_grad=False)


class WholeModel:
    """What is known of all of a model: its weights are read from the files whenever they are asked for."""

    def __init__(self, setup: RankSetup) -> None:
        """Look at the files.

        Raises:
            ModelRefused: they can't be read.
            ConfigError: the context that is wanted is too large.
        """
        try:
            self._stored = StoredModel(setup.directory)
            config, skeleton = self._stored.config, self._stored.skeleton.eval().requires_grad_(False)
            generation = read_generation(setup.directory, config)
            self.loaded = LoadedModel(
                hf=skeleton,  # on the meta device
                quantize="none",
                tokenizer=Tokenizer.load(setup.directory, generation.eos_ids),
                dtype=setup.dtype,
                device=setup.device,
                fingerprint=fingerprint(self._stored),
                max_model_len=context_length(config, setup.max_model_len),
            )
        except BaseModelError as error:
            raise ModelRefused(str(error)) from error
        self.modules = target_modules(skeleton)
        self._dtype = setup.dtype

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of ``modules[module]``, or w [D] of a norm, on the CPU, in the dtype that is served."""
        return self._read(f"{self.modules[module].name}.weight")

    def bias(self, module: int) -> torch.Tensor | None:
        """b [out], or None where the module has none."""
        return self._read(f"{self.modules[module].name}.bias") if self.modules[module].bias else None

    def tables(self, embedding: torch.Tensor) -> BaseTables:
        """The model's embeddings, which are here, and its head, which is not."""
        head = _output(self.loaded.hf)
        return BaseTables(embedding, embedding if _is_tied(self.loaded.hf) else lambda: self._read(head))

    def original(self) -> AbstractContextManager[Any]:
        """The model itself, with one matrix in memory at a time."""
        loaded, stored = self.loaded, self._stored
        return streamed(loaded.hf, stored.config, stored, dtype=self._dtype, max_len=loaded.max_model_len)

    def _read(self, name: str) -> torch.Tensor:
        return self._stored[name].to(self._dtype)
