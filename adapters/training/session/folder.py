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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.errors import CheckpointError, RunExists

COMPLETE = "complete"  # a file that a checkpoint holds once everything of it is on disk
# Options that change neither the weights nor their order: a run may go on with others.
_FREE = {
    "output_dir", "name", "publish", "report_to", "sample_prompts", "sample_tokens", "logging_steps",
    "save_steps", "device", "train_path", "eval_path",
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

    def begin(self, config: TrainConfig, data_digest: str, *, resume: bool, overwrite: bool) -> Path | None:
        """Make the directory ready; the checkpoint to go on from when resuming.

        Raises:
            RunExists: there is a run, and it is neither to be resumed nor overwritten.
            CheckpointError: there is nothing to resume, or it is another run.
        """
        identity = _identity(config, data_digest)
        file = self.root / "run.json"
        if resume:
            self._check_same(file, identity)
            checkpoint = self.last_checkpoint()
            if checkpoint is None:
                raise CheckpointError(f"{self.checkpoints}: no complete checkpoint to resume from")
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
        (self.root / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
        file.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        return None

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = [path.parent for path in self.checkpoints.glob(f"checkpoint-*/{COMPLETE}")]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def _check_same(self, file: Path, identity: dict[str, str]) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise CheckpointError(f"{self.root}: holds no run to resume") from None
        changed = [key for key in identity if before.get(key) != identity[key]]
        if changed:
            raise CheckpointError(
                f"{self.root}: this run was begun with another {', '.join(sorted(changed))}; resuming "
                f"would not continue it"
            )

    def _clear(self) -> None:
        """Remove what a run writes and nothing else."""
        for name in ("adapter", ".adapter.partial", "model", ".model.partial", "checkpoints"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("metrics.jsonl", "initial.safetensors", "report.html", "curves.png", "run.json"):
            (self.root / name).unlink(missing_ok=True)


def _identity(config: TrainConfig, data_digest: str) -> dict[str, str]:
    values = config.model_dump(mode="json", exclude=_FREE)
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()} | {"data": data_digest}
