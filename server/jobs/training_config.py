"""From what a job asks for to the trainer's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from manylora.adapters.training.config import TrainConfig
from manylora.server.jobs.folder import TRAINING, VALIDATION, JobFolder
from manylora.server.jobs.hyperparameters import RATE

# Names of the object ``lora`` of a job, and of the trainer.
LORA_OPTIONS: Final[Mapping[str, str]] = {
    "r": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "init": "init",
    "quantization": "quantization",
}
# Fields of a job itself, and of the trainer.
RUN_OPTIONS: Final[Mapping[str, str]] = {
    "early_stopping_patience": "early_stopping_patience",
    "samples": "sample_rows",
    "sample_tokens": "sample_tokens",
}
Task = Literal["sft", "dpo", "classification", "embedding"]
MAX_LENGTH: Final = 4096  # tokens of a row, where the model reads as many


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs are trained: the base, and what of it the machine decides."""

    model: str  # its directory
    data_dir: Path
    max_length: int = MAX_LENGTH  # that the base reads
    dtype: Literal["auto", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"


def place_of(
    model: str,
    data_dir: Path,
    dtype: Literal["auto", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Place:
    """The place where jobs on the base in ``model`` are trained.

    Raises:
        BaseModelError: it can't be trained on.
    """
    from manylora.adapters.training.model.base import find_base  # noqa: PLC0415  (slow)

    reads = find_base(model).max_length
    return Place(model, data_dir, MAX_LENGTH if reads is None else reads, dtype, device)


def task_of(asked: Mapping[str, Any]) -> Task:
    """What a job trains, as the trainer calls it."""
    if asked.get("task") is not None:
        task: Task = asked["task"]
        return task
    return "dpo" if asked["method"] == "dpo" else "sft"


def train_config(
    asked: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    folder: JobFolder,
    place: Place,
    *,
    validation: bool,
    init_adapter: Path | None = None,
) -> TrainConfig:
    """The configuration of a job's run.

    Args:
        asked: what is recorded of the request.
        hyperparameters: without "auto".
        folder: the job's.
        place: where it runs.
        validation: whether it has a validation file. Without one nothing is held out.
        init_adapter: the directory of the adapter that it goes on from.

    Raises:
        pydantic.ValidationError: options are out of range or do not go together.
    """
    options: dict[str, Any] = {LORA_OPTIONS[name]: value for name, value in asked["lora"].items()}
    options |= {option: asked[name] for name, option in RUN_OPTIONS.items() if asked.get(name) is not None}
    options |= {"eval_path": folder.data(VALIDATION)} if validation else {"eval_split": 0.0}
    if asked["method"] == "dpo":
        options["dpo_beta"] = hyperparameters["beta"]
    return TrainConfig(
        base_model=place.model,
        dtype=place.dtype,
        device=place.device,
        train_path=folder.data(TRAINING),
        output_dir=folder.run,
        name=asked["name"],
        task=task_of(asked),
        max_length=min(MAX_LENGTH, place.max_length),
        num_train_epochs=hyperparameters["n_epochs"],
        batch_size=hyperparameters["batch_size"],
        learning_rate=RATE * hyperparameters["learning_rate_multiplier"],
        seed=asked["seed"],
        logging_steps=1,
        init_adapter=None if init_adapter is None else str(init_adapter),
        **options,
    )
