"""Kinds of adapter that change no weight: virtual tokens, which come before the tokens of every text.

PEFT saves what its encoder makes of the trained parameters. So three forms are left: a table of embeddings, a
table times the prompt of a task, and keys and values for the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manylora.adapters.format.config.reader import ConfigReader, integer_of
from manylora.adapters.format.config.support import OPTIONS, Option, Treatment
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.files import classifies, enum_name

_SERVED, _NO_EFFECT = Treatment.SERVED, Treatment.NO_EFFECT
_IN_CACHE = ("PREFIX_TUNING", "CARTRIDGE")
_START = "what the table began with"
_ENCODER = "of the encoder that was trained: its results are what is saved"

_SHARED = (
    "peft_type",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "auto_mapping",
)
_COMMON: tuple[Option, ...] = (
    *(option for option in OPTIONS["IA3"] if option.key in _SHARED),
    Option("task_type", _SERVED, "CAUSAL_LM, or SEQ_CLS to classify; PEFT puts them before no other texts"),
    Option("num_virtual_tokens", _SERVED, "they count in the context and its memory, not in usage"),
    Option("token_dim", _SERVED, "compared with the base; of a prefix the width of all its key heads"),
    Option("num_transformer_submodules", _SERVED, "1 or null: of a decoder"),
    Option("num_attention_heads", _SERVED, "of a prefix: the key heads, compared with the base"),
    Option("num_layers", _SERVED, "of a prefix: compared with the base"),
    Option(
        "modules_to_save",
        _SERVED,
        "of an adapter that classifies its head (score or classifier); other modules are refused",
    ),
)
_TABLE: tuple[Option, ...] = (
    Option("prompt_tuning_init", _NO_EFFECT, _START),
    Option("prompt_tuning_init_text", _NO_EFFECT, _START),
    Option("tokenizer_name_or_path", _NO_EFFECT, "read only to begin the table with a text"),
    Option("tokenizer_kwargs", _NO_EFFECT, "read only to begin the table with a text"),
)

SOFT_PROMPT_OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "PROMPT_TUNING": (*_COMMON, *_TABLE),
    "P_TUNING": (
        *_COMMON,
        Option("encoder_reparameterization_type", _NO_EFFECT, _ENCODER),
        Option("encoder_hidden_size", _NO_EFFECT, _ENCODER),
        Option("encoder_num_layers", _NO_EFFECT, _ENCODER),
        Option("encoder_dropout", _NO_EFFECT, _ENCODER),
    ),
    "CPT": (
        *_COMMON,
        Option("cpt_token_ids", _SERVED, "as many as virtual tokens; the table holds their embeddings"),
        Option("cpt_mask", _NO_EFFECT, "training only"),
        Option("cpt_tokens_type_mask", _NO_EFFECT, "training only"),
        Option("opt_weighted_loss_type", _NO_EFFECT, "training only"),
        Option("opt_loss_decay_factor", _NO_EFFECT, "training only"),
        Option("opt_projection_epsilon", _NO_EFFECT, "training only: the table is saved as projected"),
        Option("opt_projection_format_epsilon", _NO_EFFECT, "training only: the table is saved as projected"),
        _TABLE[2],
    ),
    "MULTITASK_PROMPT_TUNING": (
        *_COMMON,
        *_TABLE,
        Option("prompt_tuning_init_state_dict_path", _NO_EFFECT, _START),
        Option("prompt_tuning_init_task", _NO_EFFECT, _START),
        Option("num_ranks", _SERVED, "of the prompt of the task, which the table is multiplied with"),
        Option("num_tasks", _SERVED, "1: with more a request would have to name its task"),
    ),
    "PREFIX_TUNING": (
        *_COMMON,
        Option("init_weights", _NO_EFFECT, "training only"),
        Option("encoder_hidden_size", _NO_EFFECT, _ENCODER),
        Option("prefix_projection", _NO_EFFECT, _ENCODER),
    ),
    "CARTRIDGE": (*_COMMON, Option("num_frozen_tokens", _NO_EFFECT, "training only")),
}


@dataclass(frozen=True, slots=True)
class SoftPromptConfig:
    """What a config says about the virtual tokens; None where it leaves a size to the base."""

    tokens: int  # virtual ones
    in_cache: bool  # they are keys and values, not embeddings
    ranks: int | None  # of the task's prompt, of MULTITASK_PROMPT_TUNING
    width: int | None
    heads: int | None
    layers: int | None


def parse_soft_prompt(kind: str, config: Mapping[str, Any], faults: Faults) -> SoftPromptConfig | None:
    """What an adapter of a kind of :data:`SOFT_PROMPT_OPTIONS` says; None for other kinds."""
    if kind not in SOFT_PROMPT_OPTIONS:
        return None
    reader = ConfigReader(config, faults)
    _check_form(kind, config, faults)
    ranks = config.get("num_ranks")
    return SoftPromptConfig(
        tokens=reader.rank("num_virtual_tokens", _stated_tokens(kind, config)),
        in_cache=kind in _IN_CACHE,
        ranks=reader.rank("num_ranks", 1 if ranks is None else ranks)
        if kind == "MULTITASK_PROMPT_TUNING"
        else None,
        width=_size("token_dim", config, reader),
        heads=_size("num_attention_heads", config, reader) if kind in _IN_CACHE else None,
        layers=_size("num_layers", config, reader) if kind in _IN_CACHE else None,
    )


def virtual_tokens(config: Mapping[str, Any]) -> int:
    """How many virtual tokens an adapter has whose config has been checked."""
    kind = enum_name(config.get("peft_type"))
    if not isinstance(kind, str) or kind not in SOFT_PROMPT_OPTIONS:
        return 0
    return integer_of(_stated_tokens(kind, config)) or 0


def _stated_tokens(kind: str, config: Mapping[str, Any]) -> object:
    """The number as written; of CPT that of its tokens, as in PEFT."""
    if kind != "CPT":
        return config.get("num_virtual_tokens")
    ids = config.get("cpt_token_ids")
    return 1 if ids is None else len(ids) if isinstance(ids, list) else None


def _size(key: str, config: Mapping[str, Any], reader: ConfigReader) -> int | None:
    value = config.get(key)
    return None if value is None else reader.rank(key, value)


def _check_form(kind: str, config: Mapping[str, Any], faults: Faults) -> None:
    """What PEFT itself has no decoder for, or no meaning without more than a request says."""
    if not (classifies(config) or enum_name(config.get("task_type")) == "CAUSAL_LM"):
        faults.add(
            "task_type is missing: PEFT puts virtual tokens before texts of CAUSAL_LM and SEQ_CLS only"
        )
    if kind == "CPT" and classifies(config):
        faults.add("CPT is for task_type CAUSAL_LM only")
    for key, said in (
        ("num_transformer_submodules", "the base is a decoder"),
        ("num_tasks", "a request can't name its task; save an adapter for each"),
    ):
        value = config.get(key)
        if value is not None and integer_of(value) != 1:
            faults.add(f"{key}={shown(value)} is not served: only 1 is, {said}")
    stated, ids = config.get("num_virtual_tokens"), _stated_tokens(kind, config)
    if kind == "CPT" and stated is not None and integer_of(stated) != ids:
        faults.add(f"num_virtual_tokens={shown(stated)}, but cpt_token_ids names {shown(ids)} tokens")
