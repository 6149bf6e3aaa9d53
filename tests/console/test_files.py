"""The console's files: what is in them, where they come from, and how much of them a browser takes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from manylora.server.console.assets import AT_ONCE, KINDS, Console, modules_of
from tests.support.paths import ROOT

STATIC = ROOT / "server" / "console" / "static"
VENDOR = STATIC / "vendor"
OURS = sorted(
    path
    for path in STATIC.rglob("*")
    if path.suffix in {".js", ".css", ".html"} and VENDOR not in path.parents
)
LIBRARIES = json.loads((VENDOR / "vendor.json").read_text())["libraries"]

# Not addresses that anything is fetched from.
NAMES = {"http://www.w3.org/2000/svg"}
MARKUP_OR_CODE = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "srcdoc"),
    *("eval(", "new Function"),
)
IMPORT = re.compile(r"""(?:\bfrom|\bimport)\s*\(?\s*(['"])([^'"\s]+)\1""")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: str(library["name"]))
def test_libraries_are_what_was_pinned(library: dict[str, object]) -> None:
    files = [*library["files"], library["licence_file"]]  # type: ignore[misc]
    assert files
    for file in files:
        content = (VENDOR / file["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"], f"{file['name']}: make console-vendor"
    assert re.fullmatch(r"\d+\.\d+\.\d+", str(library["version"]))
    assert str(library["integrity"]).startswith("sha512-")
    assert library["licence"] in {"MIT", "Apache-2.0"}


def test_nothing_is_carried_that_is_not_pinned() -> None:
    pinned = {file["name"] for library in LIBRARIES for file in [*library["files"], library["licence_file"]]}
    types = {f"{Path(name).stem}.d.mts" for name in pinned if name.endswith(".mjs")}
    assert {path.name for path in VENDOR.iterdir()} == pinned | types | {"vendor.json"}


def test_no_file_names_another_server() -> None:
    for path in [*OURS, *VENDOR.glob("*.mjs"), *VENDOR.glob("*.css")]:
        text = path.read_text()
        if path.parent == VENDOR:  # comments say whose it is
            assert not re.search(r"""(from|import|url)\s*\(?\s*['"]?https?:""", text), path.name
            continue
        assert set(re.findall(r"(?:http|ws|ftp)\w*://[^\s'\"`)]+", text)) <= NAMES, path.name
        assert "//# source" not in text


def test_every_import_leads_to_a_file() -> None:
    """By a relative path: an import map would have to stand in the page, which may have nothing in it."""
    for path in [*OURS, *VENDOR.glob("*.mjs")]:
        for _, name in IMPORT.findall(path.read_text()):
            assert name.startswith("."), f"{path.name}: {name}"
            assert (path.parent / name).is_file(), f"{path.name}: {name}"


def test_modules_have_one_subject() -> None:
    assert len(OURS) > 20
    for path in OURS:
        if path.suffix == ".js":
            text = path.read_text()
            assert text.startswith("/**"), f"{path.name} does not say what it is about"
            assert len(text.splitlines()) < 200, path.name


def test_no_markup_is_made_of_text() -> None:
    """Everything is text but sanitized markdown, which one module makes; no string is run."""
    makers = {path.name for path in OURS if "dangerouslySetInnerHTML" in path.read_text()}
    assert makers == {"markdown.js"}
    for path in OURS:
        text = path.read_text()
        for word in MARKUP_OR_CODE:
            assert word not in text.replace("dangerouslySetInnerHTML", ""), f"{path.name}: {word}"


def test_the_page_has_nothing_inline() -> None:
    page = Console().page("").plain.decode()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", page)


def test_what_is_sent_is_what_lies_there() -> None:
    assets = Console().assets
    there = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.suffix in KINDS}
    assert set(assets) == there
    assert not any(name.endswith((".json", ".mts", ".html", "LICENSE")) for name in assets)
    for name, asset in assets.items():
        assert asset.plain == (STATIC / name).read_bytes()


def test_a_changed_file_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>{preloads}{root}")
    (tmp_path / "a.js").write_text("1")
    first = Console(tmp_path)
    assert Console(tmp_path).version == first.version
    assert first.page("console/").plain.decode().endswith(f"console/{first.version}")
    (tmp_path / "a.js").write_text("2")
    assert Console(tmp_path).version != first.version


def test_what_is_needed_at_once_is_named_in_the_page() -> None:
    """Each file that the frame and the first view need, so that no round of requests waits for another."""
    console = Console()
    needed = {name for first in AT_ONCE for name in modules_of(console.assets, first)}
    page = console.page("").plain.decode()
    assert {"core/main.js", "core/app.js", "views.js", "vendor/preact.mjs"} <= needed
    assert all(f'modulepreload" href="{console.version}/{name}"' in page for name in needed)
    table = (STATIC / "views.js").read_text().partition("VIEWS = [")[2]
    first_view = re.findall(r"import\('\./(.*?)'\)", table)[0]
    assert first_view in AT_ONCE
    assert not any(name.startswith(("views/server", "vendor/uplot", "vendor/marked")) for name in needed)
    assert modules_of(console.assets, "core/none.js") == []


def test_everything_together_is_small() -> None:
    """All of it, views that are not open and charts as well, is less than the first view may take."""
    console = Console()
    packed = sum(len(asset.packed) for asset in console.assets.values())
    assert packed + len(console.page("").packed) < 250_000
