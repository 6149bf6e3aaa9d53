"""The cores of a container are those that it may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manylora.server.cores import threads_to_set, usable_cores

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", ALL),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", min(ALL, 2)),
        ("6400000 100000", min(ALL, 64)),
        ("0 0", ALL),
        ("", ALL),
        ("nonsense", ALL),
    ],
)
def test_quota(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == cores


def test_the_older_files(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == ALL
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == ALL


def test_what_was_said_counts(tmp_path: Path) -> None:
    assert threads_to_set({}, tmp_path) is None
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert threads_to_set({}, tmp_path) == 1
    assert threads_to_set({"OMP_NUM_THREADS": "4"}, tmp_path) is None
