"""The virtual tokens of an adapter: which tensors say what they are, and what that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.soft_prompts import SoftPromptConfig
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.weights.tensors import TensorFile

TABLE, COLUMNS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"  # as PEFT saves them


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """What stands before every text of an adapter."""

    values: torch.Tensor  # [n, width] embeddings; or with ``in_cache`` [n, layers * 2 * heads * head size]
    in_cache: bool  # keys, then values of each layer, as they lie in the KV cache

    @property
    def tokens(self) -> int:
        """Virtual tokens."""
        return self.values.shape[0]


def check_soft_prompt(config: SoftPromptConfig, base: BaseModel, most: int, faults: Faults) -> None:
    """Whether ``base`` has a place for the virtual tokens, of which there may be ``most``."""
    if config.tokens > most:
        faults.add(f"num_virtual_tokens={config.tokens} leaves no room for a text: at most {most} do")
    cache = base.cache
    if config.in_cache and cache is None:
        faults.add(
            f"this base ({base.architecture}) has no one shape of keys and values to put a prefix into"
        )
    if not config.in_cache and base.vocabulary is None:
        faults.add(f"virtual tokens are not served on the embeddings of this base ({base.architecture})")
    if config.in_cache and cache is not None:
        _compare("num_layers", config.layers, cache.layers, faults)
        _compare("num_attention_heads", config.heads, cache.heads, faults)
        _compare("token_dim", config.width, cache.heads * cache.head_size, faults)
    if not config.in_cache and base.vocabulary is not None:
        _compare("token_dim", config.width, base.vocabulary.width, faults)


def soft_prompt_shapes(config: SoftPromptConfig, base: BaseModel) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the tensors by name, on a base that has been checked."""
    if config.in_cache:
        assert base.cache is not None
        return {TABLE: (config.tokens, base.cache.elements)}
    assert base.vocabulary is not None
    width = base.vocabulary.width
    shapes: dict[str, tuple[int, ...]] = {TABLE: (config.tokens, width)}
    if config.ranks is not None:
        shapes |= {COLUMNS: (1, config.tokens, config.ranks), ROWS: (1, config.ranks, width)}
    return shapes


def read_soft_prompt(config: SoftPromptConfig | None, file: TensorFile) -> SoftPrompt | None:
    """The virtual tokens, from tensors that have been checked.

    Raises:
        ArtifactError: the product with the prompt of the task is no finite number.
    """
    if config is None:
        return None
    values = file.tensor(TABLE)
    if config.ranks is not None:
        values = values.float() * (file.tensor(COLUMNS)[0].float() @ file.tensor(ROWS)[0].float())
        if not bool(values.isfinite().all()):
            raise ArtifactError([f"{TABLE} times {COLUMNS} {ROWS} has values that are not finite"])
    return SoftPrompt(values, config.in_cache)


def _compare(key: str, said: int | None, needed: int, faults: Faults) -> None:
    if said is not None and said != needed:
        faults.add(f"{key}={said} does not fit the base, which has {needed}")
