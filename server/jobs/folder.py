"""What lies where in a job's directory, which the server and its worker share.

training_file.jsonl, validation_file.jsonl   as they were when the job was made
run/               what the trainer writes: checkpoints, metrics.jsonl, report.html, adapter/
exports/step-N/    adapters of single steps that can be asked for
lock               of whoever works on the job
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manylora.adapters.errors import SourceMissing

JOB_ID: Final = re.compile(r"ftjob-[0-9a-f]{32}")
TRAINING, VALIDATION = "training_file", "validation_file"
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The directory of one job."""

    root: Path

    @classmethod
    def of(cls, data_dir: Path, job_id: str) -> JobFolder:
        """That of the job of that id."""
        assert JOB_ID.fullmatch(job_id), "ids are made here"
        return cls(data_dir / "tuning" / job_id)

    def data(self, which: str) -> Path:
        """The rows of one of the job's files."""
        return self.root / f"{which}.jsonl"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def export(self, step: int) -> Path:
        """Where the adapter of a step is kept."""
        return self.root / "exports" / f"step-{step}"

    def exported(self) -> list[int]:
        """The steps whose adapters are kept, the earliest first."""
        found = (_STEP.fullmatch(path.name) for path in (self.root / "exports").glob("step-*"))
        return sorted(int(match.group(1)) for match in found if match is not None)

    def clear_work(self) -> None:
        """Remove what training wrote; the job's files stay."""
        for path in (self.run, self.root / "exports"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.root, ignore_errors=True)


def revision_directory(data_dir: Path, digest: str | None) -> Path | None:
    """The directory of the adapter that a job goes on from; None: it begins at the base.

    Raises:
        SourceMissing: it was deleted.
    """
    if digest is None:
        return None
    path = data_dir / "adapters" / digest
    if not path.is_dir():
        raise SourceMissing("the model that the job goes on from was deleted")
    return path
