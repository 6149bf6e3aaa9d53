"""From trained weights to a PEFT artifact that serves on the untouched base.

Inits that change the base (olora, pissa) are converted: with W' = W - s B0 A0 the trained model computes
W' + s B A, so on W the adapter is s (B A - B0 A0), of rank 2r. Stored as the stacked factors [B, -B0] and
[A; A0] it would lose most of its precision in bf16, since B A and B0 A0 nearly cancel; so the difference is
factored anew, with factors as small as the difference itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from manylora.adapters.disk import sync_path
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.pooling import write_pooling
from manylora.adapters.format.saving import save_tensors
from manylora.adapters.training.model.lora import InitialWeights
from manylora.adapters.training.model.pairs import lora_pairs
from manylora.adapters.training.session.session import Session


def save_initial(initial: InitialWeights, path: Path) -> None:
    """Keep A and B of an init that changed the base, for the conversion at the end."""
    tensors = {
        f"{name}.{part}": t for name, pair in initial.items() for part, t in zip("AB", pair, strict=True)
    }
    save_tensors({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    sync_path(path)


def read_initial(path: Path) -> InitialWeights:
    """What :func:`save_initial` wrote."""
    tensors = load_file(path)
    names = {key.rpartition(".")[0] for key in tensors}
    return {name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names}


def round_as_saved(model: Any, session: Session) -> None:
    """Round what is saved in place to the dtype of the file: what is judged is what will be published.

    Converted adapters are left alone: their factors only come to be when they are written. Other kinds than
    LoRA are saved in fp32.
    """
    if session.config.is_full:
        matrices = list(model.parameters())
    else:
        rounded = session.config.is_lora and not session.config.converted
        matrices = [m for _, pair in lora_pairs(model) for m in (pair.a, pair.b)] if rounded else []
    for matrix in matrices:
        matrix.data = matrix.data.to(session.loader.saved_dtype).to(matrix.dtype)


def write_artifact(
    model: Any,
    session: Session,
    directory: Path,
    *,
    initial: InitialWeights | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of the adapter on ``model``.

    Args:
        model: the PEFT model, unwrapped.
        session: names the base, and the dtype of A and B; everything else (DoRA's magnitudes, modules in
            full) stays as trained. Where the adapter comes from goes into the header of the weights, by
            which a server can tell that it runs in another precision.
        directory: exists; the files appear in it and are flushed.
        initial: A and B before training where the init changed the base.
        state: the gathered state dict where the weights are spread over processes.
    """
    tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    tensors = {key: value.detach().cpu() for key, value in tensors.items()}
    dtype = session.loader.saved_dtype
    if initial:
        tensors |= _converted(model, initial, tensors)
    ends = (".lora_A.", ".lora_B.") if session.config.is_lora else ()
    rounded = {
        key: (value.to(dtype) if any(end in key for end in ends) else value).contiguous().clone()
        for key, value in tensors.items()
    }
    save_tensors(rounded, directory / WEIGHTS_NAME, session.provenance.metadata())
    config = model.peft_config["default"]
    _write_config(config, session.base.public_name, directory, converted=bool(initial))
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        sync_path(directory / name)


def write_companions(model: Any, session: Session, directory: Path) -> None:
    """Write what is read beside the weights: the tokenizer, and where there are any classes or a pooling."""
    session.base.tokenizer.save_pretrained(directory)
    if session.prepared.classes:
        model.config.save_pretrained(directory)  # names the classes
    if session.config.task == "embedding":
        write_pooling(session.pooling, model.config.get_text_config().hidden_size, directory)


def write_model(model: Any, session: Session, directory: Path) -> None:
    """Write a model that was trained in full as transformers reads it, in the dtype that it is served in.

    ``model`` takes that dtype itself; ``directory`` exists.
    """
    model.to(session.loader.saved_dtype).save_pretrained(directory)
    for path in directory.iterdir():
        sync_path(path)


def _converted(model: Any, initial: InitialWeights, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The A and B of every module for the untouched base; ``lora_pairs`` gives the names."""
    converted: dict[str, Tensor] = {}
    for name, _ in lora_pairs(model):
        keys = [f"base_model.model.{name}.lora_{part}.weight" for part in "AB"]
        a0, b0 = initial[name]
        a, b = difference(tensors[keys[0]].float(), tensors[keys[1]].float(), a0.float(), b0.float())
        converted |= dict(zip(keys, (a, b), strict=True))
    return converted


def difference(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (A [2r, in], B [out, 2r]) of ``b @ a - b0 @ a0`` with equal norms row by column.

    Args:
        a, a0: [r, in] float32.
        b, b0: [out, r] float32.
    """
    rank = a.shape[0] + a0.shape[0]
    q_out, r_out = torch.linalg.qr(torch.cat([b, -b0], dim=1).double())
    q_in, r_in = torch.linalg.qr(torch.cat([a, a0], dim=0).double().T)
    u, s, vt = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
    root = s.sqrt()
    new_a = (root[:, None] * (vt @ q_in.T)).float()
    new_b = ((q_out @ u) * root).float()
    missing = rank - s.shape[0]  # a module with fewer inputs or outputs than 2r
    return (
        torch.cat([new_a, new_a.new_zeros(missing, new_a.shape[1])]),
        torch.cat([new_b, new_b.new_zeros(new_b.shape[0], missing)], dim=1),
    )


def _write_config(config: Any, base_name: str, directory: Path, *, converted: bool) -> None:
    """The config as PEFT writes it; a converted adapter has twice the rank and alpha (the same scaling)."""
    kept = {
        key: getattr(config, key)
        for key in (
            "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "inference_mode",
            "base_model_name_or_path",
        )
        if hasattr(config, key)
    }  # fmt: skip
    config.inference_mode = True
    config.base_model_name_or_path = base_name  # PEFT puts the directory that it was loaded from
    if converted:
        factor = 2**0.5 if config.use_rslora else 2
        config.init_lora_weights = True
        config.r *= 2
        config.lora_alpha *= factor
        config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
        config.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}
    config.save_pretrained(directory)
    for key, value in kept.items():
        setattr(config, key, value)
