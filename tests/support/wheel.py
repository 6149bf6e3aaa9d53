"""An environment with the wheel of this repository in it, and nothing else but what the wheel asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

SOURCES = ("manylora", "adapters", "server", "pyproject.toml", "README.md", "LICENSE")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


@dataclass(frozen=True)
class Environment:
    """A virtual environment made from the wheel."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        (found,) = self.directory.glob("lib/python3*/site-packages")
        return found

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables for its processes: nothing of this repository is on their path."""
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def install(self, *arguments: str) -> None:
        """Run ``pip install`` for it."""
        run(*_PIP, "--python", str(self.python), "install", "--quiet", *arguments)

    def run(self, program: str, *arguments: str) -> str:
        """What the Python ``program`` prints."""
        return run(str(self.python), "-c", program, *arguments, cwd=self.directory, env=self.variables)

    def top_level_names(self) -> set[str]:
        """Names in site-packages, without what ``python -m venv`` and our path file put there."""
        return {path.name for path in self.site_packages.iterdir()} - {"dependencies.pth", "__pycache__"}


def build_wheel(into: Path) -> Path:
    """Build the wheel from a copy of the sources, so that nothing of an earlier build gets into it.

    Raises:
        AssertionError: pip failed; the message is what it printed.
    """
    copy = into / "sources"
    copy.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "built")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(source, copy / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(into))
    run(*_PIP, "wheel", *options, str(copy))
    (wheel,) = into.glob("*.whl")
    return wheel


def make_environment(wheel: Path, directory: Path) -> Environment:
    """Install ``wheel`` into a new environment that sees the dependencies it declares, and no other package.

    Dependencies are links into the environment that runs the tests, which has the locked versions: torch
    alone would take minutes to install again. They lie outside of the new environment, behind a path file,
    so that pip never touches them.
    """
    environment = Environment(directory / "environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(environment.directory))
    environment.install("--no-deps", "--no-index", str(wheel))
    dependencies = directory / "dependencies"
    dependencies.mkdir()
    for distribution in required_by(Requirement("manylora"), set()):
        _link(distribution, dependencies)
    (environment.site_packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return environment


def required_by(requirement: Requirement, seen: set[str]) -> Iterator[metadata.Distribution]:
    """Every installed distribution that ``requirement`` needs here, itself left out if it is manylora."""
    name = canonicalize_name(requirement.name)
    distribution = metadata.distribution(name)
    if name not in seen and name != "manylora":
        yield distribution
    wanted = {f"{name}[{extra}]" for extra in requirement.extras} | {name}
    if wanted <= seen:
        return
    seen |= wanted
    for line in distribution.requires or ():
        needed = Requirement(line)
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            yield from required_by(needed, seen)


def _link(distribution: metadata.Distribution, directory: Path) -> None:
    """Link the top-level files and folders of ``distribution`` into ``directory``."""
    for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(Path(str(distribution.locate_file(name))))


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What ``command`` prints.

    Raises:
        AssertionError: it failed; the message is all that it printed.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
