"""The README's commands, as written there, against a server started the way ``make serve`` starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
CURL = [code for language, code in BLOCKS if language == "bash" and code.startswith("curl")]
COMMANDS = [code for language, code in BLOCKS if language == "bash" and "bin/manylora" in code]
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


@pytest.mark.parametrize("code", COMMANDS, ids=[f"commands-{i}" for i in range(len(COMMANDS))])
def test_the_commands_do_what_they_say(server: str, code: str) -> None:
    program = code.replace(".venv/bin/manylora", f"{sys.executable} -m manylora")
    environment = {**os.environ, "MANYLORA_URL": f"http://127.0.0.1:{server}"}
    done = subprocess.run(
        ["bash", "-euc", program], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = re.findall(r"helpdesk serves revision (\w+)(?: in place|: rank)", done.stdout)
    assert f"helpdesk serves revision {first}\n" in done.stdout.partition(second)[2]
    assert "front-desk -> 90% helpdesk, 10% pirate" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("helpdesk is deleted")


@pytest.mark.parametrize("code", PYTHON, ids=[f"python-{i}" for i in range(len(PYTHON))])
def test_the_client_example_prints_an_answer_for_every_model(server: str, code: str) -> None:
    program = code.replace(":8000", f":{server}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n--- ")[1:]
    assert len(answers) == 4
    assert all(len(answer.split("\n", 1)[1].strip()) > 20 for answer in answers)
    assert len({answer.split("\n", 1)[1] for answer in answers}) == 4


def test_the_readme_has_all_kinds() -> None:
    assert len(CURL) == 2
    assert len(COMMANDS) == 1
    assert len(PYTHON) == 1
