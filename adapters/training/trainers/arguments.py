"""From the run's configuration to the arguments of TRL's and transformers' trainers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.training.config import TrainConfig

_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def common_arguments(
    config: TrainConfig, device: torch.device, dtype: torch.dtype, checkpoints: Path, *, has_eval: bool
) -> dict[str, Any]:
    """The arguments that every task's trainer takes."""
    on_gpu = device.type == "cuda"
    evals = _interval(config.eval_steps)
    is_compared = has_eval and (config.keep == "best" or config.early_stopping_patience is not None)
    arguments: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": -1 if config.max_steps is None else config.max_steps,
        "learning_rate": config.rate,
        "lr_scheduler_type": _SCHEDULERS[config.lr_scheduler],
        "warmup_steps": config.warmup,
        "optim": optimizer_name(config, device),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if has_eval else "no",
        "eval_steps": evals if has_eval else None,
        "save_strategy": "steps",
        "save_steps": _interval(config.save_steps),
        "save_total_limit": 3 if is_compared else 2,  # the best one is never removed
        "metric_for_best_model": "eval_loss" if is_compared else None,
        "greater_is_better": False if is_compared else None,
        "report_to": list(config.report_to) or "none",
        # of the arithmetic: a model that is trained in full keeps fp32 weights
        "bf16": on_gpu and (dtype == torch.bfloat16 or (config.is_full and config.dtype == "auto")),
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": True,
        "log_level": "error",
    }
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        arguments |= {"ddp_find_unused_parameters": False} | ({} if on_gpu else {"ddp_backend": "gloo"})
    return arguments


def optimizer_name(config: TrainConfig, device: torch.device) -> str:
    """What "auto" stands for on ``device``; anything else as it is."""
    if config.optimizer != "auto":
        return config.optimizer
    return "paged_adamw_32bit" if device.type == "cuda" else "adamw_torch"


def _interval(value: float) -> float | int:
    """Steps as an integer; a share of all steps below 1 as it is."""
    return value if value < 1 else round(value)
