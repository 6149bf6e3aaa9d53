"""A base model by its config alone: modules and shapes, without weights, which need not even be there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.catalog import HUB_ID, resolve_model
from manylora.adapters.base_models.configuration import plain_config
from manylora.adapters.base_models.layers import (
    describe_cache,
    describe_heads,
    describe_vocabulary,
    experts_of,
    target_of,
)
from manylora.adapters.base_models.norms import norms_of
from manylora.adapters.base_models.packaged import PACKAGED
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.experts import SERVED
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.conventions import BaseText

if TYPE_CHECKING:
    from rich.progress import Progress

_CONFIG = "config.json"
_SMALL_FILES = [
    _CONFIG, "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "vocab.*", "merges.txt",
]  # fmt: skip


def skeleton_of(directory: Path) -> tuple[Any, Any]:
    """The transformers config of a model, and the model on the meta device.

    Raises:
        BaseModelError: it is not a causal language model.
    """
    try:
        config = plain_config(directory)
        with torch.device("meta"):
            return config, AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the libraries raise whatever their parts do: there is no common base
        raise BaseModelError(f"{directory} is not a causal language model: {error}") from error


def describe_skeleton(
    skeleton: Any, config: Any, *, name: str, fingerprint: str, text: BaseText | None
) -> BaseModel:
    """What adapters are validated against. Every linear layer but the output head counts as adaptable."""
    head = skeleton.get_output_embeddings()
    leaves = {n: m for n, m in skeleton.named_modules() if n and not list(m.children())}
    linears = {n: m for n, m in leaves.items() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    norms = norms_of(skeleton)
    return BaseModel(
        name=name,
        architecture=type(skeleton).__name__,
        model_type=config.model_type,
        fingerprint=fingerprint,
        modules={n: target_of(n, m) for n, m in linears.items()},
        others=frozenset(leaves) - linears.keys(),
        vocabulary=describe_vocabulary(skeleton),
        text=text,
        cache=describe_cache(config),
        norms={n: target_of(n, m) for n, m in norms.items()},
        heads=describe_heads(config),
        experts={stack.name: stack for stack in experts_of(skeleton) if config.model_type in SERVED},
    )


class OutlinedModel:
    """A model whose weights are not looked at."""

    def __init__(self, directory: Path, name: str) -> None:
        """Look at the config and the tokenizer in ``directory``.

        Raises:
            BaseModelError: it is not a causal language model.
        """
        config, self.skeleton = skeleton_of(directory)
        self.base = describe_skeleton(self.skeleton, config, name=name, fingerprint="", text=_text(directory))

    @property
    def parameters(self) -> int:
        """Numbers that the model consists of; tied tables count once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())


def resolve_outline(name: str, data_dir: Path, progress: Progress | None = None) -> Path:
    """A directory with a model's config and tokenizer; of a model on the Hub nothing else is fetched.

    Raises:
        BaseModelError: there is no such model, or it can't be fetched.
    """
    directory = Path(name).expanduser()
    if name not in PACKAGED and (directory / _CONFIG).is_file():
        return directory.resolve()
    if name in PACKAGED or directory.exists() or not HUB_ID.fullmatch(name):
        return resolve_model(name, data_dir, progress)
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow to import)

    try:
        return Path(snapshot_download(name, allow_patterns=_SMALL_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # of whichever HTTP library the client is built on
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BaseModelError(
            f"{name}: no such directory, and the Hub has none or can't be reached: {reason}"
        ) from None


def _text(directory: Path) -> BaseText | None:
    """The tokenizer and template; None where there are none that can be read."""
    try:
        return ChatTokenizer(AutoTokenizer.from_pretrained(directory)).base_text()
    except Exception:  # the libraries raise whatever their parts do: there is no common base
        return None
