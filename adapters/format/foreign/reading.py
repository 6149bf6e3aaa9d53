"""Reading an adapter of this machine, whoever wrote it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manylora.adapters.disk import disk_fault
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.files import KEPT_NAMES, WEIGHTS_NAME, kept_in, place_in
from manylora.adapters.format.foreign.change import Conversion
from manylora.adapters.format.foreign.convert import convert
from manylora.adapters.format.foreign.file_names import may_be_weights


@contextmanager
def in_pefts_form(path: Path, base: BaseModel, limits: Limits) -> Iterator[tuple[Path, Conversion | None]]:
    """A directory with the adapter at ``path`` as PEFT writes it, and what was converted to get there.

    ``path`` is a directory, or the one file of another tool. The directory is ``path`` itself where nothing
    has to be converted, else one that is gone afterwards.

    Raises:
        ArtifactError: it can't be converted.
        StoreError: the disk refused.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="manylora-") as name:
            temporary = Path(name)
            single = path.is_file() and may_be_weights(path.name)
            directory = temporary / "given" if single else path
            if single:
                _link(path, directory)
            converted = convert(directory, base, limits)
            if converted is None:
                yield directory, None
                return
            result = temporary / "converted"
            result.mkdir()
            converted.write(result)
            _copy_texts(directory, result)
            yield result, converted.conversion
    except OSError as error:
        raise disk_fault(f"the adapter at {path} can't be converted", error) from None


def read_any(path: Path, base: BaseModel, limits: Limits) -> Artifact:
    """The checked adapter at ``path``, whoever wrote it.

    Raises:
        SourceMissing, ArtifactError, StoreError: see :func:`read_artifact` and :func:`in_pefts_form`.
    """
    with in_pefts_form(path, base, limits) as (directory, _):
        return read_artifact(directory, base, limits)


def _link(path: Path, directory: Path) -> None:
    """A directory with that file alone, and what of PEFT's lies beside it but for its weights."""
    directory.mkdir()
    (directory / path.name).symlink_to(path.resolve())
    for name in KEPT_NAMES:
        if name != WEIGHTS_NAME and (path.parent / name).is_file() and not path.name.endswith(".gguf"):
            place_in(directory, name).symlink_to((path.parent / name).resolve())


def _copy_texts(source: Path, target: Path) -> None:
    for name in kept_in(source):
        if not (target / name).exists():
            shutil.copyfile(source / name, place_in(target, name))
