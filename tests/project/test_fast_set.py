"""``make test-fast`` leaves out files that exist, and something of every room stays in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def left_out() -> list[Path]:
    """The files that the Makefile names."""
    rule = "print-slow: ; @echo $(SLOW)"
    done = subprocess.run(
        ["make", "--silent", "--eval", rule, "print-slow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in done.stdout.split()]


def test_what_is_left_out_exists() -> None:
    files = left_out()
    assert len(set(files)) == len(files)
    assert [file for file in files if not file.is_file()] == []


def rooms() -> list[Path]:
    """Folders of tests that are named after a folder of the code."""
    return sorted(
        folder
        for package in ("adapters", "server")
        for folder in (ROOT / "tests" / package).iterdir()
        if folder.is_dir() and (ROOT / package / folder.name).is_dir() and folder.name != "__pycache__"
    )


@pytest.mark.parametrize("room", rooms(), ids=lambda room: f"{room.parent.name}/{room.name}")
def test_every_room_is_touched(room: Path) -> None:
    assert set(room.rglob("test_*.py")) - set(left_out())
