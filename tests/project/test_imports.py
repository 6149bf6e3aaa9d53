"""The packages form a DAG: who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FORBIDDEN = {
    "adapters": ("server",),
    "server/engine": ("manylora.server.api",),
    "server/model": ("manylora.server.engine", "manylora.server.api"),
    "server/kernels": ("adapters", "manylora.server.engine", "manylora.server.api", "manylora.server.model"),
}


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that ``path`` imports, at whatever depth of the code."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(package: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        for other in forbidden
        if name == other or name.startswith(f"{other}.")
    ]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_forbidden_import(package: str) -> None:
    assert list((ROOT / package).rglob("*.py")), "the package has moved"
    assert violations(package, FORBIDDEN[package]) == []


def test_the_test_sees_imports() -> None:
    seen = set(imports(ROOT / "adapters" / "artifact.py"))
    assert "manylora.adapters.errors.SourceMissing" in seen
    assert "torch" in set(imports(ROOT / "adapters" / "delta.py"))
    assert violations("adapters", ("manylora.adapters.errors",))
