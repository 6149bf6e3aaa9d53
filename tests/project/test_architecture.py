"""docs/architecture.md is true of the code: its diagram, and the files it sends people to."""

from __future__ import annotations

import re

import pytest

from tests.support.package_diagram import PAGE, diagram, section
from tests.support.paths import ROOT

# The first ten are what somebody new would change; each row of the table must name where.
CHANGES = (
    "a field of the chat request",
    "a metric",
    "a PEFT kind that is refused today",
    "an option",
    "a command of the command line",
    "a sampling parameter",
    "a source of adapters",
    "who runs next",
    "a level of the CPU kernels",
    "a column of the model card",
)


def test_the_diagram_is_what_the_code_imports() -> None:
    assert section() == diagram(), "run: make docs"


@pytest.mark.parametrize("change", CHANGES)
def test_where_to_change_what(change: str) -> None:
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {change} |")]
    assert re.search(r"`(?:server|adapters)/[\w/.]+`", row)


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:server|adapters|docs|tests|bench|manylora)/[\w./-]+)`", PAGE.read_text())
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_short_path_that_the_page_names_exists() -> None:
    """Such as ``names/lookup.py``: a file of one of the two packages."""
    named = re.findall(r"`([a-z_]+/[\w/]+\.(?:py|cpp|h))`", PAGE.read_text())
    roots = (ROOT, ROOT / "server", ROOT / "adapters")
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []
