"""Directories that appear whole or not at all, and what killed processes leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manylora.adapters.errors import OutputExists
from manylora.adapters.merge.directory import new_directory
from tests.support.paths import ROOT

_KILLED = """
import sys
from pathlib import Path
from manylora.adapters.merge.directory import new_directory
with new_directory(Path(sys.argv[1])) as directory:
    (directory / "half").write_text("written")
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that is about to write ``out``; its standard output has said where."""
    return subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_what_a_killed_process_leaves_is_removed_by_the_next(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    with writer:
        assert writer.stdout is not None
        half = Path(writer.stdout.readline().strip())
        with new_directory(tmp_path / "out") as beside:
            assert half.is_dir(), "a process that lives is left alone"
            assert beside != half
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            assert half.is_dir()
        (tmp_path / "out").rmdir()
    with new_directory(tmp_path / "other"):
        assert half.is_dir(), "another's place"
    with new_directory(tmp_path / "out"):
        assert not half.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists, match="remove it"), new_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_symlink()
