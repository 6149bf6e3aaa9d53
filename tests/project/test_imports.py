"""The rules of who may import whom, in pyproject.toml: the tool that checks them sees what breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CONTRACTS = {
    "adapters": "What an adapter is never imports how it is served",
    "kernels": "Kernels know tensors, blocks and offsets, not adapters",
    "server": "Layers of the server, the highest first",
    "inside adapters": "Layers of the adapters, the highest first",
    "public": "No room imports the public names, which are made of the rooms",
    "circles": "No circles: between rooms, and between the parts of a room",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its rules, with folders in place of the links."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        ROOT / "manylora", root / "manylora", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy2(ROOT / "pyproject.toml", root)
    return root


def lint(root: Path) -> str:
    """What the linter says of the package under ``root``, with lines and paths in one piece."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("adapters.errors", "manylora.server.errors", "adapters"),
        ("server.kernels.inputs", "manylora.adapters.errors", "kernels"),
        ("server.kernels.inputs", "manylora.server.engine.sequence", "server"),
        ("server.kernels.inputs", "manylora.server.api.app", "server"),
        ("server.kernels.inputs", "manylora.server.model.pages.pool", "server"),
        ("server.model.pages.pool", "manylora.server.engine.sequence", "server"),
        ("server.model.pages.pool", "manylora.server.api.app", "server"),
        ("server.engine.sequence", "manylora.server.api.app", "server"),
        ("adapters.mix", "manylora.adapters.file_locks", "inside adapters"),
        ("server.errors", "manylora", "public"),
        ("server.kernels.weights", "manylora.server.kernels.inputs", "circles"),
    ],
)
def test_a_planted_import_is_seen(copy: Path, importer: str, imported: str, contract: str) -> None:
    file = copy / "manylora" / f"{importer.replace('.', '/')}.py"
    before = file.read_text()
    assert imported not in before.split()
    file.write_text(f"{before}\nimport {imported}\n")
    said = lint(copy)
    file.write_text(before)
    assert f"{CONTRACTS[contract]} BROKEN" in said
    if contract != "circles":  # it names the folders only
        assert f"manylora.{importer} -> {imported} (l." in said


def test_every_contract_is_planted_against(copy: Path) -> None:
    rules = tomllib.loads((copy / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {rule["name"] for rule in rules} == set(CONTRACTS.values())
