"""Every dotted name of ours that a file spells, in a string or a text, is a name that can be imported."""

from __future__ import annotations

import pkgutil
import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.support.paths import ROOT

NAME = re.compile(r"\bmanylora(?:\.[A-Za-z_]\w*)+")
KINDS = (".py", ".md", ".toml", ".yaml", ".yml", ".sh", "Makefile", "Dockerfile")
ROOMS = ("manylora.server.", "manylora.adapters.")


def spelled() -> Iterator[str]:
    """The names under the two rooms in the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for file in listed.stdout.split("\0"):
        path = ROOT / file
        if file.endswith(KINDS) and path.is_file() and path.name != "test_names.py":
            yield from (name for name in NAME.findall(path.read_text()) if name.startswith(ROOMS))


ON_RAY = "manylora.server.cluster.ray."  # imports Ray, which is not everywhere


def is_written(name: str) -> bool:
    """Whether the module of a name has a file, and that the name, for what can't be imported here."""
    module, _, inside = name.removeprefix(ON_RAY).partition(".")
    file = ROOT / "server" / "cluster" / "ray" / f"{module}.py"
    return file.is_file() and f" {inside.partition('.')[0]}" in file.read_text()


def resolves(name: str) -> bool:
    if name.startswith(ON_RAY) and find_spec("ray") is None:
        return is_written(name)
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_spelled_name_resolves() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    assert [name for name in sorted(set(spelled())) if not resolves(name)] == []


def test_a_stale_name_does_not() -> None:
    assert not resolves("manylora.adapters.training.run.train.worker")
    assert resolves("manylora.adapters.training.run.worker")
    assert not resolves(f"{ON_RAY}nothing")
    assert resolves(f"{ON_RAY}application")
