"""Keys of ``adapter_config.json`` that PEFT does not know: which of them can change what the weights mean.

The rule, which docs/adapters.md states for users:

1. null, false and empty values ask for nothing, under any key.
2. Keys that record how or by what an adapter was made are taken, with a note. They are listed here by name,
   or told by their form: ``..._version``, ``unsloth_...``, ``_...``.
3. Keys of other tools that can change the meaning are taken, with a note, where their value does not.
4. Any other key is refused by name: it may be an option of a PEFT that this server does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from manylora.adapters.format.faults import shown


class Judgement(StrEnum):
    """What becomes of a key that PEFT does not know."""

    INERT = "inert"  # it asks for nothing
    NOTED = "noted"  # it is left alone, and the answer says so
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that say the same sort of thing, none of which changes what the weights mean."""

    title: str  # as a sentence about one of them goes on: "'seed' is ..."
    keys: frozenset[str]


def _group(title: str, keys: str) -> Group:
    return Group(title, frozenset(keys.split()))


HARMLESS: tuple[Group, ...] = (
    _group(
        "about the base model, which is matched by modules and shapes",
        "architectures base_model base_model_class base_model_name base_model_path base_model_revision "
        "base_model_type model_id model_name model_name_or_path model_type parent_library tokenizer_class "
        "tokenizer_name",
    ),
    _group(
        "about the numbers that the weights or the base were kept in while training",
        "adapter_dtype autocast_adapter_dtype bf16 bnb_4bit_compute_dtype bnb_4bit_quant_storage "
        "bnb_4bit_quant_type bnb_4bit_use_double_quant compute_dtype dtype fp16 load_in_4bit load_in_8bit "
        "lora_dtype quant_method quantization quantization_config torch_dtype",
    ),
    _group(
        "about how it was trained",
        "epochs finetune_attention_modules finetune_language_layers finetune_mlp_modules "
        "finetune_vision_layers finetuning_type gradient_checkpointing is_trainable learning_rate "
        "lora_lr_ratio lora_plus_lr_ratio lora_target lora_target_linear lorap_emb_lr lorap_lr_ratio "
        "loraplus_lr_embedding loraplus_lr_ratio low_cpu_mem_usage lr max_length max_seq_length "
        "max_seq_len merge_weights num_epochs num_train_epochs optimizer random_state seed stage train_args "
        "trainable_params training_args training_config use_gradient_checkpointing use_loraplus warmup_ratio "
        "warmup_steps weight_decay",
    ),
    _group(
        "bookkeeping of the tool that wrote it",
        "adapter_name author authors comment created created_at created_by creator dataset datasets date "
        "description framework generated_by language library library_name license metadata name notes "
        "pipeline_tag saved_by source tags timestamp tool training_framework trainer version",
    ),
)
_FORMS = re.compile(r".+_version|unsloth_.+|_.+", re.DOTALL)

# Keys that can change the meaning, and the values with which they do not.
_LIMITED: dict[str, tuple[object, ...]] = {
    "adapter_type": ("lora",),
    "enable_lora": (True,),  # of fused projections: which of them have an adapter. PEFT 0.2, ms-swift
    "swift_type": ("lora",),
    "use_lora": (True,),
    "use_peft": (True,),
}


def judge(key: str, value: object) -> Judgement:
    """Whether a key that PEFT does not know, with that value, can change what the weights mean."""
    if is_empty(value):
        return Judgement.INERT
    if _FORMS.fullmatch(key) or any(key in group.keys for group in HARMLESS):
        return Judgement.NOTED
    if key in _LIMITED and all(_without_case(each) in _LIMITED[key] for each in _items(value)):
        return Judgement.NOTED
    return Judgement.REFUSED


def is_empty(value: object) -> bool:
    """Whether a value is null, false or empty; 0 is a number like any other."""
    return value is None or value is False or value in ("", [], {})


def note(keys: Iterable[str]) -> str:
    """The sentence that tells of keys that were left alone."""
    names = ", ".join(shown(key) for key in sorted(keys))
    return f"keys of other tools in the config, which change nothing that is served: {names}"


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _without_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value
