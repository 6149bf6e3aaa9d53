"""Draws which package imports which, for docs/architecture.md. Run as a script it rewrites the page."""

from __future__ import annotations

import re
import tomllib

import grimp

from tests.support.paths import DOCS, ROOT

PAGE = DOCS / "architecture.md"
_SECTION = re.compile(r"(?<=<!-- packages -->\n).*?(?=<!-- /packages -->)", re.DOTALL)


def diagram() -> str:
    """The rooms of both packages, the highest layer first, each with the rooms it imports."""
    graph = grimp.build_graph("manylora", cache_dir=None)
    parts = [_package(graph, package) for package in ("manylora.server", "manylora.adapters")]
    return "\n```\n" + "\n".join(parts) + "```\n\n"


def section() -> str:
    """What the page holds between its markers."""
    match = _SECTION.search(PAGE.read_text())
    assert match is not None, "docs/architecture.md has lost the markers of its diagram"
    return match.group()


def rewrite() -> None:
    """Put the diagram as it is now into the page."""
    PAGE.write_text(_SECTION.sub(lambda _: diagram(), PAGE.read_text()))


def _package(graph: grimp.ImportGraph, package: str) -> str:
    lines = [f"{package.replace('.', '/')}\n"]
    for layer in _layers(package):
        for room in layer:
            used = sorted(
                other.removeprefix(f"{package}.")
                for other in graph.find_children(package)
                if other != f"{package}.{room}" and _imports(graph, f"{package}.{room}", other)
            )
            lines.append(f"  {room:<16} → {', '.join(used)}\n" if used else f"  {room}\n")
    return "".join(lines)


def _imports(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    sources = {importer, *graph.find_descendants(importer)}
    targets = {imported, *graph.find_descendants(imported)}
    return any(targets & graph.find_modules_directly_imported_by(module) for module in sources)


def _layers(package: str) -> list[list[str]]:
    """The layers that pyproject.toml declares for ``package``, the highest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (declared,) = [c["layers"] for c in contracts if c.get("containers") == [package]]
    return [[room.strip(" ()") for room in re.split(r"[|:]", layer)] for layer in declared]


if __name__ == "__main__":
    rewrite()
