"""Starting a run in several processes, through the launchers that PyTorch and accelerate bring."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.errors import TrainingError

Launcher = Literal["accelerate", "torchrun"]
_MODULES: dict[Launcher, tuple[str, ...]] = {
    "accelerate": ("accelerate.commands.launch",),
    "torchrun": ("torch.distributed.run",),
}


def launch(config: TrainConfig, launcher: Launcher, arguments: Sequence[str], options: Sequence[str]) -> None:
    """Run :mod:`manylora.adapters.training.run.worker` under ``launcher`` and wait for its end.

    Args:
        arguments: of the launcher, as ``--nproc-per-node 2``.
        options: of the worker: ``--resume`` or ``--overwrite``.

    Raises:
        TrainingError: the launcher ended with a status other than 0; what went wrong is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="manylora-") as scratch:
        file = Path(scratch) / "run.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        worker = ["-m", "manylora.adapters.training.run.worker", str(file), *options]
        command = [sys.executable, "-m", *_MODULES[launcher], *arguments, *worker]
        status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise TrainingError(f"{launcher} ended with status {status}")
