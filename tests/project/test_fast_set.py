"""``make test-fast`` leaves out what is slow or needs the real model, and still touches every room."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Collecting all tests once more takes half a minute of a core.
pytestmark = [pytest.mark.slow, pytest.mark.sweep]


def rooms() -> set[str]:
    """Folders of tests that are named after a folder of the code."""
    return {
        str(folder.relative_to(ROOT))
        for package in ("adapters", "server")
        for folder in (ROOT / "tests" / package).iterdir()
        if folder.is_dir() and (ROOT / package / folder.name).is_dir() and folder.name != "__pycache__"
    }


def test_every_room_is_touched() -> None:
    rule = next(line for line in (ROOT / "Makefile").read_text().splitlines() if '-m "not real' in line)
    chosen = rule.partition('-m "')[2].partition('"')[0]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = {Path(found) for found in re.findall(r"^(tests/\S+\.py): \d+$", done.stdout, re.MULTILINE)}
    touched = {str(Path(*file.parts[:3])) for file in files}
    assert rooms() - touched == set()
