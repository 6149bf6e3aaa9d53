"""Random adapters in PEFT's format for a base of the Llama family: all that speed needs, nothing learned.

python -m bench.adapters --base DIR --out DIR --count 32 --rank 16
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DELTA = 0.02  # size of an adapter's part of a layer's output, next to inputs of size 1


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One target of an adapter: ``y = W x`` with ``W`` [out_features, in_features]."""

    name: str  # in the Hugging Face module tree
    in_features: int
    out_features: int


def linear_layers(base: Path) -> list[LinearLayer]:
    """The seven linear layers of every block, from the base's ``config.json``."""
    config = json.loads((base / "config.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, key = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    shapes = {
        "self_attn.q_proj": (hidden, query),
        "self_attn.k_proj": (hidden, key),
        "self_attn.v_proj": (hidden, key),
        "self_attn.o_proj": (query, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    blocks = range(config["num_hidden_layers"])
    return [LinearLayer(f"model.layers.{i}.{name}", *shape) for i in blocks for name, shape in shapes.items()]


def write_adapter(base: Path, directory: Path, *, rank: int, dtype: torch.dtype, seed: int) -> Path:
    """Write one adapter of ``rank`` on every linear layer, alpha twice the rank, A and B random."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in linear_layers(base):
        a = torch.randn(rank, layer.in_features, generator=rng) * layer.in_features**-0.5
        b = torch.randn(layer.out_features, rank, generator=rng) * (DELTA * rank**-0.5)
        prefix = f"base_model.model.{layer.name}"
        tensors[f"{prefix}.lora_A.weight"] = a.to(dtype)
        tensors[f"{prefix}.lora_B.weight"] = b.to(dtype)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(_config(base, rank), indent=2) + "\n")
    return directory


def _config(base: Path, rank: int) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted({layer.name.rpartition(".")[2] for layer in linear_layers(base)}),
    }


def write_adapters(base: Path, out: Path, *, count: int, ranks: Sequence[int], dtype: str) -> list[Path]:
    """``count`` adapters, ranks in turn, under ``out``, as ``a<number>-r<rank>``; those there are kept."""
    paths: list[Path] = []
    for number in range(count):
        rank = ranks[number % len(ranks)]
        path = out / f"{base.resolve().name}-{dtype}" / f"a{number}-r{rank}"
        if not (path / "adapter_config.json").exists():
            write_adapter(base, path, rank=rank, dtype=DTYPES[dtype], seed=number)
        paths.append(path)
    return paths


def main(
    base: Annotated[Path, typer.Option(help="Base model directory.")],
    out: Annotated[Path, typer.Option(help="Where the adapters go.")],
    count: Annotated[int, typer.Option(min=1)] = 32,
    rank: Annotated[list[int] | None, typer.Option(help="Repeatable: taken in turn. Default: 16.")] = None,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
) -> None:
    """Write random adapters and print their directories."""
    for path in write_adapters(base, out, count=count, ranks=rank if rank else [16], dtype=dtype):
        print(path)


if __name__ == "__main__":
    typer.run(main)
