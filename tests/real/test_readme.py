"""The README's commands, as written there, against a server started the way ``make serve`` starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
CURL = [code for language, code in BLOCKS if language == "bash" and code.startswith("curl")]
PYTHON = [code for language, code in BLOCKS if language == "python"]

pytestmark = pytest.mark.real


@pytest.mark.parametrize("code", CURL, ids=[f"curl-{i}" for i in range(len(CURL))])
def test_the_curl_commands_answer(server: str, code: str) -> None:
    done = subprocess.run(
        ["bash", "-euc", code.replace(":8000", f":{server}").replace("curl ", "curl -sS --fail-with-body ")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if '"stream": true' in code:
        assert done.stdout.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("code", PYTHON, ids=[f"python-{i}" for i in range(len(PYTHON))])
def test_the_client_example_prints_an_answer_for_every_model(server: str, code: str) -> None:
    program = code.replace(":8000", f":{server}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n--- ")[1:]
    assert len(answers) == 4
    assert all(len(answer.split("\n", 1)[1].strip()) > 20 for answer in answers)
    assert len({answer.split("\n", 1)[1] for answer in answers}) == 4


def test_the_readme_has_both_kinds() -> None:
    assert len(CURL) == 2
    assert len(PYTHON) == 1
