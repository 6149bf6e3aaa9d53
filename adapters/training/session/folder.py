"""The output directory of a run: what lies where, and whose run it is.

adapter/        the finished adapter (model/ of a full fine-tuning); appears by one rename
checkpoints/    checkpoint-N to resume from
initial.safetensors  A and B before training, where the init changed the base
metrics.jsonl   one line a log, evaluation or sample, written as it happens
run.yaml        the configuration
run.json        digests of configuration and data, by which --resume knows the run
report.html, curves.png
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.errors import CheckpointError, RunExists

COMPLETE = "complete"  # a file that a checkpoint holds once everything of it is on disk
# Options that a run may go on with others of: they change no step that was taken, nor the order of rows.
_FREE = {
    "output_dir", "name", "publish", "report_to", "sample_prompts", "sample_rows", "sample_tokens",
    "logging_steps",
    "save_steps", "device", "train_path", "eval_path", "num_train_epochs", "max_steps",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Folder:
    """The output directory of one run, and the paths in it."""

    root: Path
    product: Literal["adapter", "model"] = "adapter"

    @property
    def finished(self) -> Path:
        return self.root / self.product

    @property
    def partial(self) -> Path:
        return self.root / f".{self.product}.partial"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def initial(self) -> Path:
        return self.root / "initial.safetensors"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    def begin(
        self, config: TrainConfig, digests: Mapping[str, str], *, resume: bool, overwrite: bool
    ) -> Path | None:
        """Make the directory ready; the checkpoint to go on from when resuming.

        Raises:
            RunExists: there is a run, and it is neither to be resumed nor overwritten.
            CheckpointError: there is nothing to resume, or it is another run.
        """
        identity = _identity(config, digests)
        file = self.root / "run.json"
        if resume:
            self._check_same(file, identity)
            checkpoint = self.last_checkpoint()
            if checkpoint is None:
                raise CheckpointError(f"{self.checkpoints}: no complete checkpoint to resume from")
            self._write(config, identity)
            return checkpoint
        if self.root.is_dir() and any(self.root.iterdir()):
            if not file.is_file():
                raise RunExists(
                    f"{self.root}: holds files that are not of a training run; choose another one"
                )
            if not overwrite:
                raise RunExists(
                    f"{self.root}: holds a run; --resume goes on with it, --overwrite replaces it"
                )
            self._clear()
        self.root.mkdir(parents=True, exist_ok=True)
        self._write(config, identity)
        return None

    def _write(self, config: TrainConfig, identity: dict[str, str]) -> None:
        (self.root / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
        (self.root / "run.json").write_text(json.dumps(identity, indent=1), encoding="utf-8")

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = [path.parent for path in self.checkpoints.glob(f"checkpoint-*/{COMPLETE}")]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def _check_same(self, file: Path, identity: dict[str, str]) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise CheckpointError(f"{self.root}: holds no run to resume") from None
        known = _defaults() | before  # options that are newer than the run had their default
        changed = [key for key in identity if known.get(key) != identity[key]]
        if changed:
            raise CheckpointError(
                f"{self.root}: this run was begun with another {', '.join(sorted(changed))}; resuming "
                f"would not continue it. It may go on with other {', '.join(sorted(_FREE))}"
            )

    def _clear(self) -> None:
        """Remove what a run writes and nothing else."""
        for name in ("adapter", ".adapter.partial", "model", ".model.partial", "checkpoints"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("metrics.jsonl", "initial.safetensors", "report.html", "curves.png", "run.json"):
            (self.root / name).unlink(missing_ok=True)


def _defaults() -> dict[str, str]:
    fields = TrainConfig.model_fields
    values = {key: field.default for key, field in fields.items() if not field.is_required()}
    return {key: json.dumps(value, sort_keys=True, default=str) for key, value in values.items()}


def _identity(config: TrainConfig, digests: Mapping[str, str]) -> dict[str, str]:
    values = config.model_dump(mode="json", exclude=_FREE)
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()} | dict(digests)
