"""Fixtures of a tiny base and of a maker of members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.merge.recipe import Member
from tests.support.adapters import base_of_directory, write_adapter
from tests.support.members import LIMITS, Make


@pytest.fixture(scope="session")
def base(tiny_llama: Path) -> BaseModel:
    return base_of_directory(tiny_llama)


@pytest.fixture
def make(base: BaseModel, tmp_path: Path) -> Make:
    """Writes an adapter with the options of ``write_adapter`` and reads it back as a member."""

    def made(name: str, weight: float, **options: Any) -> Member:
        directory = write_adapter(tmp_path / name, base, **options)
        return Member(name, read_artifact(directory, base, LIMITS), weight)

    return made
