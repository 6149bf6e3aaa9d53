"""Artifacts with one thing or a few of them wrong: a field, a shape, a dtype, a name, a file cut short."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME

Tensors = dict[str, torch.Tensor]

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 4.0, 1e300, "", "4", "x", "none", "all", "all-linear", ".*", "(",
    [], [0], [1, 1], [-1], ["q_proj"], ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], [None], {},
    {"q_proj": 2}, {"lm_head": [1, 2]}, {"": [1]}, {"a": {}}, "CAUSAL_LM", "SEQ_CLS", "LORA", "IA3", "VERA",
    "PROMPT_TUNING", "CPT", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", 5, 64, [1, 2, 3],
    "q_proj", "pissa", 1 << 70, "\u00e4", "a" * 300,
]  # fmt: skip
KEYS = [
    "peft_type", "task_type", "r", "lora_alpha", "target_modules", "exclude_modules", "bias", "use_dora",
    "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
    "layers_pattern", "trainable_token_indices", "ensure_weight_tying", "alora_invocation_tokens",
    "init_lora_weights", "auto_mapping", "feedforward_modules", "save_projection", "projection_prng_key",
    "fan_in_fan_out", "base_model_name_or_path", "peft_version", "new_key", "num_virtual_tokens", "token_dim",
    "num_layers", "num_attention_heads", "num_transformer_submodules", "num_tasks", "num_ranks",
    "cpt_token_ids", "token_indices",
]  # fmt: skip
DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool,
]  # fmt: skip
ENDINGS = [
    "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_embedding_A", "weight",
    "lora_embedding_B", "base_layer.weight", "token_adapter.trainable_tokens_delta", "modules_to_save.weight",
    "bias", "original_module.weight", "token_adapter.base_layer.weight", "ia3_l", "vera_lambda_b",
    "base_layer.bias", "ln_tuning_layers.weight", "ln_tuning_layers.bias", "trainable_tokens_delta",
]  # fmt: skip
FILES = {
    "config.json": [
        b"{}",
        b"[]",
        b'{"id2label": {"0": "a"}}',
        b'{"id2label": 5}',
        b"\xff",
        b'{"num_labels": 3}',
    ],
    "tokenizer_config.json": [b"{}", b"{", b'{"chat_template": 5}', b'{"eos_token": {}}', b"[1]"],
    "tokenizer.json": [b"{}", b"null", b'{"model": {}}'],
    "chat_template.jinja": [b"{{ x", b"\xff\xfe", b"{{ messages }}"],
    "special_tokens_map.json": [b"{}", b"[]"],
}


@dataclass
class Case:
    """An artifact before it is written."""

    config: dict[str, Any]
    tensors: Tensors
    files: dict[str, bytes] = field(default_factory=dict)
    damage: list[Callable[[bytearray], bytearray]] = field(default_factory=list)  # of the weights file

    def write(self, directory: Path) -> Path:
        """Write it to ``directory``, which is made."""
        directory.mkdir()
        (directory / CONFIG_NAME).write_text(json.dumps(self.config))
        tensors = {name: tensor.clone().contiguous() for name, tensor in self.tensors.items()}
        content = bytearray(save(tensors, {"format": "pt"}))
        for change in self.damage:
            content = change(content)
        (directory / WEIGHTS_NAME).write_bytes(content)
        for name, text in self.files.items():
            (directory / name).write_bytes(text)
        return directory


def read_case(directory: Path) -> Case:
    """A valid artifact, to be mutated."""
    config = json.loads((directory / CONFIG_NAME).read_text())
    return Case(config, load_file(directory / WEIGHTS_NAME))


def mutated(cases: Mapping[str, Case], names: list[str], seed: int) -> Case:
    """One of ``cases`` with one to four changes drawn by ``seed``; ``names`` are the base's modules."""
    draw = random.Random(seed)
    chosen = cases[draw.choice(sorted(cases))]
    case = Case(dict(chosen.config), dict(chosen.tensors))
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 4])):
        draw.choice(_MUTATIONS)(case, names, draw)
    return case


def _field(case: Case, names: list[str], draw: random.Random) -> None:
    key = draw.choice(KEYS)
    if draw.random() < 0.2:
        case.config.pop(key, None)
    else:
        case.config[key] = draw.choice(VALUES)


def _combination(case: Case, names: list[str], draw: random.Random) -> None:
    """What goes together in real configs."""
    case.config |= draw.choice(
        [
            {"modules_to_save": ["embed_tokens"]},
            {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": draw.random() < 0.5},
            {"trainable_token_indices": [1, 5], "ensure_weight_tying": draw.random() < 0.5},
            {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
            {"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
            {"use_dora": True},
            {"bias": "all"},
        ]
    )


def _shape(case: Case, names: list[str], draw: random.Random) -> None:
    """More, fewer, no rows or columns, or another number of dimensions."""
    if not case.tensors:
        return
    name = draw.choice(sorted(case.tensors))
    tensor = case.tensors[name]
    shape = list(tensor.shape)
    if draw.random() < 0.15 or not shape:
        shape = draw.choice([[], [0], [1], [*shape, 1], shape[:1], shape[::-1]])
    else:
        axis = draw.randrange(len(shape))
        shape[axis] = max(0, shape[axis] + draw.choice([-64, -8, -1, 1, 2, 8, 64, 128, -shape[axis]]))
    case.tensors[name] = _resized(tensor, shape)


def _rows(case: Case, names: list[str], draw: random.Random) -> None:
    """All tables, or one, with another number of rows."""
    tables = [name for name in sorted(case.tensors) if "embed_tokens" in name or "lm_head" in name]
    change = draw.choice([-152, -24, -1, 1, 12, 32, 96])
    for name in tables if draw.random() < 0.5 else tables[:1]:
        tensor = case.tensors[name]
        if tensor.ndim == 2:
            axis = int(name.endswith("embedding_A"))
            shape = list(tensor.shape)
            shape[axis] = max(0, shape[axis] + change)
            case.tensors[name] = _resized(tensor, shape)


def _resized(tensor: torch.Tensor, shape: list[int]) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    flat = torch.ones(count, dtype=torch.float32)
    part = tensor.flatten()[:count].float()
    flat[: len(part)] = part
    return flat.view(shape).to(tensor.dtype)


def _dtype(case: Case, names: list[str], draw: random.Random) -> None:
    dtype = draw.choice(DTYPES)
    for name in sorted(case.tensors):
        if draw.random() < draw.choice([0.1, 1.0]):
            case.tensors[name] = case.tensors[name].to(dtype)


def _value(case: Case, names: list[str], draw: random.Random) -> None:
    if not case.tensors:
        return
    name = draw.choice(sorted(case.tensors))
    value = draw.choice([0.0, 1.0, float("nan"), float("inf"), 1e38, -1e38, 1e-38])
    tensor = case.tensors[name]
    if tensor.is_floating_point():
        case.tensors[name] = torch.full(tensor.shape, value, dtype=torch.float64).to(tensor.dtype)


def _name(case: Case, names: list[str], draw: random.Random) -> None:
    """A tensor that is missing, renamed, or one more of a module of the base."""
    how = draw.random()
    if how < 0.4 and case.tensors:
        del case.tensors[draw.choice(sorted(case.tensors))]
    elif how < 0.6 and case.tensors:
        name = draw.choice(sorted(case.tensors))
        case.tensors[draw.choice([f"{name}.x", name[1:], name.replace("lora_A", "lora_B")])] = case.tensors[
            name
        ]
    else:
        module = draw.choice([*names, "score", "classifier"])
        shape = [
            draw.choice([1, 2, 4, 8, 64, 96, 264, 288, 300]) for _ in range(draw.choice([1, 2, 2, 2, 3]))
        ]
        case.tensors[f"base_model.model.{module}.{draw.choice(ENDINGS)}"] = torch.ones(shape)


def _damage(case: Case, names: list[str], draw: random.Random) -> None:
    """A file cut short, or with bytes changed, mostly in the header."""
    position, byte, cut = draw.randrange(4000), draw.randrange(256), draw.random()

    def change(content: bytearray) -> bytearray:
        if cut < 0.4:
            return content[: position if cut < 0.2 else int(len(content) * cut * 2)]
        if content:
            content[position % len(content)] = byte
        return content

    case.damage.append(change)


def _file(case: Case, names: list[str], draw: random.Random) -> None:
    name = draw.choice(sorted(FILES))
    case.files[name] = draw.choice(FILES[name])


_MUTATIONS = [_field, _field, _combination, _shape, _rows, _rows, _dtype, _value, _name, _damage, _file]
