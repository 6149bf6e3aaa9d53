"""The page on A/B tests: its commands as written there, in order, against the real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

BLOCKS = re.findall(
    r"^```(bash|python)\n(.*?)^```", (ROOT / "docs" / "ab-testing.md").read_text(), re.DOTALL | re.MULTILINE
)

pytestmark = pytest.mark.real


@pytest.mark.sweep
def test_the_walk_through(server: str) -> None:
    environment = {**os.environ, "MANYLORA_URL": f"http://127.0.0.1:{server}"}
    outputs = []
    for language, code in BLOCKS:
        program = code.replace(".venv/bin/manylora", f"{sys.executable} -m manylora")
        program = program.replace(":8000", f":{server}")
        command = ["bash", "-euc", program] if language == "bash" else [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    added, split, _, shown, tidied = outputs
    for arm in ("helpdesk@dc5e0a7d", "helpdesk@eb115411"):
        assert arm.partition("@")[2] in added, "the page names revisions that the examples are no more"
        assert arm in split
    lines = [re.split(r" {2,}", line) for line in shown.splitlines()[2:]]
    table = {heading: cells for heading, *cells in lines}
    requests = [int(cell) for cell in table["requests"]]
    assert sum(requests) == 32
    assert min(requests) >= 10
    assert [int(cell) for cell in table["scores"]] == requests
    assert len(re.findall(r"\(.*? to .*?\)", " ".join(table["mean score"]))) == 3
    assert "helpdesk is deleted" in tidied
