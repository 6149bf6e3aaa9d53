"""The programs of docs/python.md as written there: on a tiny model of the real one's name, and on that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.adapters import write_adapter
from tests.support.paths import ROOT
from tests.support.running_server import serving, tiny_service
from tests.support.tiny_models import tiny_model

MODEL = "smollm2-135m"
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
# Each with names of its own, in one process: it takes longer to start one than to run most of them.
RUN_ALL = """
import sys

for program in sys.argv[2:]:
    exec(compile(program, "docs/python.md", "exec"), {"__name__": "__main__"})
    print(sys.argv[1], flush=True)
"""
END = "-- the next program --"


def run_all(directory: Path, port: str, **environment: str) -> None:
    """Run every program in ``directory``, one after the other, and check that it prints what it should."""
    programs = [program.replace(":8000", f":{port}") for program in PROGRAMS]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, END, *programs],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, rest = done.stdout.split(END)
    assert not rest.strip()
    for program, text in zip(PROGRAMS, printed, strict=True):
        assert text.strip() or "print" not in program, program


@pytest.mark.slow
def test_on_a_tiny_model(tmp_path: Path) -> None:
    models = tmp_path / "data" / "manylora" / "models"
    models.mkdir(parents=True)
    tiny = tiny_model(models / MODEL, max_position_embeddings=2048)
    for seed, name in enumerate(("pirate", "json")):
        write_adapter(tmp_path / "examples" / "adapters" / name, tiny, seed=seed)
    with serving(tiny_service(tiny, tmp_path / "served")) as running:
        run_all(tmp_path, running.url.rpartition(":")[2], XDG_DATA_HOME=str(tmp_path / "data"))
    assert (tmp_path / "out" / "pirate-model" / "config.json").is_file()


@pytest.mark.real
@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_on_the_real_model(server: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run_all(tmp_path, server)


def test_the_page_has_them_all() -> None:
    assert len(PROGRAMS) == 4
    assert any(MODEL in program for program in PROGRAMS)
